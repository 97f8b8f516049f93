"""The terminal tables of an evaluation: figures by set of items, and what each system took."""

from rich.table import Table
from rich.text import Text

from transfuse.report.eval_wording import comparison_of, figure_groups, figure_label, n_items
from transfuse.report.load import Report
from transfuse.report.table import captioned_table
from transfuse.report.wording import (
    NOTHING,
    bytes_text,
    difference_text,
    duration_text,
    interval_text,
    value_text,
    visible_text,
)

_STYLES = {"better": "green", "worse": "red", "no difference shown": "dim"}


def eval_tables(report: Report) -> list[Table]:
    """Figures and costs; each fits 80 columns.

    Args:
        report: of an evaluation.

    Returns:
        Two tables for a rich console.
    """
    return [_figures(report), _costs(report)]


def _figures(report: Report) -> Table:
    rows = report.rows
    caption = "Second lines: 95 % intervals. n: items scored."
    if report.comparisons:
        caption += f" Difference: {rows[0].name} minus {rows[1].name} on the same items."
    table = captioned_table(caption)
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_column(Text(visible_text(row.name)), justify="right", no_wrap=True)
    if report.comparisons:
        table.add_column("difference", justify="right", overflow="fold")
    table.add_column("n", justify="right")
    for group in figure_groups(report):
        lead = f"{visible_text(group.name)}" + (
            f", {group.label}" if group.label not in ("", group.name) else ""
        )
        table.add_row(Text(lead, style="bold"))
        for metric in group.metrics:
            found = [row.metrics.get(metric) for row in rows]
            cells: list[Text] = []
            for estimate in found:
                cell, interval = Text(value_text(metric, estimate)), interval_text(metric, estimate)
                cells.append(cell.append(f"\n{interval}", style="dim") if interval else cell)
            if report.comparisons:
                cells.append(_difference(report, metric))
            table.add_row(Text(f"  {figure_label(metric)}"), *cells, n_items(report, metric))
    return table


def _difference(report: Report, metric: str) -> Text:
    comparison = comparison_of(report, metric)
    if comparison is None:
        return Text(NOTHING)
    value, _, interval = difference_text(metric, comparison.difference).partition(" [")
    text = Text(value, style=_STYLES[comparison.verdict])
    return text.append(f"\n[{interval}", style="dim") if interval else text


def _costs(report: Report) -> Table:
    table = captioned_table("Answer: median time of a single one. Added: on disk, beyond the model itself.")
    table.add_column("", overflow="fold")
    for name in ("measured in", "answer", "peak memory", "added"):
        table.add_column(name, justify="right")
    for row, costs in report.costs.items():
        table.add_row(
            Text(visible_text(row), style="bold"),
            NOTHING if costs.seconds is None else duration_text(costs.seconds),
            latency_text(costs.latency_s),
            NOTHING if costs.peak_memory_bytes is None else bytes_text(costs.peak_memory_bytes),
            NOTHING if costs.size_added_bytes is None else bytes_text(costs.size_added_bytes),
        )
    return table


def latency_text(seconds: float | None) -> str:
    """The time of an answer: `412 ms`, `2.3 s`."""
    if seconds is None:
        return NOTHING
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else duration_text(seconds)
