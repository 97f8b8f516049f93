"""Charts of a fuse run: bits per byte of each row, who taught what, and how well the tokens fit together."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transfuse.report.fuse_parts import ChosenShares, Pair
from transfuse.report.fuse_verdict import CONTROL
from transfuse.report.load import MetricValue, Report
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
from transfuse.report.wording import AVERAGE_BITS, metric_names, visible_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_PANEL_COLUMNS = 2
UNTAUGHT = "no source"
LEAST_LABELLED = 0.07
"""Share below which a bar has no room for its number."""
_UNTAUGHT_COLOUR = "#dedede"
_PALETTE = (*COLOURS[1:], *MORE_COLOURS)
_LOOKS = {
    "target": (COLOURS[0], MARKERS[0], True),
    "source": (COLOURS[5], MARKERS[1], True),
    "clm": (COLOURS[2], MARKERS[2], True),
    "fused": (COLOURS[1], MARKERS[0], True),
    "distilled": (COLOURS[3], MARKERS[3], True),
    "pairwise": (COLOURS[1], MARKERS[0], False),
    "ensemble": (COLOURS[4], MARKERS[4], True),
    "merged": (COLOURS[4], MARKERS[4], False),
}
"""Colour, marker and fill of each row, by its name up to the slash."""
_ALWAYS_INSIDE = ("target", "clm", "fused")
"""Rows that are never drawn at the edge, however far they are from the rest."""
_COVERAGE = {
    "one_to_one_share": ("one to one", COLOURS[0]),
    "taught_share": ("taught", COLOURS[1]),
    "digit_share": ("taught, of tokens with digits", COLOURS[2]),
}


def texts_chart(report: Report) -> str:
    """Bits per byte of every row with 95 % intervals, a panel a text, the average last; CLM as an upright line.

    Args:
        report: any report.

    Returns:
        An `<svg>` element; empty where no row has bits per byte.
    """
    metrics = [metric for metric in metric_names(report) if metric.partition("/")[0] == "bits_per_byte"]
    panels = {
        metric: {r.name: r.metrics[metric] for r in report.rows if is_drawable(r.metrics.get(metric))}
        for metric in metrics
    }
    panels = {metric: points for metric, points in panels.items() if points}
    names = [r.name for r in report.rows if any(r.name in points for points in panels.values())]
    if not panels:
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    n_columns = min(N_PANEL_COLUMNS, len(panels))
    n_lines = -(-len(panels) // n_columns)
    with mpl.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(hspace=0.06, wspace=0.06)
        figure = Figure(figsize=(WIDTH_IN, n_lines * (0.55 + 0.2 * len(names)) + 0.1), layout=layout)
        grid = figure.subplots(n_lines, n_columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (metric, points) in zip(grid.flat, panels.items(), strict=False):
            _panel(axes, metric, points, names)
        grid[0, 0].set_yticks(range(len(names)), [short_name(visible_text(name)) for name in names])
        grid[0, 0].set_ylim(len(names) - 0.5, -0.5)
        return svg_text(figure, "texts", "Bits per byte of each row on each text, with 95 % intervals")


def chosen_chart(chosen: Sequence[ChosenShares]) -> str:
    """Which source taught which share of each text's tokens, a bar a text, the untaught share last.

    Args:
        chosen: texts in order.

    Returns:
        An `<svg>` element; empty where there is no text.
    """
    names = list(dict.fromkeys(name for each in chosen for name in each.shares))
    if not chosen or not (names or any(each.untaught_share for each in chosen)):
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 0.9 + 0.32 * len(chosen)), layout="constrained")
        axes = figure.subplots()
        ends = [0.0] * len(chosen)
        for place, name in enumerate([*names, None]):
            widths = [
                _share(each.untaught_share if name is None else each.shares.get(name)) for each in chosen
            ]
            if name is None and not any(widths):
                continue
            colour = _UNTAUGHT_COLOUR if name is None else _PALETTE[place % len(_PALETTE)]
            hatch = "///" if name is not None and place >= len(_PALETTE) else None
            label = UNTAUGHT if name is None else short_name(visible_text(name))
            axes.barh(
                range(len(chosen)), widths, left=ends, height=0.66, color=colour, hatch=hatch, label=label,
                edgecolor="white", linewidth=0.8,
            )  # fmt: skip
            for line, (start, width) in enumerate(zip(ends, widths, strict=True)):
                if width >= LEAST_LABELLED:
                    ink = "#1c1d1f" if name is None else "white"
                    axes.text(
                        start + width / 2, line, f"{100 * width:.0f} %", ha="center", va="center",
                        color=ink, fontsize=8, fontweight="bold",
                    )  # fmt: skip
            ends = [start + width for start, width in zip(ends, widths, strict=True)]
        axes.set_yticks(range(len(chosen)), [short_name(visible_text(each.text)) for each in chosen])
        axes.set_ylim(len(chosen) - 0.5, -0.5)
        _share_axis(axes, "target tokens")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        return svg_text(figure, "chosen", "Which source taught which share of each text's tokens")


def coverage_chart(pairs: Sequence[Pair]) -> str:
    """Of the target's tokens, how many each source meets one to one and can teach, and how many with digits.

    Args:
        pairs: in the order of the sources.

    Returns:
        An `<svg>` element; empty where no pair has a share.
    """
    shown = [
        (pair.source, {field: _share(getattr(pair.coverage, field), missing=math.nan) for field in _COVERAGE})
        for pair in pairs
    ]
    shown = [(name, shares) for name, shares in shown if any(map(math.isfinite, shares.values()))]
    if not shown:
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    height = 0.8 / len(_COVERAGE)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 0.9 + 0.56 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for place, (field, (label, colour)) in enumerate(_COVERAGE.items()):
            lines = [line + (place - (len(_COVERAGE) - 1) / 2) * height for line in range(len(shown))]
            widths = [shares[field] for _, shares in shown]
            axes.barh(lines, widths, height=height * 0.88, color=colour, label=label)
            for line, width in zip(lines, widths, strict=True):
                text = f"{100 * width:.1f} %" if math.isfinite(width) else "not measured"
                start = width if math.isfinite(width) else 0.0
                axes.text(start + 0.01, line, text, va="center", fontsize=7.5)
        axes.set_yticks(range(len(shown)), [short_name(visible_text(name)) for name, _ in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        _share_axis(axes, "target tokens", room=0.14)
        axes.grid(axis="x")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        return svg_text(figure, "pairs", "How many of the target's tokens each source can teach")


def _share(share: float | None, missing: float = 0.0) -> float:
    """A share inside 0..1, whatever the report says."""
    return missing if share is None or not math.isfinite(share) else min(max(share, 0.0), 1.0)


def _share_axis(axes: "Axes", of_what: str, room: float = 0.0) -> None:
    """0 to 100 %, with room at the right for numbers behind the bars."""
    axes.set_xlim(0, 1 + room)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    axes.set_xticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
    axes.set_xlabel(f"share of the {of_what}", fontsize=8)
    axes.tick_params(axis="y", length=0)


def _panel(axes: "Axes", metric: str, points: dict[str, MetricValue], names: Sequence[str]) -> None:
    """One text: a dot and a whisker a row; values far above the rest at the edge, with their number."""
    values = {name: estimate.value or 0.0 for name, estimate in points.items()}
    always = [values[name] for name in _ALWAYS_INSIDE if name in values]
    top = max(top_of_interest(list(values.values())), *always, -math.inf)
    near = [points[name] for name, value in values.items() if value <= top]
    ends = [end for each in near for end in (each.value, each.low, each.high) if end is not None]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 0.01
    axes.set_xlim(low - margin, high + margin)
    if CONTROL in values:
        axes.axvline(values[CONTROL], color=COLOURS[2], linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    for name, value in values.items():
        line = names.index(name)
        colour, marker, is_filled = _LOOKS.get(name.partition("/")[0], (MORE_COLOURS[1], MARKERS[5], True))
        if value > top:
            axes.plot(high, line, ">", color=colour, markersize=6, clip_on=False)
            axes.text(high - margin, line, f"{value:.2f}", ha="right", va="center", fontsize=8)
            continue
        estimate = points[name]
        if estimate.low is not None and estimate.high is not None:
            axes.plot([estimate.low, estimate.high], [line, line], color=colour, linewidth=1.5)
        fill = colour if is_filled else "white"
        axes.plot(value, line, marker, color=colour, markerfacecolor=fill, markersize=5.5, clip_on=False)
    title = "average" if metric == AVERAGE_BITS else metric.partition("/")[2] or "bits per byte"
    axes.set_title(short_name(visible_text(title)), loc="left", fontsize=9, fontweight="bold")
    axes.locator_params(axis="x", nbins=4)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
