"""Terminal tables of a transfer run beside the result table: comparisons, and what was extracted."""

from statistics import fmean

from rich import box
from rich.table import Table
from rich.text import Text

from transfuse.report.load import Report
from transfuse.report.table import result_table
from transfuse.report.wording import NOTHING, difference_text, metric_label, metric_names, percent_text

METRICS_A_TABLE = 5
"""More columns do not fit 80 characters; a transfer run's result table is then cut in two."""
_STYLES = {"better": "green", "worse": "red", "no difference shown": "dim"}


def report_tables(report: Report) -> list[Table]:
    """The tables that a run has something for, the result table first.

    Args:
        report: any report.

    Returns:
        Tables for a rich console; never empty: a report with nothing in it gives an empty result table.
    """
    names = metric_names(report)
    n_tables = -(-len(names) // METRICS_A_TABLE) if report.kind == "transfer" else 1
    width = -(-len(names) // max(n_tables, 1))
    groups = [names[i : i + width] for i in range(0, len(names), width)] if width else [names]
    tables = [result_table(report, group) for group in groups] if report.rows else []
    if report.comparisons:
        tables.append(comparison_table(report))
    if report.transfer and report.transfer.blocks and not report.rows:
        tables.append(extraction_table(report))
    return tables or [result_table(report)]


def comparison_table(report: Report) -> Table:
    """The method against each control by each metric: difference, 95 % interval, outcome.

    Args:
        report: one with comparisons.

    Returns:
        A table that fits 80 columns.
    """
    methods = list(dict.fromkeys(comparison.method for comparison in report.comparisons))
    table = _table("Method minus control, with 95 % intervals.")
    table.add_column(f"{methods[0] if len(methods) == 1 else 'Method'} against", overflow="fold")
    table.add_column("Difference", justify="right", no_wrap=True)
    table.add_column("Outcome", overflow="fold")
    shown = ""
    for each in report.comparisons:
        label = metric_label(each.metric)
        if label != shown:
            table.add_row(Text(label, style="bold"), "", "")
        against = each.against if len(methods) == 1 else f"{each.method} − {each.against}"
        table.add_row(
            Text(f"  {against}"),
            difference_text(each.metric, each.difference),
            Text(each.verdict, style=_STYLES[each.verdict]),
        )
        shown = label
    return table


def extraction_table(report: Report) -> Table:
    """A line a role: blocks, the sensitivity they hold on average, their share of the entries, what the rank keeps.

    Args:
        report: one with blocks.

    Returns:
        A table that fits 80 columns.
    """
    blocks = report.transfer.blocks if report.transfer else []
    table = _table("Means over the blocks. Inside by chance: their share of the matrix's entries.")
    table.add_column("Role")
    for name in ("Blocks", "Student", "Teacher", "Sensitivity inside", "By chance", "Kept by the rank"):
        table.add_column(name, justify="right", overflow="fold")
    for role in dict.fromkeys(block.role for block in blocks):
        group = [block for block in blocks if block.role == role]
        shapes = (group[0].student_shape, group[0].teacher_shape)
        table.add_row(
            Text(role, style="bold"),
            f"{len(group):,}",
            *(f"{n_rows}×{n_columns}" for n_rows, n_columns in shapes),
            _mean([b.score_share for b in group]),
            percent_text(fmean(b.area_share for b in group)),
            _mean([b.energy for b in group]),
        )
    return table


def _table(caption: str) -> Table:
    return Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False,
        caption=caption, caption_justify="left",
    )  # fmt: skip


def _mean(shares: list[float | None]) -> str:
    known = [share for share in shares if share is not None]
    return percent_text(fmean(known)) if known else NOTHING
