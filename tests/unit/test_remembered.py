"""Replies kept on disk: asked once, told in order, failed ones asked again."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from transfuse.generate.protocol import OnReply, Reply, Request
from transfuse.generate.remembered import RememberedReplies
from transfuse.generate.reply_cache import ReplyCache


class Echo:
    """Repeats questions, and ends after some."""

    def __init__(self, fails_at: str = "", dies_at: str = "") -> None:
        self.asked: list[str] = []
        self._fails_at, self._dies_at = fails_at, dies_at
        self.identity = "echo"

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        replies: list[Reply] = []
        for index, each in enumerate(requests):
            if each.question == self._dies_at:
                raise KeyboardInterrupt
            self.asked.append(each.question)
            error = "no room" if each.question == self._fails_at else ""
            replies.append(Reply("" if error else each.question.upper(), error=error))
            if on_reply:
                on_reply(index, replies[-1])
        return replies


def requests(*questions: str) -> list[Request]:
    return [Request(each) for each in questions]


def test_only_what_is_not_kept_is_asked(tmp_path: Path) -> None:
    echo = Echo()
    with ReplyCache(tmp_path / "replies.sqlite") as cache:
        kept = RememberedReplies("me", lambda: echo, cache)
        assert [each.text for each in kept.generate(requests("a", "b"))] == ["A", "B"]
        told: dict[int, str] = {}
        found = kept.generate(requests("b", "c", "a", "c"), lambda n, reply: told.update({n: reply.text}))
        assert [each.text for each in found] == ["B", "C", "A", "C"]
        assert told == {0: "B", 1: "C", 2: "A", 3: "C"}
    assert echo.asked == ["a", "b", "c"]


def test_another_identity_is_asked_itself(tmp_path: Path) -> None:
    echo = Echo()
    with ReplyCache(tmp_path / "replies.sqlite") as cache:
        for name in ("me", "you", "me"):
            RememberedReplies(name, lambda: echo, cache).generate(requests("a"))
    assert echo.asked == ["a", "a"]


def test_a_model_is_opened_only_to_be_asked(tmp_path: Path) -> None:
    opened: list[str] = []

    def open_echo() -> Echo:
        opened.append("echo")
        return Echo()

    with ReplyCache(tmp_path / "replies.sqlite") as cache:
        RememberedReplies("me", open_echo, cache).generate(requests("a"))
        RememberedReplies("me", open_echo, cache).generate(requests("a"))
        RememberedReplies("me", open_echo, cache).generate([])
    assert opened == ["echo"]


def test_failed_replies_are_asked_again(tmp_path: Path) -> None:
    with ReplyCache(tmp_path / "replies.sqlite") as cache:
        first = RememberedReplies("me", lambda: Echo(fails_at="a"), cache).generate(requests("a"))
        assert first[0].error == "no room"
        assert RememberedReplies("me", Echo, cache).generate(requests("a"))[0].text == "A"


def test_what_arrived_before_an_end_is_kept(tmp_path: Path) -> None:
    with ReplyCache(tmp_path / "replies.sqlite") as cache:
        with contextlib.suppress(KeyboardInterrupt):
            RememberedReplies("me", lambda: Echo(dies_at="c"), cache).generate(requests("a", "b", "c", "d"))
        echo = Echo()
        RememberedReplies("me", lambda: echo, cache).generate(requests("a", "b", "c", "d"))
    assert echo.asked == ["c", "d"]
