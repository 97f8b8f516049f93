"""Seconds and memory to find the near-duplicates among 100,000 questions.

    python benchmarks/near_duplicates.py DATA --cache FILE [--n 100000] [--threshold 0.92] [--embedded N] [--embed-only]

DATA is a folder with `injection/*/qa.jsonl` and `tasks/*/*.jsonl`. Its questions, some 6,700, are multiplied by
rewording (paraphrase templates), by names swapped for other names of the same file and by changed numbers, all
different, in a seeded random order. They are embedded once by MiniLM into the cache file (`--embed-only`: tens of
minutes on a CPU; a killed run goes on), and then timed in another process are reading that file and `near_duplicates`.
With `--embedded N` only the N shortest questions are embedded, and the other rows are made of theirs: each is drawn
towards another row by up to half of the way. As a check, 200 rows are compared with every kept row in plain matrix
products. On a machine that others use, OMP_NUM_THREADS=1 is the fastest: two threads wait for each other.
"""

import argparse
import random
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from transfuse.io.hardware import hardware_text
from transfuse.io.jsonl import read_jsonl
from transfuse.knowledge.embedding_cache import CachedEmbedder
from transfuse.knowledge.embeddings import load_embedder
from transfuse.tensors.near_duplicates import near_duplicates

QUESTION = re.compile(r"[A-Z][^.?!\n]{15,160}\?")
NAME = re.compile(r"(?<=[a-z,] )[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)*")
NUMBER = re.compile(r"\d+(?:,\d{3})*")
TEMPLATES = (
    "{}",
    "Question: {}",
    "Please tell me: {}",
    "{} Answer in a few words.",
    "According to the text, {}",
    "I would like to know: {}",
    "Do you remember? {}",
    "{} Please be brief.",
    "Here is a quiz question. {}",
    "Someone asked me this: {}",
    "Answer from memory: {}",
    "{} Give the exact answer.",
)
N_CHECKED = 200


def files_of_questions(data: Path) -> Iterator[list[str]]:
    """The distinct questions of each file."""
    for path in sorted(data.glob("injection/*/qa.jsonl")):
        yield list(dict.fromkeys(line.value["question"] for line in read_jsonl(path)))
    for path in sorted(data.glob("tasks/*/*.jsonl")):
        rows = [line.value for line in read_jsonl(path)]
        texts = (row["question"] if "question" in row else row["messages"][0]["content"] for row in rows)
        yield list(dict.fromkeys(question for text in texts for question in QUESTION.findall(text)))


def varied(question: str, names: list[str], rng: random.Random) -> str:
    """The question in other words, about somebody else, with other numbers, or more than one of these."""
    if rng.random() < 0.5:
        question = NAME.sub(lambda _: rng.choice(names), question)
    if rng.random() < 0.5:
        question = NUMBER.sub(
            lambda found: str(max(1, int(found[0].replace(",", "")) + rng.randint(-9, 9))), question
        )
    return rng.choice(TEMPLATES).format(question)


def many_questions(data: Path, n: int) -> list[str]:
    """`n` different questions: the real ones and their variations, in a seeded order."""
    rng = random.Random(0)  # noqa: S311 - no secret
    files = [questions for questions in files_of_questions(data) if questions]
    texts = dict.fromkeys(question for questions in files for question in questions)
    print(f"{len(texts)} real questions", flush=True)
    pools = [sorted({name for q in questions for name in NAME.findall(q)}) or ["Ann"] for questions in files]
    while len(texts) < n:
        for questions, names in zip(files, pools, strict=True):
            texts |= dict.fromkeys(varied(question, names, rng) for question in questions)
    chosen = list(texts)[:n]
    rng.shuffle(chosen)
    return chosen


def with_perturbed(rows: np.ndarray, n: int) -> np.ndarray:
    """The rows and, up to `n`, mixtures of two of them, in a seeded order."""
    rng = np.random.default_rng(0)
    ones, others = rng.integers(0, len(rows), (2, n - len(rows)))
    shares = rng.uniform(0, 0.5, (len(ones), 1)).astype(np.float32)
    mixed = (1 - shares) * rows[ones] + shares * rows[others]
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    return rng.permutation(np.concatenate([rows, mixed]))


def check(rows: np.ndarray, earliest: np.ndarray, threshold: float) -> None:
    """Stop where one of `N_CHECKED` rows got another answer than plain matrix products give."""
    kept = np.flatnonzero(earliest < 0)
    for index in np.linspace(0, len(rows) - 1, N_CHECKED).astype(int):
        before = kept[kept < index]
        cosines = rows[before].astype(np.float64) @ rows[index].astype(np.float64)
        matches = before[cosines >= threshold]
        assert earliest[index] == (matches[0] if len(matches) else -1), index


def main() -> None:
    """Embed what the cache lacks, then measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--threshold", type=float, nargs="+", default=[0.92])
    parser.add_argument("--embedded", type=int)
    parser.add_argument("--embed-only", action="store_true")
    arguments = parser.parse_args()
    texts = many_questions(arguments.data, arguments.n)
    if arguments.embedded:
        texts = sorted(texts, key=len)[: arguments.embedded]
    embedder = CachedEmbedder(load_embedder("minilm-l6-v2"), arguments.cache)
    started = time.perf_counter()
    rows = embedder.embed(
        texts, lambda n, n_all: print(f"{n} of {n_all}", flush=True) if arguments.embed_only else None
    )
    read_s = time.perf_counter() - started
    if arguments.embed_only:
        return
    if len(texts) < arguments.n:
        rows = with_perturbed(rows, arguments.n)
    print(
        f"{hardware_text()}; {len(rows)} rows, of which {len(texts)} are embedded questions, read in {read_s:.1f} s; "
        f"peak memory before the search {peak_gib():.2f} GiB"
    )
    print("| threshold | near-duplicates | seconds | peak memory, GiB |\n|---|---|---|---|")
    results: dict[float, np.ndarray] = {}
    for threshold in arguments.threshold:
        started = time.perf_counter()
        results[threshold] = near_duplicates(rows, threshold)
        seconds, n_found = time.perf_counter() - started, (results[threshold] >= 0).sum()
        print(f"| {threshold} | {n_found} | {seconds:.1f} | {peak_gib():.2f} |", flush=True)
    for threshold, earliest in results.items():
        check(rows, earliest, threshold)
    print(f"{N_CHECKED} rows checked for each threshold")


def peak_gib() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
