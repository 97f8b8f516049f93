"""Terminal tables of a fuse run: bits per byte of each text, and how well the tokens of each pair fit."""

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from transfuse.report.fuse_parts import Pair
from transfuse.report.load import Report, Row
from transfuse.report.table import captioned_table
from transfuse.report.wording import NOTHING, interval_text, percent_text, value_text, visible_text

TEXTS_A_TABLE = 5
"""More columns do not fit 80 characters."""


def texts_tables(report: Report, metrics: Sequence[str]) -> list[Table]:
    """Bits per byte, rows by texts, in as many tables as it takes to fit 80 columns.

    Args:
        report: any report.
        metrics: those of bits per byte, in order.

    Returns:
        Tables for a rich console; none without metrics.
    """
    n_tables = -(-len(metrics) // TEXTS_A_TABLE)
    width = -(-len(metrics) // max(n_tables, 1))
    groups = [metrics[i : i + width] for i in range(0, len(metrics), width)] if width else []
    return [_texts_table(report.rows, group) for group in groups]


def coverage_table(pairs: Sequence[Pair]) -> Table:
    """How well each source's tokens fit the target's, a line a pair.

    Args:
        pairs: as in `report.json`, or as `fuse check` makes them.

    Returns:
        A table that fits 80 columns.
    """
    table = captioned_table(
        "Of the target's tokens: those that meet one of the source's, and those that it can teach. "
        "Longest: target tokens in the longest chunk. Shared, no match: of the source's vocabulary."
    )
    table.add_column("Source", no_wrap=all(len(pair.source) <= 20 for pair in pairs), overflow="fold")
    for name in ("One to one", "Taught", "With digits", "Longest", "Shared", "No match", "Seconds"):
        table.add_column(name, justify="right", overflow="fold")
    for pair in pairs:
        coverage, vocabulary = pair.coverage, pair.vocabulary
        table.add_row(
            Text(visible_text(pair.source), style="bold"),
            percent_text(coverage.one_to_one_share),
            percent_text(coverage.taught_share),
            percent_text(coverage.digit_share),
            _count(coverage.longest_chunk_tokens),
            percent_text(vocabulary.overlap),
            _count(vocabulary.n_unmapped),
            _seconds(pair),
        )
    return table


def _texts_table(rows: Sequence[Row], metrics: Sequence[str]) -> Table:
    table = captioned_table("Bits per byte: lower is better. Second lines: 95 % intervals.")
    table.add_column("", no_wrap=all(len(row.name) <= 20 for row in rows), overflow="fold")
    for metric in metrics:
        name = metric.partition("/")[2] or "bits per byte"
        table.add_column(Text(visible_text(name)), justify="right", overflow="fold")
    for row in rows:
        cells: list[Text] = []
        for metric in metrics:
            estimate = row.metrics.get(metric)
            interval = interval_text(metric, estimate)
            cell = Text(value_text(metric, estimate))
            cells.append(cell.append(f"\n{interval}", style="dim") if interval else cell)
        table.add_row(Text(visible_text(row.name), style="bold"), *cells)
    return table


def _count(n: int | None) -> str:
    return NOTHING if n is None else f"{n:,}"


def _seconds(pair: Pair) -> str:
    known = [s for s in (pair.map_seconds, pair.align_seconds) if s is not None and math.isfinite(s)]
    return f"{sum(known):.1f}" if known else NOTHING
