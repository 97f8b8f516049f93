"""How well coverage tells which fact a question is about, and what the sets of the four documents cover.

    python benchmarks/coverage.py DATA [--cache FILE] [--embedder minilm-l6-v2]

DATA is a folder with one folder a document, each holding facts.jsonl and qa.jsonl. Every fact-based pair, train and
eval, names its true fact; all other facts of its document count as wrong. That understates precision: facts
overlap, and a pair may truly carry two of them. Clean negatives are the other documents' pairs, which carry no fact
of this one: `other documents` is the share of them that a measure gives to some fact all the same.

`precision`, `recall` and `F1` are over all (pair, fact) decisions of the four documents. `F1, unseen` is the mean F1
of each document under the thresholds that are best on the other three. `ranked first` is the share of pairs whose true
fact has the highest score. The second table is made with the thresholds of `transfuse.inject.coverage`.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transfuse.inject import coverage as rules
from transfuse.inject.coverage import Coverage, FactWords, coverage, near_the_top, pair_text
from transfuse.inject.knowledge import load_facts, load_pairs
from transfuse.io.hardware import hardware_text
from transfuse.knowledge.embedding_cache import CachedEmbedder
from transfuse.knowledge.embeddings import Embedder, load_embedder
from transfuse.types import Fact, QAPair

MOST_FROM_OTHER_DOCUMENTS = 0.05
"""Thresholds that give a larger share of other documents' pairs to some fact are not chosen."""

Decide = Callable[["Scores", Sequence[float]], np.ndarray]


@dataclass(frozen=True)
class Scores:
    """Scores of pairs (rows) for the facts of one document."""

    answer: np.ndarray
    words: np.ndarray
    cosine: np.ndarray

    @classmethod
    def of(cls, facts: Sequence[Fact], pairs: Sequence[QAPair], embedder: Embedder) -> "Scores":
        """Every score that a measure may need."""
        words = FactWords(facts)
        shares = [words.shares(pair.question, pair.answer) for pair in pairs]
        fact_rows = embedder.embed([fact.fact for fact in facts])
        pair_rows = embedder.embed([pair_text(pair) for pair in pairs])
        return cls(
            np.array([answer for answer, _ in shares]),
            np.array([both for _, both in shares]),
            pair_rows @ fact_rows.T,
        )


@dataclass(frozen=True)
class Measure:
    """A rule with its thresholds, and the grid that they were to be found in."""

    name: str
    decide: Decide
    rank: Callable[[Scores], np.ndarray]
    chosen: tuple[float, ...]
    grid: tuple[Sequence[float], ...]


def gated_words(scores: Scores, answer_share: float) -> np.ndarray:
    """Shares of the words, 0 where the fact lacks the answer."""
    return np.where(scores.answer >= answer_share, scores.words, 0.0)


def measures() -> list[Measure]:
    """The module's two measures, and what they are compared with."""
    shares, answers = np.arange(0.1, 0.6, 0.05), (0.3, 0.5, 0.7, 1.0)
    margins, cosines = (0.0, 0.01, 0.02, 0.05), np.arange(0.4, 0.95, 0.025)
    own = (rules.ANSWER_SHARE, rules.WORDS_SHARE, rules.WORDS_MARGIN)
    similarity = (rules.SIMILARITY, rules.SIMILARITY_MARGIN)
    return [
        Measure(
            "by answer",
            lambda s, t: near_the_top(gated_words(s, t[0]), t[1], t[2]),
            lambda s: gated_words(s, rules.ANSWER_SHARE),
            own,
            (answers, shares, margins),
        ),
        Measure(
            "by answer, no margin",
            lambda s, t: gated_words(s, t[0]) >= t[1],
            lambda s: gated_words(s, rules.ANSWER_SHARE),
            (0.5, 0.4),
            (answers, shares),
        ),
        Measure(
            "words, answer anywhere",
            lambda s, t: near_the_top(s.words, t[0], t[1]),
            lambda s: s.words,
            (0.3, 0.01),
            (shares, margins),
        ),
        Measure(
            "by similarity",
            lambda s, t: near_the_top(s.cosine, t[0], t[1]),
            lambda s: s.cosine,
            similarity,
            (cosines, margins),
        ),
        Measure(
            "by similarity, no margin", lambda s, t: s.cosine >= t[0], lambda s: s.cosine, (0.75,), (cosines,)
        ),
        Measure(
            "by similarity, the paper's 0.945",
            lambda s, t: s.cosine >= t[0],
            lambda s: s.cosine,
            (0.945,),
            ((0.945,),),
        ),
    ]


@dataclass(frozen=True)
class Trial:
    """One document's fact-based pairs with their true facts, and the other documents' pairs."""

    own: Scores
    is_true: np.ndarray
    others: Scores


def quality(measure: Measure, thresholds: Sequence[float], trials: Sequence[Trial]) -> tuple[float, ...]:
    """Precision, recall, F1, and the share of other documents' pairs that are given to some fact."""
    n_right = n_given = n_true = 0
    strangers: list[np.ndarray] = []
    for trial in trials:
        given = measure.decide(trial.own, thresholds)
        n_right += int((given & trial.is_true).sum())
        n_given, n_true = n_given + int(given.sum()), n_true + int(trial.is_true.sum())
        strangers.append(measure.decide(trial.others, thresholds).any(axis=1))
    f1 = 2 * n_right / (n_given + n_true)
    return n_right / max(1, n_given), n_right / n_true, f1, float(np.concatenate(strangers).mean())


def best_thresholds(measure: Measure, trials: Sequence[Trial]) -> tuple[float, ...]:
    """Those of the highest F1 among those that leave other documents' pairs alone."""

    def value(thresholds: Sequence[float]) -> tuple[bool, float]:
        *_, f1, strangers = quality(measure, thresholds, trials)
        return strangers <= MOST_FROM_OTHER_DOCUMENTS, f1

    return max(itertools.product(*measure.grid), key=value)


def print_calibration(trials: Sequence[Trial]) -> None:
    """The first table."""
    print(
        "| measure | thresholds | best here | precision | recall | F1 | F1, unseen | other documents | ranked first |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for measure in measures():
        precision, recall, f1, strangers = quality(measure, measure.chosen, trials)
        unseen: list[float] = []
        for trial in trials:
            rest = [other for other in trials if other is not trial]
            unseen.append(quality(measure, best_thresholds(measure, rest), [trial])[2])
        first = np.concatenate(
            [measure.rank(t.own).argmax(axis=1) == t.is_true.argmax(axis=1) for t in trials]
        )
        print(
            f"| {measure.name} | {numbers(measure.chosen)} | {numbers(best_thresholds(measure, trials))} | "
            f"{precision:.3f} | {recall:.3f} | {f1:.3f} | {statistics.mean(unseen):.3f} | {strangers:.3f} | "
            f"{first.mean():.3f} |",
            flush=True,
        )


def numbers(thresholds: Sequence[float]) -> str:
    """Thresholds for a table."""
    return ", ".join(f"{value:.3g}" for value in thresholds)


def sets(pairs: Sequence[QAPair]) -> dict[str, list[QAPair]]:
    """The training sets of one document."""
    train = [pair for pair in pairs if pair.split == "train"]
    chosen: dict[str, list[QAPair]] = {}
    for scale in (1, 5, 10):
        by_fact: dict[str, list[QAPair]] = {}
        for pair in train:
            if pair.basis == "fact":
                by_fact.setdefault(pair.source, []).append(pair)
        chosen[f"fact-{scale}"] = [pair for own in by_fact.values() for pair in own[:scale]]
    return chosen | {"token, all": [pair for pair in train if pair.basis == "token"]}


def coverage_row(found: Coverage) -> str:
    """Shares covered and questions a fact, by measure."""
    counts = {
        "linked": [fact.n_linked for fact in found.facts],
        "by_answer": [fact.n_by_answer for fact in found.facts],
        "by_similarity": [fact.n_by_similarity or 0 for fact in found.facts],
    }
    return " | ".join(
        f"{found.shares[name]:.0%} | {min(ns)} / {statistics.median(ns):g} / {max(ns)}"
        for name, ns in counts.items()
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--embedder", default="minilm-l6-v2")
    arguments = parser.parse_args()
    embedder: Embedder = load_embedder(arguments.embedder)
    if arguments.cache:
        embedder = CachedEmbedder(embedder, arguments.cache)
    documents: dict[str, tuple[list[Fact], list[QAPair]]] = {}
    for path in sorted(arguments.data.glob("*/facts.jsonl")):
        facts = load_facts(path)
        documents[path.parent.name] = facts, load_pairs(path.with_name("qa.jsonl"), facts)
    trials: list[Trial] = []
    for name, (facts, pairs) in documents.items():
        own = [pair for pair in pairs if pair.basis == "fact"]
        others = [p for other, (_, ps) in documents.items() if other != name for p in ps if p.basis == "fact"]
        is_true = np.array([[fact.id == pair.source for fact in facts] for pair in own])
        trials.append(Trial(Scores.of(facts, own, embedder), is_true, Scores.of(facts, others, embedder)))
    n_pairs = sum(len(trial.is_true) for trial in trials)
    print(
        f"{hardware_text()}; {arguments.embedder}; {len(documents)} documents, {n_pairs} fact-based pairs\n"
    )
    print_calibration(trials)
    columns = " | ".join(
        f"{name}: facts covered | questions a fact" for name in ("link", "answer", "similarity")
    )
    print(f"\n| document | set | pairs | {columns} |\n|{'---|' * 9}")
    for name, (facts, pairs) in documents.items():
        for set_name, chosen in sets(pairs).items():
            found = coverage(facts, chosen, embed=embedder.embed)
            print(f"| {name} | {set_name} | {len(chosen)} | {coverage_row(found)} |", flush=True)


if __name__ == "__main__":
    main()
