"""What was answered once is not asked again, and a budget ends asking."""

import pytest

from transfuse.errors import BudgetError
from transfuse.generate.kept_replies import KeptReplies
from transfuse.generate.protocol import OnReply, Reply, Request
from transfuse.generate.reply_cache import ReplyCache
from transfuse.generate.settings import GeneratorSettings


class Echo:
    """Repeats the question, and counts."""

    identity = "echo"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, requests, on_reply: OnReply | None = None) -> list[Reply]:
        self.asked += [each.question for each in requests]
        replies = [Reply(each.question * 2) for each in requests]
        for n, reply in enumerate(replies):
            if on_reply:
                on_reply(n, reply)
        return replies


REQUESTS = [Request(word) for word in ("ab", "c", "def")]


def test_replies_come_in_order_and_are_kept(tmp_path):
    echo, seen = Echo(), []
    settings = GeneratorSettings(reference="recorded:x")
    for _ in range(2):
        with ReplyCache(tmp_path / "replies.sqlite") as cache:
            kept = KeptReplies(echo, cache, settings)
            assert kept.identity == "echo"
            replies = kept.generate(REQUESTS, lambda n, reply: seen.append((n, reply.text)))
        assert [reply.text for reply in replies] == ["abab", "cc", "defdef"]
    assert sorted(echo.asked) == ["ab", "c", "def"]
    assert sorted(seen) == sorted([(0, "abab"), (1, "cc"), (2, "defdef")] * 2)


def test_a_budget_ends_asking(tmp_path):
    settings = GeneratorSettings(reference="recorded:x", max_requests=2)
    with (
        ReplyCache(tmp_path / "replies.sqlite") as cache,
        pytest.raises(BudgetError, match="2 of 2 requests"),
    ):
        KeptReplies(Echo(), cache, settings).generate(REQUESTS)
