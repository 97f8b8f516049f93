"""Draw the results of benchmarks/scaling.py: gain by training tokens, and questions per fact.

    python benchmarks/scaling_plot.py DATA RESULTS OUT.svg [--document super-bowl-2023]

Upper panels: gold answers contained in the answer; middle: negative log-likelihood of the gold answers; each on the
fact-based and on the token-based evaluation questions, over the question and answer tokens of the training set. Dots
are seeds, lines their means, the dashed line is the untouched model. Lowest: training questions that carry each fact,
by similarity (MiniLM, extra `embeddings`), the most first.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scaling import BASES, Document, training_sets

from transfuse.inject.coverage import coverage
from transfuse.io.chat import prompt_format
from transfuse.io.models import load_tokenizer
from transfuse.knowledge.embeddings import load_embedder

COLOURS = {"fact": "#0072b2", "token": "#d55e00"}


def curve(axes: Axes, results: list[dict[str, Any]], basis: str, metric: str) -> None:
    """One panel: both kinds of training set on one evaluation set."""
    for kind, colour in COLOURS.items():
        points: dict[int, list[float]] = defaultdict(list)
        for result in results:
            if result["set"].split("-")[0] == kind:
                points[result["qa_tokens"]].append(value(result[basis], metric))
        tokens = sorted(points)
        axes.plot(tokens, [mean(points[n]) for n in tokens], color=colour, label=f"{kind}-based training")
        for n in tokens:
            axes.plot([n] * len(points[n]), points[n], "o", color=colour, markersize=3, alpha=0.6)
    base = next((value(r[basis], metric) for r in results if r["set"] == "base"), None)
    if base is not None:
        axes.axhline(base, color="#4d4d4d", linestyle="--", linewidth=1, label="untouched model")
    axes.set_xscale("log")
    axes.set_xticks([1000, 2000, 5000, 10000], ["1k", "2k", "5k", "10k"])
    axes.minorticks_off()
    axes.grid(color="#e4e4e4")


def value(measured: dict[str, Any], metric: str) -> float:
    """A share in per cent, or nats per gold token."""
    return measured["gold_nats_per_token"] if metric == "nats" else 100 * measured["metrics"][metric]["value"]


def questions_per_fact(axes: Axes, document: Document) -> None:
    """How many training questions carry each fact."""
    prompts = prompt_format(load_tokenizer("smollm2-135m"))
    embed = load_embedder("minilm-l6-v2").embed
    sets = training_sets(document, prompts)
    wanted = {"fact-1": "#9ecae1", "fact-10": COLOURS["fact"], list(sets)[-2]: COLOURS["token"]}
    for name, colour in wanted.items():
        found = coverage(document.facts, sets[name], embed=embed)
        counts = sorted((fact.n_by_similarity or 0 for fact in found.facts), reverse=True)
        label = (
            f"{name.replace('token-5', 'token, all')}: {sum(n > 0 for n in counts)} of {len(counts)} facts"
        )
        axes.step(range(len(counts)), counts, where="mid", color=colour, label=label)
    axes.set_ylabel("questions that carry it")
    axes.set_xlabel("facts, most questions first")
    axes.legend(frameon=False)
    axes.grid(color="#e4e4e4")


def main() -> None:
    """Draw one document's results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--document", default="super-bowl-2023")
    arguments = parser.parse_args()
    results = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(arguments.results.glob(f"{arguments.document}.*.json"))
    ]
    with mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "transfuse",
            "font.size": 8,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        figure = Figure(figsize=(7, 7.5), layout="constrained")
        grid = figure.add_gridspec(3, 2)
        for column, basis in enumerate(BASES):
            for row, (metric, label) in enumerate(
                [("contains", "gold contained, %"), ("nats", "nats a gold token")]
            ):
                axes = figure.add_subplot(grid[row, column])
                curve(axes, results, basis, metric)
                axes.set_ylabel(label)
                if row == 0:
                    axes.set_title(f"{basis}-based evaluation questions")
                    axes.set_ylim(bottom=0)
                else:
                    axes.set_xlabel("question and answer tokens trained on")
                if row == column == 0:
                    axes.legend(frameon=False)
        questions_per_fact(figure.add_subplot(grid[2, :]), Document(arguments.data / arguments.document))
        figure.savefig(arguments.out, metadata={"Date": None} if arguments.out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
