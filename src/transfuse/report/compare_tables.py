"""A comparison in a terminal: the table, what each row took, and which rows failed."""

from rich.table import Table
from rich.text import Text

from transfuse.report.compare_parts import ComparedRow
from transfuse.report.compare_wording import (
    against,
    count_text,
    mark,
    shown_metrics,
    size_or_nothing,
    time_or_nothing,
)
from transfuse.report.load import Report
from transfuse.report.table import captioned_table
from transfuse.report.wording import interval_text, metric_label, value_text, visible_text

METRICS_A_TABLE = 5
_MARKS = {"better": (" ▲", "green"), "worse": (" ▼", "red")}


def compare_tables(report: Report) -> list[Table]:
    """Tables of a comparison, each of which fits 80 columns.

    Args:
        report: of a comparison.

    Returns:
        Metrics (several tables where there are many), costs, and the rows that failed with their reasons.
    """
    part = report.compare
    if part is None:
        return []
    metrics = shown_metrics(report)
    n_tables = max(1, -(-len(metrics) // METRICS_A_TABLE))
    width = max(1, -(-len(metrics) // n_tables))
    tables = [_metrics_table(report, metrics[i : i + width]) for i in range(0, len(metrics), width)]
    tables.append(_costs_table(part.rows))
    failed = [row for row in part.rows if row.state == "failed"]
    if failed:
        tables.append(_failed_table(failed))
    return tables


def _metrics_table(report: Report, metrics: list[str]) -> Table:
    part = report.compare
    reference = visible_text(part.reference or "") if part else ""
    table = captioned_table(
        f"Second lines: 95 % intervals. ▲ better, ▼ worse than {reference}, after Holm over the rows."
    )
    table.add_column("", overflow="fold")
    for metric in metrics:
        table.add_column(Text(visible_text(metric_label(metric))), justify="right", overflow="fold")
    for row in report.rows:
        cells: list[Text] = []
        for metric in metrics:
            estimate = row.metrics.get(metric)
            cell = Text(value_text(metric, estimate))
            sign, style = _MARKS.get(mark(against(report, row.name, metric)), ("", ""))
            cell.append(sign, style=style)
            interval = interval_text(metric, estimate)
            cells.append(cell.append(f"\n{interval}", style="dim") if interval else cell)
        table.add_row(Text(visible_text(row.name), style="bold"), *cells)
    return table


def _costs_table(rows: list[ComparedRow]) -> Table:
    table = captioned_table(
        "Training: the whole job, mean over seeds. Added: what inference needs beside the student."
    )
    table.add_column("", overflow="fold")
    for name in ("Tokens", "Training", "Memory", "Disk", "Added", "An answer"):
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        costs = row.costs
        table.add_row(
            Text(visible_text(row.name), style="bold"),
            count_text(costs.training_tokens),
            time_or_nothing(costs.training_s),
            size_or_nothing(costs.training_memory_bytes),
            size_or_nothing(costs.disk_bytes),
            size_or_nothing(costs.size_added_bytes),
            time_or_nothing(costs.latency_s),
        )
    return table


def _failed_table(rows: list[ComparedRow]) -> Table:
    table = captioned_table("The same command tries failed rows again; all else is kept.")
    table.add_column("Failed", overflow="fold")
    table.add_column("Why", overflow="fold")
    for row in rows:
        table.add_row(Text(visible_text(row.name), style="bold"), Text(visible_text(row.reason, 400)))
    return table
