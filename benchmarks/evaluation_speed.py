"""Seconds of our scoring engine against lm-eval's own `hf` model on the same items, side by side in one process.

    python benchmarks/evaluation_speed.py TASKS_FOLDER TEXTS.jsonl [--model smollm2-135m] [--rounds 3]

TASKS_FOLDER holds `gsm8k/test.jsonl` (`question`, `answer`), `gsm8k/train_1000.jsonl` and `mmlu/train_1000.jsonl`
(chat samples: `messages`, `category`); TEXTS.jsonl one `{"text"}` a line. Four tasks are made of them:

- `gsm8k, 8 shots`: greedy answers of at most 64 tokens behind eight fixed examples;
- `mmlu, 5 shots` and `mmlu, 0 shots`: the letter of four, behind five examples of the subject or none;
- `endings`: HellaSwag's form, which of four endings goes on with a text; the wrong ones are those of other texts.

Both engines run the same loaded model under the same limit of sequences a batch, one after the other and in turns. The
scores are compared too. What is printed last are medians over the rounds. Where others use the machine too, run it with
OMP_NUM_THREADS=1 and read the ratio of processor times.
"""

import argparse
import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerBase

from transfuse.evaluate.harness_model import TransfuseLM
from transfuse.io.hardware import hardware_text
from transfuse.io.jsonl import read_jsonl
from transfuse.io.models import load_model
from transfuse.io.precision import Precision

N_ENDINGS = 4


def instance(kind: str, *arguments: Any) -> Instance:
    """A request as a task of the harness makes it."""
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)  # type: ignore[arg-type]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [line.value for line in read_jsonl(path)]


def turns(row: dict[str, Any]) -> tuple[str, str]:
    """Question and answer of a chat sample."""
    return row["messages"][0]["content"], row["messages"][1]["content"]


def gsm8k(folder: Path, n_items: int, n_shots: int = 8) -> list[Instance]:
    """Sums to be worked out behind fixed examples."""
    shots = [
        f"{asked.split(chr(10) * 2)[-1]}\n{answer}\n\n"
        for asked, answer in map(turns, rows_of(folder / "gsm8k" / "train_1000.jsonl")[:n_shots])
    ]
    settings = {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "max_gen_toks": 64}
    rows = rows_of(folder / "gsm8k" / "test.jsonl")[:n_items]
    return [
        instance("generate_until", f"{''.join(shots)}Question: {row['question']}\nAnswer:", settings)
        for row in rows
    ]


def mmlu(folder: Path, n_items: int, n_shots: int, n_subjects: int = 2) -> list[Instance]:
    """Letters to be chosen, the examples of a subject fixed."""
    by_subject: dict[str, list[tuple[str, str]]] = {}
    for row in rows_of(folder / "mmlu" / "train_1000.jsonl"):
        by_subject.setdefault(row["category"], []).append(turns(row))
    subjects = sorted(by_subject, key=lambda name: (-len(by_subject[name]), name))[:n_subjects]
    requests = []
    for subject in subjects:
        header, _, _ = by_subject[subject][0][0].partition("\n\n")
        questions = [(asked.partition("\n\n")[2], answer[-1]) for asked, answer in by_subject[subject]]
        shots = "".join(f"{asked} {letter}\n\n" for asked, letter in questions[:n_shots])
        for asked, _ in questions[5 : 5 + n_items // n_subjects]:
            requests += [
                instance("loglikelihood", f"{header}\n\n{shots}{asked}", f" {letter}") for letter in "ABCD"
            ]
    return requests


def endings(texts: Path, n_items: int) -> list[Instance]:
    """Texts cut after 40 words, with the 20 words that go on and those of three other texts."""
    words = [row["text"].split() for row in rows_of(texts)]
    long = [each for each in words if len(each) >= 60][: n_items + N_ENDINGS]
    return [
        instance("loglikelihood", " ".join(long[n][:40]), " " + " ".join(long[n + other][40:60]))
        for n in range(n_items)
        for other in range(N_ENDINGS)
    ]


class Spent(NamedTuple):
    """What answering took."""

    wall_s: float
    cpu_s: float


def answered(lm: Any, requests: list[Instance]) -> tuple[list[Any], Spent]:
    """Answers and seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = getattr(lm, requests[0].request_type)(requests, disable_tqdm=True)
    return found, Spent(time.perf_counter() - wall, time.process_time() - cpu)


def difference(theirs: list[Any], ours: list[Any]) -> str:
    """How far the answers are apart."""
    if isinstance(theirs[0], str):
        return f"{sum(a == b for a, b in zip(theirs, ours, strict=True))} of {len(theirs)} answers equal"
    return f"log-probabilities differ by {max(abs(a[0] - b[0]) for a, b in zip(theirs, ours, strict=True)):.2g} at most"


def n_read(tokenizer: PreTrainedTokenizerBase, requests: list[Instance]) -> int:
    """Tokens of all contexts and continuations, each counted whole."""
    return sum(
        len(tokenizer.encode("".join(part for part in request.args if isinstance(part, str))))
        for request in requests
    )


def main() -> None:
    """Measure and print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16, help="sequences a batch, of both")
    parser.add_argument("--batch-tokens", type=int, default=32768, help="of ours")
    parser.add_argument("--items", type=int, default=12, help="of GSM8K; twice as many of the others")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    arguments = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    n_items: int = arguments.items
    tasks = {
        f"gsm8k, 8 shots, {n_items} items": gsm8k(arguments.tasks, n_items),
        f"mmlu, 5 shots, {2 * n_items} items": mmlu(arguments.tasks, 2 * n_items, 5),
        f"mmlu, 0 shots, {2 * n_items} items": mmlu(arguments.tasks, 2 * n_items, 0),
        f"endings, {2 * n_items} items": endings(arguments.texts, 2 * n_items),
    }
    precision: Precision
    for precision in arguments.precisions:
        loaded = load_model(arguments.model, precision=precision)
        theirs: Any = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=arguments.rows)  # type: ignore[arg-type]
        seconds: dict[str, tuple[list[Spent], list[Spent]]] = {name: ([], []) for name in tasks}
        notes: dict[str, str] = {}
        for number in range(arguments.rounds):
            for name, requests in tasks.items():
                # A new one each time: its trial of the model is part of the price.
                ours = TransfuseLM(
                    loaded.model,
                    loaded.tokenizer,
                    compute_dtype=loaded.precision,
                    identity="",
                    max_batch_rows=arguments.rows,
                    max_batch_tokens=arguments.batch_tokens,
                )
                answers: list[list[Any]] = [[], []]
                pair = [theirs, ours]
                for place in (0, 1) if number % 2 == 0 else (1, 0):
                    answers[place], spent = answered(pair[place], requests)
                    seconds[name][place].append(spent)
                notes[name] = difference(*answers)
                last = [pair[-1] for pair in seconds[name]]
                print(
                    f"{precision}, {name}: hf {last[0].wall_s:.2f} s, ours {last[1].wall_s:.2f} s; "
                    f"of the processor {last[0].cpu_s:.2f} s, {last[1].cpu_s:.2f} s",
                    flush=True,
                )
        where = f"{hardware_text()}; {loaded.device}; {precision}; {arguments.rows} sequences a batch"
        print(f"\n{where}; medians of {arguments.rounds} rounds")
        print("| task | tokens | hf | ours | times as fast | by processor time | answers |")
        print("|---|---|---|---|---|---|---|")
        medians = {
            name: [Spent(*map(statistics.median, zip(*spent, strict=True))) for spent in pair]
            for name, pair in seconds.items()
        }
        for name, (hf, own) in medians.items():
            print(
                f"| {name} | {n_read(loaded.tokenizer, tasks[name])} | {hf.wall_s:.2f} s | {own.wall_s:.2f} s "
                f"| {hf.wall_s / own.wall_s:.2f} | {hf.cpu_s / own.cpu_s:.2f} | {notes[name]} |"
            )
        totals = [
            [sum(values) for values in zip(*each, strict=True)]
            for each in zip(*medians.values(), strict=True)
        ]
        overall = {
            "precision": precision,
            "times_as_fast": round(totals[0][0] / totals[1][0], 2),
            "by_processor_time": round(totals[0][1] / totals[1][1], 2),
        }
        print(json.dumps(overall), flush=True)


if __name__ == "__main__":
    main()
