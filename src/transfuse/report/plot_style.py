"""What all charts of a report share: colours, type, and how a figure becomes text of the page."""

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transfuse.report.parts import MetricValue

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN = 5.0
COLOURS = ("#4d4d4d", "#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b")
"""Apart for colour-blind readers too (after Okabe and Ito), and dark enough on white."""
MORE_COLOURS = ("#2f9ed8", "#882255", "#1f8a7a", "#7d7d22")
"""Where there are more things than `COLOURS`; less far apart."""
MARKERS = ("o", "s", "D", "^", "v", "P")
MOST_NAME_CHARACTERS = 28
"""Of a name beside a chart; a longer one would leave no room for the chart."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "transfuse",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8a8a",
    "axes.axisbelow": True,
    "xtick.color": "#3a3a3a",
    "ytick.color": "#3a3a3a",
    "grid.color": "#e4e4e4",
}


def is_drawable(estimate: MetricValue | None) -> bool:
    """Whether there is a finite value to draw."""
    return estimate is not None and estimate.value is not None and math.isfinite(estimate.value)


def short_name(name: str) -> str:
    """A name as it stands beside a chart; the tables have it whole."""
    return name if len(name) <= MOST_NAME_CHARACTERS else f"{name[: MOST_NAME_CHARACTERS - 1]}…"


def top_of_interest(values: Sequence[float]) -> float:
    """Above this a value is drawn at the edge: one gone astray must not flatten all others."""
    ordered = sorted(values)
    best, middle = ordered[0], ordered[len(ordered) // 2]
    return max(best + 4 * (middle - best), middle * 1.02)


def svg_text(figure: "Figure", name: str, label: str) -> str:
    """A figure as one `<svg>` element whose ids no other figure of the page uses."""
    text = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with warnings.catch_warnings():  # the reader's fonts draw the text, not matplotlib's
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(text, format="svg", metadata=metadata)
    svg = text.getvalue()
    svg = re.sub(r'\bid="', f'id="{name}-', svg[svg.index("<svg") :])
    svg = re.sub(r"(href=\"|url\()#", rf"\1#{name}-", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
