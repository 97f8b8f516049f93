"""Questions asked of a scripted generator; what cannot be scored is not zero."""

from collections.abc import Sequence

import pytest

from transfuse.evaluate.questions import answer_estimates, ask_questions, estimate_json
from transfuse.generate.protocol import OnReply, Reply, Request
from transfuse.text.answers import ANSWER_METRICS
from transfuse.types import AnswerRecord, Estimate, QAPair


class Scripted:
    """A queue of replies; keeps what it was asked."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = replies
        self.requests: list[Request] = []

    identity = "scripted"

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        self.requests += requests
        for index, reply in enumerate(self._replies):
            if on_reply:
                on_reply(index, reply)
        return list(self._replies)


def pair(number: int, answer: str = "Spain", source: str = "f1", aliases: tuple[str, ...] = ()) -> QAPair:
    return QAPair(f"q{number}", "fact", source, "eval", f"Question {number}?", answer, aliases)


def record(source: str, value: float | None) -> AnswerRecord:
    scores = {} if value is None else dict.fromkeys(ANSWER_METRICS, value)
    return AnswerRecord("q", source, "Q?", "gold", "answer", scores)


def test_each_question_is_asked_once_and_scored_in_order():
    script = Scripted(Reply("Spain"), Reply("Italy"), Reply("La Roja"))
    calls = []
    records = ask_questions(
        [pair(1), pair(2), pair(3, aliases=("La Roja",))],
        script,
        max_new_tokens=7,
        on_replies=lambda done, all_: calls.append((done, all_)),
    )
    assert script.requests == [Request(f"Question {n}?", None, 7) for n in (1, 2, 3)]
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert [each.item for each in records] == ["q1", "q2", "q3"]
    assert [each.scores["exact_match"] for each in records] == [1, 0, 1]
    assert [(each.gold, each.answer, each.reason) for each in records[:2]] == [
        ("Spain", "Spain", ""),
        ("Spain", "Italy", ""),
    ]


def test_each_pair_has_a_context_of_its_own_or_none():
    script = Scripted(Reply("x"), Reply("y"), Reply("z"))
    contexts = {"q1": "About one.", "q2": None, "q3": "About three."}  # all of one source
    ask_questions([pair(3), pair(1), pair(2)], script, contexts=contexts)
    assert [request.context for request in script.requests] == ["About three.", "About one.", None]


def test_a_pair_that_the_contexts_lack_is_an_error():
    with pytest.raises(KeyError):
        ask_questions([pair(1, source="f2")], Scripted(Reply("x")), contexts={"q2": "..."})


def test_a_failed_reply_is_unscorable_with_its_reason():
    failed, good = ask_questions([pair(1), pair(2)], Scripted(Reply("", error="too long"), Reply("Spain")))
    assert (failed.scores, failed.reason) == ({}, "too long")
    estimates = answer_estimates([failed, good], seed=0)
    assert estimates["exact_match"].value == 1.0  # not 0.5
    assert estimates["exact_match"].n == 1


def test_a_gold_answer_without_words_is_unscorable_with_its_reason():
    (unscorable,) = ask_questions([pair(1, answer="—")], Scripted(Reply("Spain")))
    assert unscorable.scores == {}
    assert "holds no word" in unscorable.reason


def test_an_empty_answer_is_zero_and_counts():
    (empty,) = ask_questions([pair(1)], Scripted(Reply("")))
    assert empty.scores == dict.fromkeys(ANSWER_METRICS, 0.0)
    assert answer_estimates([empty], seed=0)["f1"].n == 1


def test_nothing_scorable_gives_none():
    for records in ([], [record("f1", None)]):
        estimates = answer_estimates(records, seed=0)
        assert estimates == dict.fromkeys(ANSWER_METRICS, Estimate(None, None, None, 0))


def test_the_questions_of_one_source_stand_or_fall_together():
    values = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    together = [record(f"f{n}", value) for n, value in enumerate(values) for _ in range(8)]
    apart = [record(f"f{n}", value) for n, value in enumerate(values * 8)]
    clustered, independent = (answer_estimates(records, 3)["f1"] for records in (together, apart))
    assert clustered.value == independent.value == pytest.approx(0.5)
    assert clustered.n == independent.n == 48
    assert independent.high - independent.low < 0.5 * (clustered.high - clustered.low)


def test_estimates_do_not_depend_on_the_order_of_records():
    records = [record(f"f{n % 5}", float(n % 3 == 0)) for n in range(20)]
    assert answer_estimates(records, 3) == answer_estimates(records[::-1], 3)


def test_estimates_as_json():
    assert estimate_json({"f1": Estimate(0.5, 0.25, 0.75, 9)}) == {
        "f1": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 9}
    }
