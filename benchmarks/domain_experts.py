"""Table 7 of FuseLLM in miniature: three domain experts of one base, then ensemble, merged weights, and fusion.

    python benchmarks/domain_experts.py --texts DATA/text --out runs/experts
    python benchmarks/domain_experts.py --out runs/experts --table > table.md
    python benchmarks/domain_experts.py --out runs/experts --plot docs/fusion.svg

Each expert is the base, all its weights trained on the training texts of one domain. The experts are the sources of a
`transfuse fuse` run whose target is the base and whose texts are those of all domains; beside it stand the same
training without fusion, the experts' averaged probabilities and their merged weights. All rows are measured on the same
held-out pieces. A killed run goes on where it stopped.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from transfuse.evaluate.bits_per_byte import load_texts
from transfuse.fuse.pieces import cut_texts
from transfuse.io.chat import prompt_format
from transfuse.io.models import load_model, save_model
from transfuse.recipes.fuse import run_fuse
from transfuse.recipes.fuse_schema import FuseRecipe
from transfuse.recipes.schema import make_recipe
from transfuse.report import write_page
from transfuse.train.batches import TrainingRow
from transfuse.train.loop import train
from transfuse.train.settings import TrainSettings

DOMAINS = ("wiki", "code", "math")
ROW_NAMES = {
    "target": "base",
    "ensemble": "ensemble of the experts",
    "merged/linear": "weights averaged",
    "clm": "trained on all texts (CLM)",
    "fused": "fused",
}


def train_expert(options: argparse.Namespace, domain: str) -> Path:
    """The base, trained on one domain; kept where it is there already."""
    folder = options.out / "experts" / f"{domain}-expert"
    if (folder / "config.json").is_file():
        return folder
    loaded = load_model(options.base, precision=options.precision, trainable=True)
    prompts = prompt_format(loaded.tokenizer)
    texts = load_texts(options.texts / f"{domain}.train.jsonl")
    pieces = cut_texts(texts, [loaded.tokenizer], options.max_length)
    ids = [prompts.encode_text(piece.text) for piece in pieces]
    rows = [TrainingRow(each, 1) for each in ids if len(each) > 1]
    settings = TrainSettings(
        method="full",
        learning_rate=options.expert_rate,
        n_epochs=options.expert_epochs,
        batch_rows=options.batch_rows,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        max_tokens_per_pass=options.tokens_per_pass,
    )
    torch.manual_seed(options.seed)
    summary = train(
        loaded.model,
        rows,
        settings,
        seed=options.seed,
        compute_dtype=loaded.precision,
        pad_id=prompts.pad_id,
        folder=options.out / "experts" / f"{domain}-training",
    )
    print(f"{domain} expert: {summary.n_tokens:,} tokens in {summary.seconds:.0f} s", flush=True)
    save_model(loaded.model, loaded.tokenizer, folder)
    return folder


def recipe_of(options: argparse.Namespace, experts: list[Path]) -> FuseRecipe:
    """The fusion of the experts."""
    tree: dict[str, Any] = {
        "kind": "fuse",
        "target": options.base,
        "sources": [str(expert.resolve()) for expert in experts],
        "seed": options.seed,
        "precision": options.precision,
        "texts": {name: str((options.texts / f"{name}.train.jsonl").resolve()) for name in DOMAINS},
        "max_length_tokens": options.max_length,
        "controls": ["clm", "ensemble", "merged"],
        "n_seeds": options.n_seeds,
        "fusion": {"clm_weight": options.clm_weight, "rule": options.rule},
        "train": {
            "learning_rate": options.rate,
            "batch_rows": options.batch_rows,
            "n_epochs": options.epochs,
            "max_tokens_per_pass": options.tokens_per_pass,
        },
        "evaluate": {
            "texts": {name: str((options.texts / f"{name}.eval.jsonl").resolve()) for name in DOMAINS}
        },
    }
    recipe = make_recipe(tree, options.set or [], where="domain experts")
    assert isinstance(recipe, FuseRecipe)
    return recipe


def rows_of(folder: Path) -> list[tuple[str, dict[str, dict[str, float]]]]:
    """Rows of the report in the order of the table, with the names that people read."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row["metrics"] for row in report["rows"]}
    names = ["target", *(name for name in rows if name.startswith("source/"))]
    names += [name for name in ("ensemble", "merged/linear", "clm", "fused") if name in rows]
    return [
        (ROW_NAMES.get(name, name.removeprefix("source/").replace("-", " ")), rows[name]) for name in names
    ]


def table(folder: Path) -> str:
    """Bits per byte as Markdown, and the fused row against every other."""
    metrics = [f"bits_per_byte/{name}" for name in (*DOMAINS, "average")]
    lines = ["| | " + " | ".join((*DOMAINS, "average")) + " |", "|---" * 5 + "|"]
    for name, values in rows_of(folder):
        cells = [
            f"{v['value']:.4f} [{v['low']:.4f}, {v['high']:.4f}]"
            for v in (values[metric] for metric in metrics)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    lines += ["", "| fused minus | " + " | ".join((*DOMAINS, "average")) + " |", "|---" * 5 + "|"]
    for against in dict.fromkeys(each["against"] for each in report["comparisons"]):
        found = {c["metric"]: c["difference"] for c in report["comparisons"] if c["against"] == against}
        cells = [
            f"{v['value']:+.4f} [{v['low']:+.4f}, {v['high']:+.4f}]"
            for v in (found[metric] for metric in metrics)
        ]
        lines.append(f"| {ROW_NAMES.get(against, against)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(folder: Path, path: Path) -> None:
    """One panel a domain and one for the average: a dot and its interval for each row."""
    rows = rows_of(folder)
    panels = (*DOMAINS, "average")
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 0.35 * len(rows) + 1.3), sharey=True)
    for axis, domain in zip(axes, panels, strict=True):
        for place, (name, values) in enumerate(reversed(rows)):
            found = values[f"bits_per_byte/{domain}"]
            colour = "#c2410c" if name == "fused" else "#334155"
            axis.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=1.5)
            axis.plot(found["value"], place, "o", color=colour, markersize=5)
        axis.set_title(domain, fontsize=10)
        axis.grid(axis="x", color="#e2e8f0")
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(labelsize=8, left=False)
    axes[0].set_yticks(range(len(rows)), [name for name, _ in reversed(rows)], fontsize=9)
    figure.supxlabel(
        "bits per byte of held-out text (less is better), with 95 % intervals over texts", fontsize=9
    )
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Train, fuse, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-rows", type=int, default=16)
    parser.add_argument("--tokens-per-pass", type=int)
    parser.add_argument("--expert-rate", type=float, default=5e-5)
    parser.add_argument("--expert-epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=3e-5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rule", default="fair-min-ce")
    parser.add_argument("--clm-weight", type=float, default=0.9)
    parser.add_argument("--n-seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--run", default="fusion", help="Folder of the fusion under --out; one a setting.")
    parser.add_argument("--set", nargs="*")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    folder = options.out / options.run
    if not options.table and options.plot is None:
        experts = [train_expert(options, domain) for domain in DOMAINS]
        run_fuse(recipe_of(options, experts), folder, overwrite=False, command="benchmarks/domain_experts.py")
        write_page(folder)
    if options.plot is not None:
        plot(folder, options.plot)
    print(table(folder))


if __name__ == "__main__":
    main()
