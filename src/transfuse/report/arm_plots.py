"""Charts of the method beside its controls: training curves, learning-rate sweeps, differences."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transfuse.report.plot_style import (
    COLOURS,
    MARKERS,
    MORE_COLOURS,
    STYLE,
    WIDTH_IN,
    is_drawable,
    short_name,
    svg_text,
    top_of_interest,
)
from transfuse.report.plots import smoothed
from transfuse.report.transfer_parts import Arm, ArmRun, Comparison
from transfuse.report.wording import is_share, metric_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OTHER_LOSSES = frozenset({"online-distillation", "offline-distillation", "fused", "distilled", "pairwise"})
"""Arms, by their names up to a slash, that learn other targets: drawn broken, and not subtracted from."""
REFERENCE = "lora"
"""The arm that the others' losses are set against, where none is named."""
MOST_TIMES_MIDDLE = 12
"""A difference so many times the middle one is drawn at the edge."""
MOST_POINTS = 240
"""Of a drawn curve."""
_VERDICT_COLOURS = {"better": COLOURS[1], "worse": COLOURS[2], "no difference shown": "#6f6f6f"}

Curve = list[tuple[int, float]]


def arm_colours(arms: Sequence[Arm], method: str, reference: str = REFERENCE) -> dict[str, str]:
    """A colour for each arm: blue for the method, grey for the first control, others in order."""
    fixed = {reference: COLOURS[0]} | {method: COLOURS[1]}
    others = [arm.name for arm in arms if arm.name not in fixed]
    palette = (*COLOURS[2:], *MORE_COLOURS)
    return fixed | {name: palette[i % len(palette)] for i, name in enumerate(others)}


def curves_chart(arms: Sequence[Arm], method: str, reference: str = REFERENCE) -> str:
    """Training loss of every arm, mean over its seeds; below, how far each is from the first control.

    Args:
        arms: any; those without a curve are not drawn.
        method: the arm drawn thick.
        reference: the control that the others are set against.

    Returns:
        An `<svg>` element; empty where no arm has two steps.
    """
    means = {arm.name: mean for arm in arms if len(mean := _mean_curve(arm)) > 1}
    if not means:
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    colours = arm_colours(arms, method, reference)
    runs = {arm.name: [curve for run in arm.runs if len(curve := _curve(run)) > 1] for arm in arms}
    differences = _against_reference(means, reference)
    ratios = [1.5, 1] if differences else [1]
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(WIDTH_IN, (4.4 if differences else 2.6) + 0.1 * len(means)), layout="constrained"
        )
        grid = figure.subplots(len(ratios), 1, squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
        for name, mean in means.items():
            line = "--" if _has_other_loss(name) else "-"
            for curve in runs[name] if len(runs[name]) > 1 else []:
                _line(grid[0], None, curve, colours[name], line, width=0.6)
            _line(grid[0], name, mean, colours[name], line, width=2.2 if name == method else 1.2)
        for name, curve in differences.items():
            _line(grid[-1], name, curve, colours[name], "-", width=2.2 if name == method else 1.2)
        grid[0].set_ylabel("loss (nats)")
        if differences:
            grid[-1].axhline(0, color=COLOURS[0], linewidth=1)
            grid[-1].set_ylabel(f"loss minus\nthat of {short_name(reference)}")
        grid[-1].set_xlabel("step")
        for axes in grid:
            axes.grid(axis="y")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        return svg_text(figure, "curves", "Training loss of the method and its controls")


def sweep_chart(arms: Sequence[Arm], method: str, reference: str = REFERENCE) -> str:
    """Bits per byte of the development set by learning rate, a line an arm, the rate chosen ringed.

    Args:
        arms: any; those that tried fewer than two rates are not drawn.
        method: the arm drawn thick.
        reference: the first control.

    Returns:
        An `<svg>` element; empty where no arm tried two rates.
    """
    swept = {arm.name: (arm, points) for arm in arms if len(points := _sweep(arm)) > 1}
    if not swept:
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    colours = arm_colours(arms, method, reference)
    top = top_of_interest([value for _, points in swept.values() for value in points.values()])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 2.5 + 0.1 * len(swept)), layout="constrained")
        axes = figure.subplots()
        for place, (name, (arm, points)) in enumerate(swept.items()):
            shift = 1.025 ** (place - (len(swept) - 1) / 2)  # so that no marker hides another
            rates = [rate * shift for rate in points]
            values = [min(value, top) for value in points.values()]
            width = 2.2 if name == method else 1.0
            marker = MARKERS[place % len(MARKERS)]
            axes.plot(
                rates,
                values,
                marker=marker,
                color=colours[name],
                linewidth=width,
                markersize=4,
                label=short_name(name),
            )
            if arm.learning_rate in points:
                value = min(points[arm.learning_rate], top)
                axes.plot(
                    arm.learning_rate * shift,
                    value,
                    "o",
                    color=colours[name],
                    fillstyle="none",
                    markersize=10,
                )
        tried = sorted({rate for _, points in swept.values() for rate in points})
        axes.set_xscale("log")
        axes.set_xticks(tried, [f"{rate:g}" for rate in tried])
        axes.minorticks_off()
        axes.set_xlabel("peak learning rate")
        axes.set_ylabel("bits per byte,\ndevelopment set")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        return svg_text(figure, "sweep", "Development loss by learning rate, for each arm")


def forest_chart(comparisons: Sequence[Comparison]) -> str:
    """Difference between the method and each control with its 95 % interval, a panel a metric.

    Args:
        comparisons: any; those without a value are not drawn.

    Returns:
        An `<svg>` element; empty where there is none to draw.
    """
    panels: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        if is_drawable(comparison.difference):
            panels.setdefault(comparison.metric, []).append(comparison)
    if not panels:
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    heights = [0.75 + 0.22 * len(group) for group in panels.values()]
    with mpl.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(hspace=0.08)
        figure = Figure(figsize=(WIDTH_IN, sum(heights) + 0.1), layout=layout)
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (metric, group) in zip(grid, panels.items(), strict=True):
            _forest(axes, metric, group)
        return svg_text(figure, "forest", "The method against each control, with 95 % intervals")


def _curve(run: ArmRun) -> Curve:
    return [(point.step, point.loss) for point in run.curve if math.isfinite(point.loss)]


def _mean_curve(arm: Arm) -> Curve:
    """Mean over the seeds at the steps that all of them logged."""
    curves = [dict(curve) for run in arm.runs if (curve := _curve(run))]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    return [(step, sum(curve[step] for curve in curves) / len(curves)) for step in steps]


def _has_other_loss(arm: str) -> bool:
    return arm.partition("/")[0] in OTHER_LOSSES


def _against_reference(means: dict[str, Curve], reference: str) -> dict[str, Curve]:
    """Each arm's loss minus the reference's at the steps of both; arms of other losses are left out."""
    losses = dict(means.get(reference, []))
    differences = {
        name: [(step, loss - losses[step]) for step, loss in curve if step in losses]
        for name, curve in means.items()
        if name != reference and not _has_other_loss(name)
    }
    return {name: curve for name, curve in differences.items() if len(curve) > 1}


def _line(axes: "Axes", name: str | None, curve: Curve, colour: str, style: str, *, width: float) -> None:
    """A smoothed curve, thinned out to as many points as a reader can tell apart; thin ones are pale."""
    losses = smoothed([loss for _, loss in curve])
    every = -(-len(curve) // MOST_POINTS)
    points = list(zip([step for step, _ in curve], losses, strict=True))
    shown = points[::every] if (len(points) - 1) % every == 0 else [*points[::every], points[-1]]
    look = {"color": colour, "linewidth": width, "alpha": 0.4 if width < 1 else 1.0, "zorder": 2 + width}
    axes.plot(*zip(*shown, strict=True), style, label=None if name is None else short_name(name), **look)


def _sweep(arm: Arm) -> dict[float, float]:
    """Mean over the seeds for each rate that gave a finite value, in order of the rates."""
    values: dict[float, list[float]] = {}
    for tried in arm.tried:
        value = tried.development_bits_per_byte
        if value is not None and math.isfinite(value) and tried.learning_rate > 0:
            values.setdefault(tried.learning_rate, []).append(value)
    return {rate: sum(found) / len(found) for rate, found in sorted(values.items())}


def _forest(axes: "Axes", metric: str, group: Sequence[Comparison]) -> None:
    """One metric: a dot and a whisker a control, zero in view; differences far beyond the others at the edge."""
    unit = 100 if is_share(metric) else 1
    reach = _far_beyond([unit * (comparison.difference.value or 0.0) for comparison in group])
    for place, comparison in enumerate(group):
        colour, found = _VERDICT_COLOURS[comparison.verdict], comparison.difference
        value = unit * (found.value or 0.0)
        if abs(value) > reach:
            side = 1 if value > 0 else -1
            axes.plot(side * reach, place, ">" if side > 0 else "<", color=colour, markersize=6)
            text = f"{value:+.2f}".replace("-", "−")
            axes.annotate(
                text, (side * reach, place), (-7 * side, 0), textcoords="offset points",
                ha="right" if side > 0 else "left", va="center", fontsize=8,
            )  # fmt: skip
            continue
        if found.low is not None and found.high is not None:
            axes.plot([unit * found.low, unit * found.high], [place, place], color=colour, linewidth=1.8)
        is_open = comparison.verdict == "no difference shown"
        axes.plot(
            value, place, "o", color=colour, markersize=5.5, markerfacecolor="white" if is_open else colour
        )
    axes.axvline(0, color="#3a3a3a", linewidth=0.9, zorder=0)
    methods = {comparison.method for comparison in group}
    names = [c.against if len(methods) == 1 else f"{c.method} − {c.against}" for c in group]
    axes.set_yticks(range(len(group)), [short_name(name) for name in names])
    axes.set_ylim(len(group) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_title(metric_label(metric), loc="left", fontsize=9, fontweight="bold")
    better = "← better for the method" if group[0].is_better_lower else "better for the method →"
    axes.set_xlabel(f"{'points; ' if is_share(metric) else ''}{better}", fontsize=8)
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=6)
    axes.grid(axis="x")


def _far_beyond(values: Sequence[float]) -> float:
    """A difference greater than this is drawn at the edge: it would make all others look like none."""
    sizes = sorted(map(abs, values))
    greatest_near = MOST_TIMES_MIDDLE * sizes[(len(sizes) - 1) // 2]
    return (
        max((size for size in sizes if size <= greatest_near), default=sizes[-1])
        if greatest_near
        else sizes[-1]
    )
