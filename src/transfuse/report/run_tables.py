"""The terminal tables of a run of any kind, and the one of its comparisons."""

from rich.table import Table
from rich.text import Text

from transfuse.report.compare_tables import compare_tables
from transfuse.report.eval_tables import eval_tables
from transfuse.report.fuse_tables import coverage_table, texts_tables
from transfuse.report.load import Report
from transfuse.report.table import captioned_table, result_table
from transfuse.report.transfer_tables import extraction_table
from transfuse.report.wording import difference_text, metric_label, metric_names, visible_text

METRICS_A_TABLE = 5
"""More columns do not fit 80 characters; a result table is then cut into several."""
_STYLES = {"better": "green", "worse": "red", "no difference shown": "dim"}


def report_tables(report: Report) -> list[Table]:
    """The tables that a run has something for, the result table first.

    Args:
        report: any report.

    Returns:
        Tables for a rich console; never empty: a report with nothing in it gives an empty result table.
    """
    if report.compare is not None:
        return compare_tables(report)
    if report.eval is not None:
        return eval_tables(report)
    names = metric_names(report)
    tables: list[Table] = []
    if report.kind == "fuse":
        bits = [name for name in names if name.partition("/")[0] == "bits_per_byte"]
        tables += texts_tables(report, bits)
        names = [name for name in names if name not in bits]
    n_tables = -(-len(names) // METRICS_A_TABLE) if report.kind != "inject" else 1
    width = -(-len(names) // max(n_tables, 1))
    groups = [names[i : i + width] for i in range(0, len(names), width)] if width else [names]
    if report.rows and (names or not tables):
        tables += [result_table(report, group) for group in groups]
    if report.comparisons:
        tables.append(comparison_table(report))
    if report.fuse and report.fuse.pairs:
        tables.append(coverage_table(report.fuse.pairs))
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
    table = captioned_table("Method minus control, with 95 % intervals.")
    table.add_column(Text(f"{methods[0] if len(methods) == 1 else 'Method'} against"), overflow="fold")
    table.add_column("Difference", justify="right", no_wrap=True)
    table.add_column("Outcome", overflow="fold")
    shown = ""
    metrics = list(dict.fromkeys(each.metric for each in report.comparisons))
    for each in sorted(report.comparisons, key=lambda each: metrics.index(each.metric)):
        label = visible_text(metric_label(each.metric))
        if label != shown:
            table.add_row(Text(label, style="bold"), "", "")
        against = each.against if len(methods) == 1 else f"{each.method} − {each.against}"
        table.add_row(
            Text(f"  {visible_text(against)}"),
            difference_text(each.metric, each.difference),
            Text(each.verdict, style=_STYLES[each.verdict]),
        )
        shown = label
    return table
