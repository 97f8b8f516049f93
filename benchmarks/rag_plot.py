"""Draw what benchmarks/injection.py measured: reading, retrieving and training, document by document.

    python benchmarks/rag_plot.py RUNS OUT.svg [--seed 17]

RUNS holds one run folder a document and seed. A bar is a row of its report, with its 95 % interval; upper panels: gold
answers contained in the answer, lower panels: F1, on eval questions about facts that were trained (left) and about
facts that were kept out of training (right).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROWS = {
    "base": ("base", "#bdbdbd"),
    "oracle": ("right section in view", "#7b5ea7"),
    "rag": ("RAG", "#0072b2"),
    "adapter": ("adapter", "#d55e00"),
    "adapter+rag": ("adapter + RAG", "#009e73"),
}
METRICS = {"contains": "gold contained, %", "f1": "F1, %"}
WIDTH = 0.16


def panel(axes: Axes, reports: dict[str, dict[str, Any]], metric: str, ending: str) -> None:
    """Bars of one metric, grouped by document."""
    for place, (row, (label, colour)) in enumerate(ROWS.items()):
        for number, report in enumerate(reports.values()):
            metrics = {each["name"]: each["metrics"] for each in report["rows"]}
            if row + ending not in metrics:
                continue
            found = metrics[row + ending][metric]
            value, low, high = (100 * found[name] for name in ("value", "low", "high"))
            axes.bar(
                number + (place - 2) * WIDTH,
                value,
                WIDTH,
                color=colour,
                yerr=[[value - low], [high - value]],
                error_kw={"elinewidth": 0.7, "capsize": 1.5},
                label=label if number == 0 else None,
            )
    axes.set_xticks(range(len(reports)), [name.replace("-", "\n", 1) for name in reports])
    axes.set_ylim(0, 40)
    axes.grid(axis="y", color="#e4e4e4")
    axes.set_axisbelow(True)


def main() -> None:
    """Draw one seed's runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=17)
    arguments = parser.parse_args()
    paths = sorted(arguments.runs.glob(f"*-{arguments.seed}/report.json"))
    reports = {
        path.parent.name.removesuffix(f"-{arguments.seed}"): json.loads(path.read_text(encoding="utf-8"))
        for path in paths
    }
    style = {"svg.fonttype": "none", "svg.hashsalt": "transfuse", "font.size": 8}
    with mpl.rc_context(style | {"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 5.5), layout="constrained")
        axes = figure.subplots(2, 2, sharey="row", width_ratios=[1, 1])
        for line, (metric, label) in enumerate(METRICS.items()):
            axes[line][0].set_ylabel(label)
            for column, ending in enumerate(("", "/kept-out")):
                panel(axes[line][column], reports, metric, ending)
        axes[0][0].set_title("facts that were trained, wordings that were not")
        axes[0][1].set_title("facts kept out of training (8 a document)")
        figure.legend(
            *axes[0][0].get_legend_handles_labels(), loc="outside upper center", frameon=False, ncols=5
        )
        figure.savefig(arguments.out, metadata={"Date": None} if arguments.out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
