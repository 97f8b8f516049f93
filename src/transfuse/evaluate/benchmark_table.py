"""Benchmarks that the papers report: their fields as published, and where their items are to be had.

Any other task of lm-eval runs as well; these are checked line by line before a model is loaded, and can be listed
without lm-eval.
"""

import re
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

FieldKind = Literal["text", "texts", "references", "options", "choice", "truth", "label", "aliases"]
"""What a field holds; `benchmark_rows.FIELD_KINDS` says it in words."""


class Benchmark(NamedTuple):
    """A benchmark whose published form we know."""

    title: str
    folder: str
    """Where lm-eval defines it, under its `tasks/`; empty for our own definition."""
    fields: dict[str, FieldKind]
    """Of a row as published, as far as the task reads them."""
    hub: str
    """The data set at the hub."""
    files: str
    """Those of the data set that are needed."""
    n_shot: int
    """Examples before a question where nothing else is said, as lm-eval has it."""
    main: str
    """The metric that stands for the benchmark where one figure is wanted."""
    paper: str
    """The arXiv number of the paper that reports it."""
    subject: str = ""
    """Field that says which task of a group a row belongs to."""
    configuration: str = ""
    """Of the data set, where its others hold rows of another form."""


_CHOICES: dict[str, FieldKind] = {"question": "text", "choices": "options", "answerKey": "text"}
_PARAMETRIC = "2310.11451"
_FUSION = "2401.10491"

BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark(
        "GSM8K, grade school mathematics",
        "gsm8k",
        {"question": "text", "answer": "text"},
        "openai/gsm8k",
        "main/test-*.parquet; for examples main/train-*.parquet",
        5,
        "exact_match:flexible-extract",
        _PARAMETRIC,
    ),
    "mmlu": Benchmark(
        "MMLU, 57 subjects",
        "mmlu/default",
        {"question": "text", "choices": "texts", "answer": "choice"},
        "cais/mmlu",
        "SUBJECT/test-*.parquet of each subject, or all/test-*.parquet; for examples dev-*.parquet beside them",
        0,
        "accuracy",
        _PARAMETRIC,
        subject="subject",
    ),
    "super_ni": Benchmark(
        "Super-NaturalInstructions",
        "",
        {"prompt": "text", "references": "references"},
        "Muennighoff/natural-instructions",
        "test/*_test.jsonl; for examples train/*_train.jsonl",
        0,
        "rouge_l",
        _PARAMETRIC,
    ),
    "bbh": Benchmark(
        "BIG-Bench Hard, reasoned step by step",
        "bbh/cot_fewshot",
        {"input": "text", "target": "text"},
        "SaylorTwift/bbh",
        "TASK/test-*.parquet of each of the 27 tasks",
        3,
        "exact_match",
        _FUSION,
        subject="task",
    ),
    "arc_easy": Benchmark(
        "ARC, easy questions",
        "arc",
        _CHOICES,
        "allenai/ai2_arc",
        "ARC-Easy/test-*.parquet; for examples ARC-Easy/train-*.parquet",
        0,
        "accuracy",
        _FUSION,
        configuration="ARC-Easy",
    ),
    "arc_challenge": Benchmark(
        "ARC, hard questions",
        "arc",
        _CHOICES,
        "allenai/ai2_arc",
        "ARC-Challenge/test-*.parquet; for examples ARC-Challenge/train-*.parquet",
        0,
        "accuracy_norm",
        _FUSION,
        configuration="ARC-Challenge",
    ),
    "hellaswag": Benchmark(
        "HellaSwag, endings of everyday scenes",
        "hellaswag",
        {"activity_label": "text", "ctx_a": "text", "ctx_b": "text", "endings": "texts", "label": "label"},
        "Rowan/hellaswag",
        "data/validation-*.parquet; for examples data/train-*.parquet",
        0,
        "accuracy_norm",
        _FUSION,
    ),
    "boolq": Benchmark(
        "BoolQ, yes or no about a passage",
        "super_glue/boolq",
        {"passage": "text", "question": "text", "label": "truth"},
        "aps/super_glue",
        "boolq/validation-*.parquet; for examples boolq/train-*.parquet",
        0,
        "accuracy",
        _FUSION,
        configuration="boolq",
    ),
    "openbookqa": Benchmark(
        "OpenBookQA, elementary science",
        "openbookqa",
        {"question_stem": "text", "choices": "options", "answerKey": "text"},
        "allenai/openbookqa",
        "main/test-*.parquet; for examples main/train-*.parquet",
        0,
        "accuracy_norm",
        _FUSION,
    ),
    "lambada_openai": Benchmark(
        "LAMBADA, the last word of a passage",
        "lambada",
        {"text": "text"},
        "EleutherAI/lambada_openai",
        "the test rows of its configuration default, saved as test.jsonl",
        0,
        "accuracy",
        _FUSION,
    ),
    "triviaqa": Benchmark(
        "TriviaQA, without context",
        "triviaqa",
        {"question": "text", "answer": "aliases"},
        "mandarjoshi/trivia_qa",
        "rc.nocontext/validation-*.parquet; for examples rc.nocontext/train-*.parquet",
        0,
        "exact_match",
        _FUSION,
    ),
}
"""By the name that lm-eval gives the task; `super_ni` is our own."""

SHORT_NAMES = {
    "arc-easy": "arc_easy",
    "arc-challenge": "arc_challenge",
    "super-ni": "super_ni",
}
"""Other spellings."""

_SHOTS = re.compile(r"(?P<task>.+)-(?P<n_shot>\d+)shot")


class BenchmarkName(NamedTuple):
    """A name taken apart."""

    task: str
    """What lm-eval or our own file calls it."""
    n_shot: int | None
    """Of a name such as `mmlu-5shot`."""


def benchmark_name(name: str) -> BenchmarkName:
    """A benchmark's name taken apart: `NAME` or `NAME-5shot`, so that one task can be run with several numbers."""
    found = _SHOTS.fullmatch(name)
    task = found["task"] if found else name
    return BenchmarkName(SHORT_NAMES.get(task, task), int(found["n_shot"]) if found else None)


def published_form(hub: str | None, configuration: str | None) -> str | None:
    """The one of `BENCHMARKS` whose data set this is; several tasks of lm-eval may read it."""
    for task, benchmark in BENCHMARKS.items():
        if benchmark.hub == hub and benchmark.configuration in ("", configuration):
            return task
    return None


def main_metric(name: str) -> str | None:
    """The metric of `report.json` that stands for a benchmark where one figure is wanted; None where we know none."""
    known = BENCHMARKS.get(benchmark_name(name).task)
    if known is None:
        return None
    metric, _, chosen = known.main.partition(":")
    return f"{metric}/{name}:{chosen}" if chosen else f"{metric}/{name}"


def own_tasks_folder() -> Path:
    """The folder with our own definitions in lm-eval's format; also good for its `--include_path`."""
    return Path(str(resources.files("transfuse.evaluate"))) / "benchmarks"
