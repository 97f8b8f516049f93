"""Contexts from hits, retrieval recall and the choice of k, worked by hand."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.baselines.rag import (
    retrieval_recall,
    retrieved_contexts,
    tune_k,
    tuning_questions,
)
from transfuse.knowledge.records import Hit, Passage
from transfuse.types import Dropped, Estimate, QAPair


def hit(text: str, *headings: str, score: float = 1.0) -> Hit:
    return Hit(Passage(text[:8], "isles.md", headings, text, (0, len(text))), score)


def pair(number: int, source: str = "f1", answer: str = "Spain", aliases: tuple[str, ...] = ()) -> QAPair:
    return QAPair(f"q{number}", "fact", source, "train", f"Question {number}?", answer, aliases)


HITS = [
    hit("Marrow has 412 people. It is green. It is small.", "Isles", "Marrow"),
    hit("Skerrin is high.", "Isles", "Skerrin"),
    hit("No heading."),
]
SHOWN = [
    "Isles > Marrow\nMarrow has 412 people. It is green. It is small.",
    "Isles > Skerrin\nSkerrin is high.",
    "No heading.",
]


def always(question: str, context: str) -> bool:
    return True


def up_to(n_chars: int):
    return lambda question, context: len(question) + len(context) <= len("Question 1?") + n_chars


@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_the_best_k_passages_stand_in_order_under_their_headings(k: int):
    contexts, dropped = retrieved_contexts([pair(1)], {"q1": HITS}, k, always)
    assert contexts == {"q1": "\n\n".join(SHOWN[:k])}
    assert dropped == []


@pytest.mark.parametrize(
    ("room", "context", "reason"),
    [
        (len("\n\n".join(SHOWN)), "\n\n".join(SHOWN), None),
        (len("\n\n".join(SHOWN)) - 1, "\n\n".join(SHOWN[:2]), "only the first 2 of 3 passages"),
        (len("\n\n".join(SHOWN[:2])) - 1, SHOWN[0], "only the first 1 of 3 passages"),
        (len(SHOWN[0]) - 1, SHOWN[0].removesuffix(" It is small."), "only the beginning of the first of 3"),
        (3, "Isles > Marrow\nMarrow has 412 people.", "only the beginning of the first of 3"),
    ],
)
def test_passages_that_find_no_room_are_left_out_whole_and_counted(
    room: int, context: str, reason: str | None
):
    contexts, dropped = retrieved_contexts([pair(1)], {"q1": HITS}, 3, up_to(room))
    assert contexts == {"q1": context}
    assert [each.what for each in dropped] == (["Question 1?"] if reason else [])
    assert all(str(reason) in each.reason for each in dropped)


def test_a_question_for_which_nothing_was_found_stands_alone_and_says_so():
    contexts, dropped = retrieved_contexts([pair(1), pair(2)], {"q1": [], "q2": HITS[1:2]}, 2, always)
    assert contexts == {"q1": None, "q2": SHOWN[1]}
    reason = "the search found no passage, so the question is asked without one"
    assert dropped == [Dropped("passage", "Question 1?", reason)]


def test_recall_counts_questions_whose_context_holds_the_gold_answer_or_an_alias():
    pairs = [
        pair(1, "f1", "412"),
        pair(2, "f2", "Red", aliases=("green",)),
        pair(3, "f3", "41"),  # stands in 412, but is another number
        pair(4, "f4", "Spain"),  # nothing was found
        pair(5, "f5", "—"),  # no word to look for
    ]
    contexts = {f"q{n}": SHOWN[0] for n in (1, 2, 3, 5)} | {"q4": None}
    recall = retrieval_recall(pairs, contexts, seed=0)
    assert (recall.value, recall.n) == (0.5, 4)
    assert recall.low is not None
    assert recall.high is not None
    assert recall.low < 0.5 < recall.high
    assert retrieval_recall([], {}, seed=0) == Estimate(None, None, None, 0)


def scored(value: float | None) -> Estimate:
    return Estimate(value, value, value, 0 if value is None else 32)


@pytest.mark.parametrize(
    ("f1", "k"),
    [
        ({1: 0.3, 2: 0.5, 3: 0.4}, 2),
        ({3: 0.5, 1: 0.2, 2: 0.5}, 2),  # the smaller of equals, in whatever order they are given
        ({5: 0.0, 2: 0.0}, 2),
        ({1: None, 2: 0.0}, 2),  # not scored is not zero
        ({4: None, 3: None}, 3),
    ],
)
def test_the_smallest_k_with_the_best_f1_is_chosen(f1: dict[int, float | None], k: int):
    tried: list[int] = []

    def f1_of(candidate: int) -> Estimate:
        tried.append(candidate)
        return scored(f1[candidate])

    chosen = tune_k([*f1, *f1], f1_of)
    assert chosen.k == k
    assert chosen.f1_by_k == {candidate: scored(f1[candidate]) for candidate in sorted(f1)}
    assert tried == sorted(f1)  # each once


@given(st.lists(st.integers(0, 6), max_size=30), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_tuning_questions_go_round_the_facts(sources: list[int], n: int, seed: int):
    pairs = [pair(number, f"f{source}") for number, source in enumerate(sources)]
    drawn = tuning_questions(pairs, n, seed)
    assert drawn == tuning_questions(pairs, n, seed)
    assert len(drawn) == len({each.id for each in drawn}) == min(n, len(pairs))
    assert {each.id for each in drawn} <= {each.id for each in pairs}
    counts, whole = Counter(each.source for each in drawn), Counter(each.source for each in pairs)
    most = max(counts.values(), default=0)
    assert all(counts[source] >= min(most - 1, whole[source]) for source in whole)


def test_another_seed_draws_other_questions():
    pairs = [pair(number, f"f{number % 10}") for number in range(40)]
    first, second = (tuning_questions(pairs, 10, seed) for seed in (1, 2))
    assert first != second
