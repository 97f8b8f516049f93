"""Charts of what was taken out of the teacher: sensitivity, chosen blocks, and how much they hold."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transfuse.report.plot_style import COLOURS, STYLE, WIDTH_IN, short_name, svg_text
from transfuse.report.transfer_parts import BlockSummary, LayerSummary, ModuleScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHOSEN, PASSED_OVER = COLOURS[2], "#b9b9b9"
N_SHADES = 12
"""Shades of the heat map; each is one path, however many cells have it."""
N_PANEL_COLUMNS = 3
LEAST_ASPECT, MOST_ASPECT = 0.45, 1.7
"""Height by width of a drawn matrix; longer ones are squeezed, so that all stay readable."""


def sensitivity_chart(layers: LayerSummary | None, modules: Sequence[ModuleScores]) -> str:
    """Sensitivity of every teacher layer, and below it that of every role in every layer.

    Args:
        layers: the teacher's layers; None leaves their bars out.
        modules: roles; those without one score for each layer (embedding, head) are not drawn.

    Returns:
        An `<svg>` element; empty where no layer has a score.
    """
    totals = _finite(layers.scores if layers else [])
    chosen = sorted({layer for layer in (layers.chosen if layers else []) if layer < len(totals)})
    n_layers = len(totals) or max((len(module.scores) for module in modules), default=0)
    rows = {m.name: _finite(m.scores) for m in modules if len(m.scores) == n_layers and n_layers > 1}
    if not any(totals) and not any(any(scores) for scores in rows.values()):
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    heights = [1.25] * bool(totals) + [0.1 + 0.2 * len(rows)] * bool(rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 0.6 + sum(heights)), layout="constrained")
        grid = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
        if totals:
            colours = [CHOSEN if layer in chosen else PASSED_OVER for layer in range(n_layers)]
            grid[0].bar(range(n_layers), totals, width=0.8, color=colours)
            grid[0].set_ylabel("sensitivity\nof a layer")
            grid[0].ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
            grid[0].locator_params(axis="y", nbins=3)
            grid[0].grid(axis="y")
        if rows:
            _heat_map(grid[-1], rows)
            grid[-1].plot(
                chosen, [-0.75] * len(chosen), "v", color=CHOSEN, markersize=3.5, clip_on=False, zorder=3
            )
        grid[-1].set_xlim(-0.7, n_layers - 0.3)
        grid[-1].xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
        grid[-1].set_xlabel("layer of the teacher")
        return svg_text(
            figure, "sensitivity", "Sensitivity of each teacher layer and role, chosen layers marked"
        )


def blocks_chart(blocks: Sequence[BlockSummary]) -> str:
    """Where the chosen blocks lie: a panel a role, the teacher's matrix, an outline a layer.

    Args:
        blocks: in order of depth; those that are no contiguous block are not drawn.

    Returns:
        An `<svg>` element; empty where there is no contiguous block.
    """
    panels: dict[str, list[BlockSummary]] = {}
    for block in blocks:
        if block.first_row is not None and block.first_column is not None:
            panels.setdefault(block.role, []).append(block)
    if not panels:
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = list(panels.items())
    lines = [shown[i : i + N_PANEL_COLUMNS] for i in range(0, len(shown), N_PANEL_COLUMNS)]
    heights = [max(_aspect(group[0].teacher_shape) for _, group in line) for line in lines]
    width = WIDTH_IN / N_PANEL_COLUMNS
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(WIDTH_IN, sum(width * 0.72 * h + 0.55 for h in heights)), layout="constrained"
        )
        grid = figure.subplots(len(lines), N_PANEL_COLUMNS, squeeze=False, height_ratios=heights)
        for axes_line, line in zip(grid, lines, strict=True):
            for axes in axes_line[len(line) :]:
                axes.set_axis_off()
            for axes, (role, group) in zip(axes_line, line, strict=False):
                _matrix(axes, role, group)
        return svg_text(figure, "blocks", "Place of each chosen block inside the teacher's matrix, by role")


def shares_chart(blocks: Sequence[BlockSummary]) -> str:
    """Sensitivity inside the blocks against their share of the entries, and what the low rank keeps, by role.

    Args:
        blocks: any; those without either number are not drawn.

    Returns:
        An `<svg>` element; empty where no block has a number.
    """
    roles = list(dict.fromkeys(b.role for b in blocks if b.score_share is not None or b.energy is not None))
    columns = {
        "sensitivity inside the block": [
            (b.role, b.score_share) for b in blocks if b.score_share is not None
        ],
        "squared norm kept by the rank": [(b.role, b.energy) for b in blocks if b.energy is not None],
    }
    columns = {title: points for title, points in columns.items() if points}
    if not columns:
        return ""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(wspace=0.06)
        figure = Figure(figsize=(WIDTH_IN, 0.75 + 0.22 * len(roles)), layout=layout)
        grid = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
        for axes, colour, (title, points) in zip(
            grid, (COLOURS[1], COLOURS[3]), columns.items(), strict=False
        ):
            places = [roles.index(role) for role, _ in points]
            shares = [100 * share for _, share in points]
            axes.plot(shares, places, "o", color=colour, alpha=0.45, markersize=5, markeredgewidth=0)
            if title.startswith("sensitivity"):
                chances = sorted(
                    {(100 * b.area_share, roles.index(b.role)) for b in blocks if b.role in roles}
                )
                axes.plot(
                    *zip(*chances, strict=True), "|", color="#1c1d1f", markersize=10, markeredgewidth=1.6
                )
            axes.set_title(title, loc="left", fontsize=9)
            axes.set_xlim(-3, 103)
            axes.set_xticks([0, 50, 100], ["0 %", "50 %", "100 %"])
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
        grid[0].set_yticks(range(len(roles)), [short_name(role) for role in roles])
        grid[0].set_ylim(len(roles) - 0.5, -0.5)
        return svg_text(figure, "shares", "Sensitivity inside the blocks, and squared norm kept, by role")


def _finite(scores: Sequence[float]) -> list[float]:
    return [score if math.isfinite(score) else 0.0 for score in scores]


def _heat_map(axes: "Axes", rows: dict[str, list[float]]) -> None:
    """A row a role, each shaded by its own greatest score; at the right its share of the whole."""
    from matplotlib import colormaps
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path
    from matplotlib.transforms import Affine2D

    unit = Path.unit_rectangle()
    cells: dict[int, list[tuple[int, int]]] = {}
    for place, scores in enumerate(rows.values()):
        greatest = max(scores) or 1.0
        for layer, score in enumerate(scores):
            cells.setdefault(round((N_SHADES - 1) * max(score, 0.0) / greatest), []).append((layer, place))
    for shade, found in sorted(cells.items()):
        squares = [unit.transformed(Affine2D().translate(x - 0.5, y - 0.5)) for x, y in found]
        path = Path.make_compound_path(*squares)
        colour = colormaps["Blues"](shade / (N_SHADES - 1))
        axes.add_patch(PathPatch(path, facecolor=colour, edgecolor="white", linewidth=0.4))
    whole = sum(map(sum, rows.values())) or 1.0
    for place, scores in enumerate(rows.values()):
        axes.text(1.015, place, f"{100 * sum(scores) / whole:.0f} %", va="center", fontsize=8,
                  transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set_yticks(range(len(rows)), [short_name(role) for role in rows])
    axes.set_ylim(len(rows) - 0.5, -1.1)
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)


def _aspect(shape: tuple[int, int]) -> float:
    return min(max(shape[0] / max(shape[1], 1), LEAST_ASPECT), MOST_ASPECT)


def _matrix(axes: "Axes", role: str, blocks: Sequence[BlockSummary]) -> None:
    """The teacher's matrix of one role with an outline a layer, from light (first) to dark (last)."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    n_rows, n_columns = blocks[0].teacher_shape
    shades = colormaps["viridis_r"]
    fill = min(0.25, 1.2 / len(blocks))
    for place, block in enumerate(blocks):
        colour = shades(0.15 + 0.85 * place / max(len(blocks) - 1, 1))
        corner = (block.first_column or 0, block.first_row or 0)
        height, width = block.student_shape
        axes.add_patch(Rectangle(corner, width, height, facecolor=colour, alpha=fill, linewidth=0))
        axes.add_patch(
            Rectangle(corner, width, height, fill=False, edgecolor=colour, alpha=0.85, linewidth=0.9)
        )
    axes.set_xlim(0, n_columns)
    axes.set_ylim(n_rows, 0)
    axes.set_box_aspect(_aspect((n_rows, n_columns)))
    axes.set_anchor("N")
    axes.set_title(short_name(role), loc="left", fontsize=9)
    axes.set_xticks([0, n_columns], ["0", f"{n_columns:,}"], fontsize=7)
    axes.set_yticks([0, n_rows], ["0", f"{n_rows:,}"], fontsize=7)
    axes.spines[:].set_visible(True)
