"""Coverage: counts worked by hand, by link, by words and by similarity."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.inject.coverage import FactWords, content_words, coverage, near_the_top
from transfuse.types import Fact, QAPair

FACTS = [
    Fact("f1", "Ferry", "The ferry Aurora carries 240 passengers."),
    Fact("f2", "Ferry", "The ferry Aurora sails at night to Tessmar."),
    Fact("f3", "Pier", "Ice closed the northern pier on 3 March."),
]


def pair(id: str, question: str, answer: str, source: str = "f1", **more: object) -> QAPair:
    return QAPair(
        **{"basis": "fact", "split": "train", **more}, id=id, source=source, question=question, answer=answer
    )


def scripted(rows: dict[str, list[float]]):
    """An embedder whose vectors are found by a word of the text; of no word, straight up."""

    def embed(texts: Sequence[str]) -> np.ndarray:
        found = [next((row for word, row in rows.items() if word in text), [0, 0, 1]) for text in texts]
        return np.array(found, dtype=np.float32)

    return embed


def by_answer(*pairs: QAPair) -> dict[str, int]:
    return {fact.fact_id: fact.n_by_answer for fact in coverage(FACTS, pairs, embed=None).facts}


def test_a_pair_counts_for_the_fact_that_holds_its_answer_and_most_of_its_words():
    found = coverage(
        FACTS,
        [
            pair("q1", "How many passengers does the Aurora carry?", "240"),
            pair("q2", "Where does the ferry sail at night?", "Tessmar", source="Ferry", basis="token"),
            pair("q3", "What closed the pier?", "A storm", source="f3"),
        ],
        embed=None,
    )
    assert [(fact.n_linked, fact.n_by_answer, fact.pair_ids) for fact in found.facts] == [
        (1, 1, ("q1",)),
        (0, 1, ("q2",)),
        (1, 0, ("q3",)),
    ]
    assert found.uncovered_by_answer == ["f3"]
    assert found.shares == {"linked": 2 / 3, "by_answer": 2 / 3}
    assert {fact.n_by_similarity for fact in found.facts} == {None}
    assert found.uncovered_by_similarity is None


def test_shares_are_of_weights_by_hand():
    words = FactWords(FACTS)
    ferry, ice, strange = math.log(4 / 2.5), math.log(4 / 1.5), math.log(4 / 0.5)  # in 2, 1, 0 of 3 facts
    answer, both = words.shares("Which ferry was built here?", "Ice ferry")
    # `built` is in no fact; `ferry` stands in the answer already, and counts once.
    assert answer == pytest.approx([ferry / (ferry + ice)] * 2 + [ice / (ferry + ice)])
    assert both == pytest.approx([ferry / (ferry + ice + strange)] * 2 + [ice / (ferry + ice + strange)])
    assert words.shares("Of the?", "")[0].tolist() == [0, 0, 0]


def test_a_question_of_two_facts_that_are_alike_counts_for_both():
    twins = [Fact("a", "", "Aurora sails to Tessmar."), Fact("b", "", "Tessmar is where Aurora sails.")]
    found = coverage(twins, [pair("q1", "Where does Aurora sail?", "Tessmar", source="a")], embed=None)
    assert [fact.n_by_answer for fact in found.facts] == [1, 1]
    assert [fact.n_linked for fact in found.facts] == [1, 0]


def test_aliases_count_as_answers_and_a_pair_counts_once():
    question = "How many passengers does the Aurora carry?"
    assert by_answer(pair("q1", question, "Two hundred and forty"))["f1"] == 0
    assert (
        by_answer(pair("q1", question, "Two hundred and forty", aliases=("240", "240 passengers")))["f1"] == 1
    )


def test_further_facts_are_linked_and_questions_without_an_answer_carry_nothing():
    two = pair(
        "q1", "Which ferry sails after the pier?", "Aurora", kind="two-facts", also=("f3", "f1", "gone")
    )
    unknown = pair("q2", "How many passengers does the Aurora carry in 2031?", "240", kind="unknown")
    found = coverage(FACTS, [two, unknown], embed=scripted({}))
    assert [fact.n_linked for fact in found.facts] == [1, 0, 1]
    assert all("q2" not in fact.pair_ids for fact in found.facts)


def test_similarity_counts_the_nearest_facts_from_the_threshold_on():
    # q1 is 0.6 from f1, 0.8 from f2; q2 is 0.6 from f3 alone.
    rows = {
        "240": [1, 0, 0],
        "night": [0, 1, 0],
        "Ice": [0, 0, 1],
        "One": [0.6, 0.8, 0],
        "Two": [0, -0.8, 0.6],
    }
    pairs = [pair("q1", "One?", "x"), pair("q2", "Two?", "y")]
    found = coverage(FACTS, pairs, embed=scripted(rows), threshold=0.59)
    assert [fact.n_by_similarity for fact in found.facts] == [0, 1, 1]
    assert [fact.best_similarity for fact in found.facts] == pytest.approx([0.6, 0.8, 0.6])
    assert found.uncovered_by_similarity == ["f1"]
    assert [fact.pair_ids for fact in found.facts] == [("q1", "q2"), ("q1",), ("q2",)]
    assert coverage(FACTS, pairs, embed=scripted(rows), threshold=0.7).uncovered_by_similarity == ["f1", "f3"]
    assert json.loads(json.dumps(found.to_json()))["shares"]["by_similarity"] == 2 / 3


def test_no_pairs_cover_nothing_and_no_facts_have_no_share():
    found = coverage(FACTS, [], embed=scripted({}))
    assert found.uncovered_by_similarity == found.uncovered_by_answer == ["f1", "f2", "f3"]
    assert found.facts[0].best_similarity is None
    assert coverage([], [pair("q1", "Who?", "He")], embed=scripted({})).shares == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Which of the passengers carried it?", {"passenger", "carry"}),
        ("the ninth edition, the 9th", {"9", "edition"}),
        ("Three goals in 1,250 games", {"3", "goal", "1250", "gam"}),
        ("Who was it?", {"who", "was", "it"}),
        ("", set()),
    ],
)
def test_content_words_leave_out_form(text, words):
    assert content_words(text) == words


def test_the_top_is_within_the_margin_and_above_the_floor():
    scores = np.array([[0.5, 0.49, 0.3], [0.1, 0.1, 0.0]])
    assert near_the_top(scores, 0.2, 0.02).tolist() == [[True, True, False], [False, False, False]]


sentences = st.lists(
    st.sampled_from(["ferry", "pier", "ice", "night", "240", "Tessmar", "Aurora", "sails"]),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(sentences, sentences), max_size=6))
def test_more_pairs_never_cover_less_and_each_count_is_at_most_all(texts):
    pairs = [pair(f"q{n}", " ".join(q), " ".join(a)) for n, (q, a) in enumerate(texts)]
    counts = [by_answer(*pairs[:n]) for n in range(len(pairs) + 1)]
    for n, (before, after) in enumerate(pairwise(counts), start=1):
        assert all(before[fact] <= after[fact] <= n for fact in before)
    held = FactWords(FACTS).shares(" ".join(texts[0][0]), " ".join(texts[0][1])) if texts else ()
    assert all((shares >= 0).all() and (shares <= 1 + 1e-9).all() for shares in held)
