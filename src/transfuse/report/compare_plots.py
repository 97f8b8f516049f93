"""Charts of a comparison: what is gained against what is lost, and against what it costs."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from transfuse.report.compare_parts import RowCosts
from transfuse.report.compare_wording import against, shown_metrics
from transfuse.report.load import Report
from transfuse.report.parts import MetricValue
from transfuse.report.plot_style import (
    COLOURS,
    MARKERS,
    MORE_COLOURS,
    STYLE,
    WIDTH_IN,
    is_drawable,
    short_name,
    svg_text,
)
from transfuse.report.wording import is_share, metric_label, visible_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 4
N_PANEL_COLUMNS = 2
_PALETTE = (*COLOURS, *MORE_COLOURS)


class Point(NamedTuple):
    """A row in a chart."""

    name: str
    across: MetricValue
    up: MetricValue


def trade_off_chart(report: Report) -> str:
    """Gain by the main metric against loss of general ability, both against the reference; a panel a metric.

    Args:
        report: of a comparison.

    Returns:
        An `<svg>` element; empty where fewer than two rows have both.
    """
    part = report.compare
    if part is None or part.main_metric is None or part.reference is None:
        return ""
    general = [metric for metric in shown_metrics(report) if part.metrics[metric] == "general"]
    panels = {metric: _changes(report, part.main_metric, metric) for metric in general[:MOST_PANELS]}
    panels = {metric: points for metric, points in panels.items() if len(points) > 1}
    if not panels:
        return ""
    main = part.main_metric

    def draw(axes: "Axes", metric: str) -> None:
        axes.axhline(0, color="#b5b5b5", linewidth=0.8, zorder=0)
        axes.axvline(0, color="#b5b5b5", linewidth=0.8, zorder=0)
        axes.set_title(
            short_name(visible_text(metric_label(metric))), loc="left", fontsize=9, fontweight="bold"
        )
        axes.set_xlabel(f"lost{_unit(metric)}", fontsize=8)
        axes.set_ylabel(f"gained, {short_name(visible_text(metric_label(main)))}{_unit(main)}", fontsize=8)

    return _chart(report, panels, draw, "tradeoff", "Knowledge gained against general ability lost")


def cost_chart(report: Report) -> str:
    """The main metric against training tokens, and against the time of training.

    Args:
        report: of a comparison.

    Returns:
        An `<svg>` element; empty where fewer than two rows trained.
    """
    part = report.compare
    if part is None or part.main_metric is None:
        return ""
    main = part.main_metric
    values = {row.name: row.metrics.get(main) for row in report.rows}
    kinds: dict[str, tuple[str, Callable[[RowCosts], float | None], float]] = {
        "tokens": ("training tokens (thousands)", lambda costs: costs.training_tokens, 1e-3),
        "seconds": ("training time (minutes)", lambda costs: costs.training_s, 1 / 60),
    }
    panels: dict[str, list[Point]] = {}
    for kind, (_, read, unit) in kinds.items():
        points: list[Point] = []
        for row in part.rows:
            value, cost = values.get(row.name), read(row.costs)
            if row.state == "done" and value is not None and is_drawable(value):
                if cost is None and row.seeds:
                    continue
                points.append(Point(row.name, MetricValue(value=(cost or 0.0) * unit), _scaled(main, value)))
        if sum((point.across.value or 0.0) > 0 for point in points) > 1:
            panels[kind] = points
    if not panels:
        return ""

    def draw(axes: "Axes", kind: str) -> None:
        axes.set_xlabel(kinds[kind][0], fontsize=8)
        unit = " (%)" if is_share(main) else ""
        axes.set_ylabel(f"{short_name(visible_text(metric_label(main)))}{unit}", fontsize=8)

    return _chart(report, panels, draw, "cost", "The main metric against the cost of training")


def _changes(report: Report, main: str, general: str) -> list[Point]:
    """Each row's gain and loss against the reference, which stands at zero."""
    part = report.compare
    if part is None or part.reference is None:
        return []
    nothing = MetricValue(value=0.0)
    points = [Point(part.reference, nothing, nothing)]
    for row in part.rows:
        gain, loss = against(report, row.name, main), against(report, row.name, general)
        if (
            gain is None
            or loss is None
            or not is_drawable(gain.difference)
            or not is_drawable(loss.difference)
        ):
            continue
        up = _turned(_scaled(main, gain.difference), -1.0 if gain.is_better_lower else 1.0)
        across = _turned(_scaled(general, loss.difference), 1.0 if loss.is_better_lower else -1.0)
        points.append(Point(row.name, across, up))
    return points


def _chart(
    report: Report,
    panels: Mapping[str, Sequence[Point]],
    draw: Callable[["Axes", str], None],
    name: str,
    label: str,
) -> str:
    """Panels side by side, with one legend below for all."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    looks = _looks(report)
    shown = [row for row in looks if any(point.name == row for points in panels.values() for point in points)]
    n_columns = min(N_PANEL_COLUMNS, len(panels))
    n_lines, n_legend = -(-len(panels) // n_columns), 3
    height = 2.5 * n_lines + 0.2 * -(-len(shown) // n_legend) + 0.3
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN * (1 if n_columns == 1 else 1.35), height), layout="constrained")
        grid = figure.subplots(n_lines, n_columns, squeeze=False).ravel().tolist()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, (key, points) in zip(grid, panels.items(), strict=False):
            _scatter(axes, points, looks)
            draw(axes, key)
        _legend(figure, shown, looks, n_legend)
        return svg_text(figure, name, label)


def _scatter(axes: "Axes", points: Sequence[Point], looks: Mapping[str, tuple[str, str, str]]) -> None:
    for point in points:
        colour, marker, fill = looks[point.name]
        x, y = point.across.value or 0.0, point.up.value or 0.0
        if point.across.low is not None and point.across.high is not None:
            axes.plot([point.across.low, point.across.high], [y, y], color=colour, linewidth=1.0, alpha=0.55)
        if point.up.low is not None and point.up.high is not None:
            axes.plot([x, x], [point.up.low, point.up.high], color=colour, linewidth=1.0, alpha=0.55)
        axes.plot(x, y, marker, color=colour, markerfacecolor=fill, markersize=6.5, zorder=3)
    axes.margins(0.1)
    axes.locator_params(nbins=5)
    axes.ticklabel_format(useOffset=False)
    axes.grid(visible=True)


def _legend(
    figure: "Figure", names: Sequence[str], looks: Mapping[str, tuple[str, str, str]], n_columns: int
) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=colour,
            marker=marker,
            markerfacecolor=fill,
            linestyle="",
            label=short_name(visible_text(name)),
        )
        for name in names
        for colour, marker, fill in [looks[name]]
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=n_columns, frameon=False, fontsize=8)


def _looks(report: Report) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and fill of each row, the same in every chart; with retrieval the marker is hollow."""
    found: dict[str, tuple[str, str, str]] = {}
    for n, row in enumerate(report.compare.rows if report.compare else []):
        colour = _PALETTE[n % len(_PALETTE)]
        found[row.name] = (colour, MARKERS[n % len(MARKERS)], "white" if row.retrieval else colour)
    return found


def _scaled(metric: str, value: MetricValue) -> MetricValue:
    """Shares in per cent."""
    return _turned(value, 100.0) if is_share(metric) else value


def _turned(value: MetricValue, factor: float) -> MetricValue:
    """A value and its interval times a number, whose ends change places where it is negative."""
    ends = [
        None if end is None or not math.isfinite(end) else factor * end for end in (value.low, value.high)
    ]
    low, high = ends if factor > 0 else ends[::-1]
    return MetricValue(value=factor * (value.value or 0.0), low=low, high=high, n=value.n)


def _unit(metric: str) -> str:
    return " (points)" if is_share(metric) else ""
