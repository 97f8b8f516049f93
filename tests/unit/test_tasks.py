"""Replies of a scripted generator scored, estimates over items, and differences of two arms by hand."""

import math
from collections.abc import Sequence

import pytest

from transfuse.evaluate.task_losses import ItemLoss
from transfuse.evaluate.tasks import (
    answer_bits_per_byte,
    ask_tasks,
    bits_difference,
    score_difference,
    task_estimates,
)
from transfuse.generate.protocol import OnReply, Reply, Request
from transfuse.types import AnswerRecord, Estimate, TaskItem, Turn


class Scripted:
    """A queue of replies; keeps what it was asked."""

    identity = "scripted"

    def __init__(self, *replies: Reply) -> None:
        self._replies = replies
        self.requests: list[Request] = []

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        self.requests += requests
        for index, reply in enumerate(self._replies):
            if on_reply:
                on_reply(index, reply)
        return list(self._replies)


def item(name: str, answer: str = "#### 4", *aliases: str) -> TaskItem:
    return TaskItem(name, (Turn("user", f"{name}?"),), answer, aliases, "sums")


def record(name: str, accuracy: float | None) -> AnswerRecord:
    return AnswerRecord(name, "", "?", "4", "4", {} if accuracy is None else {"accuracy": float(accuracy)})


def bits(name: str, n_bits: float, n_bytes: int = 1) -> ItemLoss:
    return ItemLoss(name, n_bits * math.log(2), n_bytes, 1, "" if n_bytes else "too long")


def test_each_item_is_asked_once_and_what_cannot_be_scored_says_why():
    script = Scripted(Reply("It is 4."), Reply("5"), Reply("", error="no room"), Reply("six"))
    text, calls = TaskItem("text", (), "learned whole"), []
    items = [item("a"), item("b", "#### 4", "5"), text, item("c"), item("d", "many")]
    records = ask_tasks(
        items, script, "number", max_new_tokens=7, on_replies=lambda *done: calls.append(done)
    )
    assert [(each.messages[-1].content, each.max_new_tokens) for each in script.requests] == [
        (f"{name}?", 7) for name in "abcd"
    ]
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert records[0] == AnswerRecord("a", "sums", "a?", "#### 4", "It is 4.", {"accuracy": 1.0})
    assert [each.scores for each in records] == [{"accuracy": 1}, {"accuracy": 1}, {}, {}, {}]
    assert [each.reason for each in records[2:]] == [
        "a plain text, which asks nothing",
        "no room",
        "gold answer 'many' holds no number to compare",
    ]
    estimate = task_estimates(records, "number", seed=0)["accuracy"]
    assert (estimate.value, estimate.n) == (1.0, 2)


def test_every_metric_of_a_kind_is_named_where_nothing_can_be_scored():
    nothing = Estimate(None, None, None, 0)
    assert task_estimates([record("a", None)], "text", 0) == dict.fromkeys(
        ("exact_match", "rouge_l", "f1"), nothing
    )


def test_bits_per_byte_divides_sums_and_leaves_out_what_was_not_measured():
    estimate = answer_bits_per_byte([bits("a", 8, 2), bits("b", 6, 6), bits("c", 99, 0)], seed=0)
    assert estimate == pytest.approx((14 / 8, 1.0, 4.0, 2))


def test_items_count_once_however_many_seeds_they_were_asked_under():
    values = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    records = [record(f"i{n}", value) for n, value in enumerate(values)]
    once = task_estimates(records, "number", 0)["accuracy"]
    thrice = task_estimates(records * 3, "number", 0)["accuracy"]
    assert thrice[:3] == pytest.approx(once[:3])
    assert (once.n, thrice.n) == (10, 30)


def test_two_arms_are_paired_by_item_and_seed():
    # Seed 1: a is 1 against 0, b 0 against 0. Seed 2: a 1 against 1, b 1 against 0; c stands in one arm only.
    first = [[record("a", 1), record("b", 0), record("c", 1)], [record("a", 1), record("b", 1)]]
    second = [[record("b", 0), record("a", 0)], [record("a", 1), record("b", 0), record("c", None)]]
    # Differences of the items: a 1 and 0, b 0 and 1: each sums to 1 of 2, so every draw gives a half.
    assert score_difference(first, second, "accuracy", 0)[::3] == (0.5, 4)
    swapped = score_difference(second, first, "accuracy", 0)
    assert swapped.value == -0.5
    assert score_difference([[record("a", 1)]], [[record("b", 1)]], "accuracy", 0) == Estimate(
        None, None, None, 0
    )
    with pytest.raises(ValueError, match="shorter"):
        score_difference(first, second[:1], "accuracy", 0)


def test_bits_of_two_arms_by_hand():
    # a: 8 against 6 bits of 2 bytes, b: 6 against 2 bits of 6 bytes. All: 6 / 8; a alone 1, b alone 2 / 3.
    first, second = [[bits("a", 8, 2), bits("b", 6, 6)]], [[bits("b", 2, 6), bits("a", 6, 2)]]
    assert bits_difference(first, second, seed=0) == pytest.approx((0.75, 2 / 3, 1.0, 2))
    with pytest.raises(ValueError, match="other bytes of 'a'"):
        bits_difference([[bits("a", 8, 2)]], [[bits("a", 8, 3)]], 0)
