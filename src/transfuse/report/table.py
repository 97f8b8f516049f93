"""The result table in a terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from transfuse.report.load import MetricValue, Report
from transfuse.report.wording import interval_text, metric_label, metric_names, n_items_text, value_text


def result_table(report: Report, metrics: Sequence[str] | None = None) -> Table:
    """Rows by metrics, each mean over its 95 % interval; five metrics fit 80 columns.

    Args:
        report: any report.
        metrics: those to show; None shows all.

    Returns:
        A table for a rich console; shares are in per cent, and a dash stands where nothing could be scored.
    """
    metrics = metric_names(report) if metrics is None else metrics
    table = captioned_table("Second lines: 95 % intervals. n: questions scored.", padding=0)
    table.add_column("", no_wrap=all(len(row.name) <= 20 for row in report.rows), overflow="fold")
    for metric in metrics:
        table.add_column(Text(metric_label(metric)), justify="right", overflow="fold")
    table.add_column("n", justify="right", overflow="fold")
    for row in report.rows:
        cells = [_cell(metric, row.metrics.get(metric)) for metric in metrics]
        table.add_row(Text(row.name, style="bold"), *cells, n_items_text(row.metrics))
    return table


def captioned_table(caption: str, padding: int = 1) -> Table:
    """An empty table in the style of all, columns `padding` blanks apart."""
    return Table(
        box=box.SIMPLE_HEAD,
        padding=(0, padding, 0, 0),
        pad_edge=False,
        show_edge=False,
        caption=caption,
        caption_justify="left",
    )


def _cell(metric: str, estimate: MetricValue | None) -> Text:
    """A mean with its interval on a second line."""
    interval = interval_text(metric, estimate)
    cell = Text(value_text(metric, estimate))
    return cell.append(f"\n{interval}", style="dim") if interval else cell
