"""Charts of a report as inline SVG: the same report always gives the same text."""

import math
from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

from transfuse.report.load import CurvePoint, MetricValue, Report, TriedK
from transfuse.report.plot_style import COLOURS, MARKERS, STYLE, WIDTH_IN, is_drawable, short_name, svg_text
from transfuse.report.wording import is_share, metric_label, metric_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_N_SEPARATE_BARS = 200
"""Up to this many bars there is room for gaps between them."""


def metrics_chart(report: Report, metrics: Sequence[str] | None = None) -> str:
    """Each metric as dots with 95 % whiskers, one line per row of the table.

    Args:
        report: any report.
        metrics: those to draw; None draws all.

    Returns:
        An `<svg>` element; empty where no row has a value.
    """
    rows = {row.name: row.metrics for row in report.rows}
    panels = {
        metric: {
            name: measured[metric] for name, measured in rows.items() if is_drawable(measured.get(metric))
        }
        for metric in (metric_names(report) if metrics is None else metrics)
    }
    panels = {metric: points for metric, points in panels.items() if points}
    if not panels:
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    heights = [0.58 + 0.22 * len(points) for points in panels.values()]
    looks = _looks(list(rows))
    with mpl.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(hspace=0.08)
        figure = Figure(figsize=(WIDTH_IN, sum(heights) + 0.2), layout=layout)
        grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        for axes, (metric, points) in zip(grid[:, 0], panels.items(), strict=True):
            _dots(axes, metric, points, looks)
        return svg_text(figure, "metrics", "Each metric per row, with 95 % intervals")


def training_chart(curve: Sequence[CurvePoint]) -> str:
    """Training loss over the steps, with the learning rate below.

    Args:
        curve: logged steps in order.

    Returns:
        An `<svg>` element; empty with fewer than two steps.
    """
    points = [point for point in curve if math.isfinite(point.loss)]
    if len(points) < 2:
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    steps = [point.step for point in points]
    losses = [point.loss for point in points]
    rates = [(p.step, p.learning_rate) for p in points if p.learning_rate is not None]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.2 if rates else 2.5), layout="constrained")
        ratios = [3.4, 1] if rates else [1]
        grid = figure.subplots(len(ratios), 1, squeeze=False, sharex=True, height_ratios=ratios)
        loss_axes, last_axes = grid[0, 0], grid[-1, 0]
        loss_axes.plot(steps, losses, color=COLOURS[1], alpha=0.3, linewidth=0.8, label="each step")
        loss_axes.plot(steps, smoothed(losses), color=COLOURS[1], linewidth=1.8, label="moving mean")
        loss_axes.set_ylabel("loss (nats)")
        loss_axes.set_ylim(bottom=min(0.0, *losses))
        loss_axes.legend(frameon=False, loc="upper right")
        if rates:
            last_axes.plot(*zip(*rates, strict=True), color=COLOURS[0], linewidth=1.2)
            last_axes.set_ylabel("learning\nrate")
            last_axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
            last_axes.locator_params(axis="y", nbins=2)
            last_axes.set_ylim(bottom=0)
        last_axes.set_xlabel("step")
        for axes in grid[:, 0]:
            axes.grid(axis="y")
        label = "Training loss and learning rate over the steps" if rates else "Training loss over the steps"
        return svg_text(figure, "training", label)


def questions_per_fact_plot(by_answer: Sequence[int], by_similarity: Sequence[int] | None = None) -> str:
    """How many questions carry each fact, a bar a fact, each series sorted by itself.

    Args:
        by_answer: questions per fact, counted by answer match, in any order.
        by_similarity: the same counted by embedding similarity; None leaves it out.

    Returns:
        An `<svg>` element; empty where there is no fact.
    """
    counts = {"By answer match": by_answer, "By embedding similarity": by_similarity or ()}
    panels = {label: sorted(numbers, reverse=True) for label, numbers in counts.items() if len(numbers)}
    if not panels:
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 0.4 + 1.35 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True, sharey=True)
        for axes, colour, (label, numbers) in zip(grid[:, 0], COLOURS[1:], panels.items(), strict=False):
            if len(numbers) <= _N_SEPARATE_BARS:
                axes.bar(range(1, len(numbers) + 1), numbers, width=0.75, color=colour)
            else:
                steps = [(number, len(list(same))) for number, same in groupby(numbers)]
                edges = list(accumulate((n for _, n in steps), initial=0.5))
                axes.stairs([number for number, _ in steps], edges, fill=True, color=colour)
            axes.set_title(f"{label}: {_without_question(numbers)}", loc="left", fontsize=9)
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
            axes.set_ylim(0, max(1, *(max(numbers) for numbers in panels.values())) * 1.05)
            axes.grid(axis="y")
        grid[-1, 0].set_xlim(0.5, max(map(len, panels.values())) + 0.5)
        grid[-1, 0].xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        grid[-1, 0].set_xlabel("facts, most questions first")
        figure.supylabel("questions", fontsize=9)
        return svg_text(figure, "coverage", "Questions that carry each fact, most first")


def tuning_chart(tried: Sequence[TriedK]) -> str:
    """Mean F1 and retrieval recall of the tuning questions by the number of passages, with 95 % whiskers.

    Args:
        tried: numbers of passages, in order of size.

    Returns:
        An `<svg>` element; empty with fewer than two numbers to draw.
    """
    series = {
        "F1 of the answers": [(each.k, each.f1) for each in tried if is_drawable(each.f1)],
        "gold answer in a passage": [(each.k, each.recall) for each in tried if is_drawable(each.recall)],
    }
    if len(series["F1 of the answers"]) < 2:
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 2.5), layout="constrained")
        axes = figure.subplots()
        for place, (label, points) in enumerate(series.items(), start=1):
            look = {"color": COLOURS[place], "marker": MARKERS[place], "markersize": 5.5, "linewidth": 1.2}
            places = [k + 0.06 * (2 * place - 3) for k, _ in points]  # so that no whisker hides another
            axes.plot(places, [100 * (each.value or 0.0) for _, each in points], label=label, **look)
            for x, (_, each) in zip(places, points, strict=True):
                if each.low is not None and each.high is not None:
                    axes.plot([x, x], [100 * each.low, 100 * each.high], color=COLOURS[place], linewidth=1.5)
        axes.set_xticks([each.k for each in tried])
        axes.set_xlabel("passages before the question")
        axes.set_ylim(-2, 102)
        axes.set_yticks(range(0, 101, 20), [f"{tick} %" for tick in range(0, 101, 20)])
        axes.grid(axis="y")
        axes.legend(frameon=False, fontsize=8)
        return svg_text(figure, "tuning", "Scores of the tuning questions by number of passages")


def smoothed(values: Sequence[float]) -> list[float]:
    """Centred moving mean over a twentieth of the values, narrower near both ends.

    Args:
        values: any numbers.

    Returns:
        As many numbers; the first and last are unchanged, since the window shrinks to stay centred.
    """
    reach = max(1, len(values) // 40)
    means: list[float] = []
    for i in range(len(values)):
        near = min(reach, i, len(values) - 1 - i)
        window = values[i - near : i + near + 1]
        means.append(sum(window) / len(window))
    return means


def _without_question(numbers: Sequence[int]) -> str:
    n_without = sum(number == 0 for number in numbers)
    return f"{n_without:,} of {len(numbers):,} facts without a question"


def _looks(names: Sequence[str]) -> dict[str, tuple[str, str, bool]]:
    """Colour, marker and fill of each row; `adapter/kept-out` is as `adapter`, but hollow."""
    stems = list(dict.fromkeys(name.partition("/")[0] for name in names))
    looks: dict[str, tuple[str, str, bool]] = {}
    for name in names:
        stem, _, part = name.partition("/")
        place = stems.index(stem) % len(COLOURS)
        looks[name] = COLOURS[place], MARKERS[place], not part
    return looks


def _dots(
    axes: "Axes",
    metric: str,
    points: dict[str, MetricValue],
    looks: dict[str, tuple[str, str, bool]],
) -> None:
    """One metric: a dot and a whisker per row, the first row on top."""
    unit = 100 if is_share(metric) else 1
    for place, (name, estimate) in enumerate(points.items()):
        colour, marker, is_filled = looks[name]
        if estimate.low is not None and estimate.high is not None:
            axes.plot(
                [unit * estimate.low, unit * estimate.high], [place, place], color=colour, linewidth=1.5
            )
        fill = colour if is_filled else "white"
        value = unit * (estimate.value or 0.0)
        axes.plot(value, place, marker, color=colour, markerfacecolor=fill, markersize=5.5, clip_on=False)
    axes.set_yticks(range(len(points)), [short_name(name) for name in points])
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_title(metric_label(metric), loc="left", fontsize=9, fontweight="bold")
    axes.grid(axis="x")
    if is_share(metric):
        axes.set_xlim(-2, 102)
        axes.set_xticks(range(0, 101, 20), [f"{tick} %" for tick in range(0, 101, 20)])
    else:
        axes.margins(x=0.08)
        axes.ticklabel_format(axis="x", useOffset=False)
