"""Fact-based and token-based scaling on both evaluation sets: the shape of the paper's Figures 1, 3 and 4.

    python benchmarks/scaling.py DATA [--documents super-bowl-2023] [--seeds 17 18 19] [--out runs/scaling]

DATA is a folder with one folder a document, each holding document.md, facts.jsonl and qa.jsonl. For every
document, seed and training set the model is trained afresh and asked the evaluation questions of both bases, and
the questions of another document, which it can have learned only to answer in form. Nothing is kept out, as in the
paper. Each result is a JSON file, so a killed benchmark goes on where it stopped; `--table` prints what is there.

Training sets: fact-1, fact-5, fact-10, token-1, token-5, token-10, and fact-N with the N whose question and answer
tokens are nearest to those of token-10. A token set whose section runs out of questions is what there is; sets that
hold the same pairs are trained once. `--distil` adds prompt distillation on the questions of fact-10: along the model's
own answers with the section in view (distil-own-10), and along the answers of the file (distil-file-10).
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transfuse.evaluate.bits_per_byte import bits_per_byte, load_texts, text_losses
from transfuse.evaluate.questions import answer_estimates, ask_questions, estimate_json
from transfuse.generate.local import LocalGenerator
from transfuse.inject.knowledge import load_facts, load_pairs
from transfuse.inject.prompt_distillation import DistillationSettings, teacher_answers, teacher_rows
from transfuse.inject.records import RecordSettings, training_rows
from transfuse.inject.selection import Selection, select_pairs
from transfuse.io.chat import PromptFormat, prompt_format
from transfuse.io.documents import read_documents
from transfuse.io.files import write_json
from transfuse.io.models import LoadedModel, load_model
from transfuse.text.answers import score_answer
from transfuse.text.sections import split_sections
from transfuse.train.adapters import attach_lora
from transfuse.train.batches import TrainingRow, packed_passes
from transfuse.train.loop import train
from transfuse.train.objective import AnswerLoss, move_pass
from transfuse.train.settings import TrainSettings
from transfuse.types import Basis, QAPair, Section

BASES: tuple[Basis, ...] = ("fact", "token")


class Document:
    """One document's sections, facts and questions."""

    def __init__(self, folder: Path) -> None:
        self.name, self.folder = folder.name, folder
        documents, _ = read_documents(folder / "document.md")
        self.sections: list[Section] = split_sections(documents[0])[0]
        self.facts = load_facts(folder / "facts.jsonl")
        self.pairs = load_pairs(folder / "qa.jsonl", self.facts)

    def questions(self, basis: Basis) -> list[QAPair]:
        """Evaluation pairs of one basis."""
        return [pair for pair in self.pairs if pair.basis == basis and pair.split == "eval"]

    def select(self, basis: Basis, scale: int, prompts: PromptFormat) -> Selection:
        """Training pairs, those that stand in either evaluation set left out."""
        tokenizer = prompts.tokenizer

        def count(text: str) -> int:
            return len(tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]

        return select_pairs(
            self.pairs,
            basis=basis,
            scale=scale,
            kept_out_share=0,
            seed=0,
            section_tokens={section.title: count(section.text) for section in self.sections},
            count_tokens=count,
            where=str(self.folder),
        )


def qa_tokens(pairs: Sequence[QAPair], prompts: PromptFormat) -> int:
    """Question and answer tokens, which the paper counts."""
    texts = [text for pair in pairs for text in (pair.question, pair.answer)]
    return sum(len(prompts.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)


def training_sets(document: Document, prompts: PromptFormat) -> dict[str, list[QAPair]]:
    """Every training set by its name; one that equals a smaller one is left out."""
    sets = {
        f"{basis}-{scale}": document.select(basis, scale, prompts).train
        for basis in BASES
        for scale in (1, 5, 10)
    }
    wanted = qa_tokens(sets["token-10"], prompts)
    near = min(
        range(1, 11),
        key=lambda n: abs(qa_tokens(document.select("fact", n, prompts).train, prompts) - wanted),
    )
    sets.setdefault(f"fact-{near}", document.select("fact", near, prompts).train)
    seen: list[list[QAPair]] = []
    kept: dict[str, list[QAPair]] = {}
    for name, pairs in sets.items():
        if pairs not in seen:
            seen.append(pairs)
            kept[name] = pairs
    return kept


DISTILLED: dict[str, DistillationSettings] = {
    "distil-own-10": DistillationSettings(),
    "distil-file-10": DistillationSettings(answers="file"),
}


def distilled_rows(
    loaded: LoadedModel,
    prompts: PromptFormat,
    document: Document,
    pairs: Sequence[QAPair],
    settings: DistillationSettings,
    seed: int,
) -> tuple[list[TrainingRow], dict[str, Any]]:
    """Rows of prompt distillation, the teacher having the fact's section in view; and how right its answers are."""
    texts = {section.title: section.text for section in document.sections}
    sections = {fact.id: fact.section for fact in document.facts}
    contexts = {pair.id: texts[sections[pair.source]] for pair in pairs}
    started = time.monotonic()
    generator = LocalGenerator(loaded.model, prompts, loaded.precision)
    answers, dropped = teacher_answers(pairs, contexts, settings, generator, max_new_tokens=64, seed=seed)
    rows, lost = teacher_rows(
        loaded.model,
        prompts,
        pairs,
        contexts,
        answers,
        settings,
        compute_dtype=loaded.precision,
        max_length_tokens=None,
    )
    right = [
        score_answer(answers[pair.id], [pair.answer])["contains"] for pair in pairs if pair.id in answers
    ]
    told = {"seconds": time.monotonic() - started, "dropped": len(dropped) + len(lost)}
    return rows, told | {"answers_that_contain_the_gold": sum(right) / len(right)}


@torch.no_grad()
def gold_nats(
    model: torch.nn.Module, pairs: Sequence[QAPair], prompts: PromptFormat, dtype: torch.dtype
) -> list[tuple[float, int]]:
    """Negative log-likelihood of each gold answer, in nats, and its tokens."""
    objective = AnswerLoss(model, dtype).eval()
    rows, _ = training_rows(pairs, [], RecordSettings(), prompts, max_length_tokens=None, seed=0)
    device = next(model.parameters()).device
    return [
        (float(objective(**move_pass(packed_passes([row], 1 << 20)[0], device))), len(row.weights))
        for row in rows
    ]


def measure(
    model: torch.nn.Module,
    prompts: PromptFormat,
    dtype: torch.dtype,
    document: Document,
    other: Document | None,
    seed: int,
) -> dict[str, Any]:
    """Answers to both evaluation sets (and another document's), and bits per byte on generic text."""
    model.eval()
    generator = LocalGenerator(model, prompts, dtype)
    asked: dict[str, list[QAPair]] = {basis: document.questions(basis) for basis in BASES}
    if other is not None:
        asked["other document"] = other.questions("fact")
    measured: dict[str, Any] = {}
    for name, pairs in asked.items():
        records = ask_questions(pairs, generator)
        nats = gold_nats(model, pairs, prompts, dtype)
        measured[name] = {
            "metrics": estimate_json(answer_estimates(records, seed)),
            "gold_nats_per_token": sum(n for n, _ in nats) / sum(count for _, count in nats),
            "items": [
                {"source": r.source, "question": r.question, "gold": r.gold, "answer": r.answer, **r.scores}
                | {"gold_nats": n[0], "gold_tokens": n[1]}
                for r, n in zip(records, nats, strict=True)
            ],
        }
    losses = text_losses(model, prompts, load_texts(None), dtype)
    return measured | {"bits_per_byte": bits_per_byte(losses, seed)._asdict()}


def run_one(
    arguments: argparse.Namespace, document: Document, other: Document | None, name: str, seed: int
) -> None:
    """Train one set (none for `base`) and measure it, unless its file is there."""
    out = arguments.out / f"{document.name}.{name}.{seed}.json"
    if out.is_file():
        return
    loaded = load_model(arguments.model)
    prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
    result: dict[str, Any] = {"document": document.name, "set": name, "seed": seed}
    model: torch.nn.Module = loaded.model
    if name != "base":
        distilled = DISTILLED.get(name)
        pairs = training_sets(document, prompts)["fact-10" if distilled else name]
        settings = TrainSettings(checkpoint_s=600)
        if distilled:
            rows, result["teacher"] = distilled_rows(loaded, prompts, document, pairs, distilled, seed)
        else:
            rows, _ = training_rows(
                pairs, document.facts, RecordSettings(), prompts, max_length_tokens=None, seed=seed
            )
        torch.manual_seed(seed)
        model = attach_lora(loaded.model, settings.lora)
        summary = train(
            model,
            rows,
            settings,
            seed=seed,
            compute_dtype=loaded.precision,
            pad_id=prompts.pad_id,
            folder=arguments.out / "checkpoints" / out.stem,
        )
        result |= {"n_pairs": len(pairs), "qa_tokens": qa_tokens(pairs, prompts)}
        result |= {"seconds": summary.seconds, "loss": summary.curve[-1].loss}
    started = time.monotonic()
    result |= measure(model, prompts, loaded.precision, document, other, seed)
    write_json(out, result | {"measuring_s": time.monotonic() - started})
    print(out.stem, json.dumps({k: v for k, v in result.items() if k in ("n_pairs", "seconds")}), flush=True)


def table(folder: Path) -> str:
    """What is there, as a Markdown table: one line a document and training set, seeds averaged."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        cells.setdefault((result["document"], result["set"]), []).append(result)
    lines = [
        "| document | set | pairs | Q+A tokens | seeds | fact eval: contained % | F1 % | nats a token "
        "| token eval: contained % | F1 % | nats a token | bits per byte |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, kind), found in sorted(cells.items(), key=lambda cell: (cell[0][0], _rank(cell[0][1]))):
        row = [name, kind, str(found[0].get("n_pairs", "")), str(found[0].get("qa_tokens", ""))]
        row.append(", ".join(str(result["seed"]) for result in found))
        for basis in BASES:
            for metric in ("contains", "f1"):
                row.append(_spread([100 * r[basis]["metrics"][metric]["value"] for r in found], 1))
            row.append(_spread([r[basis]["gold_nats_per_token"] for r in found], 2))
        row.append(_spread([r["bits_per_byte"]["value"] for r in found], 3))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


COMPARED = (
    ("fact-5", "fact-1"),
    ("fact-10", "fact-5"),
    ("token-5", "token-1"),
    ("fact-4", "token-5"),
    ("fact-10", "token-5"),
    ("distil-file-10", "fact-10"),
    ("distil-own-1", "fact-1"),
)
"""Pairs of sets whose difference is told; on super-bowl-2023 `fact-4` has about as many tokens as `token-5`."""


def differences(folder: Path, document: str) -> str:
    """Paired differences between training sets, over the seeds that both have, with intervals over questions."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob(f"{document}.*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(result["set"], []).append(result)
    lines = [
        "| sets | eval | n | seeds | nats a token | F1, points | contained, points |",
        "|---|---|---|---|---|---|---|",
    ]
    for one, other in COMPARED:
        seeds = {r["seed"] for r in found.get(one, [])} & {r["seed"] for r in found.get(other, [])}
        for basis in BASES if seeds else ():
            cells: list[str] = []
            n_questions = 0
            for metric, unit in (("nats", 1), ("f1", 100), ("contains", 100)):
                ours, theirs = (
                    _by_question([r for r in found[name] if r["seed"] in seeds], basis, metric)
                    for name in (one, other)
                )
                change = np.array([unit * (ours[question] - theirs[question]) for question in ours])
                n_questions = len(change)
                drawn = np.random.default_rng(0).integers(0, n_questions, (10_000, n_questions))
                low, high = np.quantile(change[drawn].mean(axis=1), [0.025, 0.975])
                cells.append(f"{change.mean():+.2f} [{low:+.2f}, {high:+.2f}]")
            told = ", ".join(map(str, sorted(seeds)))
            lines.append(f"| {one} - {other} | {basis} | {n_questions} | {told} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_question(results: Sequence[dict[str, Any]], basis: str, metric: str) -> dict[str, float]:
    """Each evaluation question's value, averaged over seeds."""
    values: dict[str, list[float]] = {}
    for result in results:
        for item in result[basis]["items"]:
            value = item["gold_nats"] / item["gold_tokens"] if metric == "nats" else item[metric]
            values.setdefault(item["question"], []).append(value)
    return {question: sum(each) / len(each) for question, each in values.items()}


def _rank(name: str) -> tuple[str, int]:
    kind, _, scale = name.partition("-")
    return kind, int(scale) if scale.isdigit() else 0


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean over the seeds, and their standard deviation."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--documents", nargs="+", default=["super-bowl-2023"])
    parser.add_argument("--other", default="womens-world-cup-2023", help="the document of the control")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--distil", action="store_true", help="run prompt distillation as well")
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        loaded = load_model(arguments.model)
        prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
        del loaded
        for name in arguments.documents:
            document = Document(arguments.data / name)
            other = Document(arguments.data / arguments.other) if name != arguments.other else None
            run_one(arguments, document, other, "base", arguments.seeds[0])
            for seed in arguments.seeds:
                for kind in [*training_sets(document, prompts), *(DISTILLED if arguments.distil else ())]:
                    # The control is asked of the largest sets only: that is where form is learned best.
                    control = other if kind in ("fact-10", "token-10", "token-5") else None
                    run_one(arguments, document, control, kind, seed)
    print(table(arguments.out))
    for name in arguments.documents:
        print(f"\n{name}\n{differences(arguments.out, name)}")


if __name__ == "__main__":
    main()
