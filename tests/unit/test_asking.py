"""Asking: the cache first, nothing twice, never above the budget, and nothing paid for is lost."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from faulty_endpoint import FaultyEndpoint
from transfuse.errors import BudgetError, DataError, GenerationError
from transfuse.generate.asking import Asker, AskerCounts, run_asking
from transfuse.generate.endpoint import EndpointGenerator
from transfuse.generate.protocol import Ask, OnReply, Reply, Request
from transfuse.generate.reply_cache import ReplyCache

FIVE = [Request(f"{n}?") for n in range(5)]


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ReplyCache]:
    with ReplyCache(tmp_path / "r.sqlite") as opened:
        yield opened


def endpoint_of(server: FaultyEndpoint, **options) -> EndpointGenerator:
    return EndpointGenerator(f"openai:tiny@{server.url}", backoff_s=0.001, max_retries=1, **options)


async def ask_all(ask: Ask, requests: Sequence[Request] = FIVE) -> list[Reply]:
    return await asyncio.gather(*map(ask, requests))


def slow_echo(body: dict) -> str:
    time.sleep(0.03)
    return body["messages"][-1]["content"]


class Scripted:
    """Answers batches with the question; notes each batch and its thread."""

    identity = "scripted"

    def __init__(self, seconds: float = 0.0, fault: Exception | None = None) -> None:
        self.seconds, self.fault = seconds, fault
        self.batches: list[list[str]] = []
        self.threads: set[int] = set()
        self.stopped = threading.Event()

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        self.batches.append([request.question for request in requests])
        self.threads.add(threading.get_ident())
        if self.fault:
            raise self.fault
        replies = []
        for index, request in enumerate(requests):
            if self.stopped.wait(self.seconds):
                raise GenerationError("stopped")
            replies.append(Reply(request.question, n_prompt_tokens=10, n_reply_tokens=1))
            if on_reply and index % 2 == 0:  # the others are only returned
                on_reply(index, replies[-1])
        return replies

    def stop(self) -> None:
        self.stopped.set()


def test_an_endpoint_is_asked_many_at_once_and_a_second_time_not_at_all(cache: ReplyCache):
    told: list[AskerCounts] = []
    with FaultyEndpoint(slow_echo) as server:
        first = Asker(endpoint_of(server), cache, n_at_once=3, on_reply=told.append)
        replies = run_asking(ask_all, first)
        assert server.most_open == 3
        second = Asker(endpoint_of(server), cache, n_at_once=3, max_requests=0, max_tokens=0)
        assert run_asking(ask_all, second) == replies
        assert len(server.requests) == 5
    assert [reply.text for reply in replies] == [f"{n}?" for n in range(5)]
    assert first.counts == told[-1] == AskerCounts(5, 0, 5, 0, 5, 5)
    assert [counts.n_asked for counts in told] == [5] * 5
    assert second.counts == AskerCounts(n_asked=5, n_cached=5)


class Noting:
    """Answers at once; notes how many had been looked up by then."""

    identity = "noting"

    def __init__(self) -> None:
        self.n_looked_up: list[int] = []
        self.asker = Asker(self, None, n_at_once=2)

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        raise NotImplementedError

    async def answer(self, request: Request) -> Reply:
        self.n_looked_up.append(self.asker.counts.n_asked)
        return Reply(request.question)

    async def close(self) -> None:
        """Nothing is open."""


def test_the_first_request_leaves_before_the_last_is_looked_up():
    noting, many = Noting(), [Request(f"{n}?") for n in range(100)]
    replies = run_asking(lambda ask: ask_all(ask, many), noting.asker)
    assert [reply.text for reply in replies] == [request.question for request in many]
    assert noting.n_looked_up[0] <= 4
    assert noting.asker.counts.n_asked == 100


def test_what_is_on_its_way_is_not_sent_again():
    with FaultyEndpoint(slow_echo) as server:
        asker = Asker(endpoint_of(server), None, n_at_once=9)
        replies = run_asking(lambda ask: ask_all(ask, FIVE[:2] * 3), asker)
        assert len(server.requests) == 2
    assert [reply.text for reply in replies] == ["0?", "1?"] * 3
    assert (asker.counts.n_asked, asker.counts.n_sent) == (6, 2)


def test_a_failed_reply_is_counted_and_not_kept(cache: ReplyCache):
    with FaultyEndpoint(faults=lambda number, body: "500" if number < 2 else None) as server:
        asker = Asker(endpoint_of(server), cache, n_at_once=1)
        assert "status 500" in run_asking(lambda ask: ask(FIVE[0]), asker).error
        assert len(cache) == 0
        assert run_asking(lambda ask: ask(FIVE[0]), asker).text == "yes"
    assert asker.counts == AskerCounts(2, 0, 2, 1, 1, 1)


@pytest.mark.parametrize(
    ("budget", "says", "n_sent"),
    [
        ({"max_requests": 3}, "3 of 3 requests; raise max_requests", 3),
        # Two tokens a reply; two more are on their way when the fourth token comes back.
        ({"max_tokens": 4}, r"[4-6] of 4 tokens; raise max_tokens", None),
    ],
)
def test_a_spent_budget_keeps_what_is_on_its_way(
    cache: ReplyCache, budget: dict[str, int], says: str, n_sent: int | None
):
    with FaultyEndpoint(slow_echo) as server:
        asker = Asker(endpoint_of(server), cache, n_at_once=2, **budget)
        with pytest.raises(BudgetError, match=f"{says} and run again .every reply paid for is kept"):
            run_asking(lambda ask: ask_all(ask, [Request(f"{n}?") for n in range(30)]), asker)
        assert asker.counts.n_sent == len(server.requests) == len(cache)
        assert len(cache) == n_sent or (n_sent is None and 2 <= len(cache) <= 4)
        with pytest.raises(BudgetError):
            run_asking(lambda ask: ask(FIVE[0]), asker)
        n_before = len(server.requests)
        run_asking(ask_all, Asker(endpoint_of(server), cache, n_at_once=2))
        assert len(server.requests) == 5 > n_before  # only what was missing


def test_where_no_request_can_succeed_all_later_ones_fail_at_once():
    with FaultyEndpoint(faults=lambda number, body: "401") as server:
        asker = Asker(endpoint_of(server), None, n_at_once=1)

        async def stubborn(ask: Ask) -> list[BaseException | Reply]:
            return await asyncio.gather(*map(ask, FIVE), return_exceptions=True)

        errors = run_asking(stubborn, asker)
        assert len(server.requests) == 1
    assert all(isinstance(err, GenerationError) and "status 401" in str(err) for err in errors)


def test_a_group_of_errors_comes_out_as_the_first_of_ours():
    async def main(ask: Ask) -> None:
        async with asyncio.TaskGroup() as group:
            for request in FIVE:
                group.create_task(ask(request))

    with pytest.raises(BudgetError, match="2 of 2 requests"):
        run_asking(main, Asker(Scripted(), None, n_at_once=1, max_requests=2))


def test_a_fault_of_the_asker_waits_briefly_and_sends_nothing_new(cache: ReplyCache):
    async def main(ask: Ask) -> None:
        children = [asyncio.create_task(ask(request)) for request in FIVE]
        await children[0]
        raise DataError("something else")

    with FaultyEndpoint(slow_echo) as server:
        with pytest.raises(DataError, match="something else"):
            run_asking(main, Asker(endpoint_of(server), cache, n_at_once=2))
        assert 2 <= len(server.requests) <= 4  # the fifth is never sent
        assert len(cache) == len(server.requests)


def test_batches_hold_what_waits_and_replies_come_as_they_arrive():
    scripted = Scripted(seconds=0.01)
    arrived: list[str] = []

    async def chain(ask: Ask, name: str) -> None:
        reply = await ask(Request(name))
        arrived.append(reply.text)
        await ask(Request(f"{name} again"))

    async def main(ask: Ask) -> None:
        await asyncio.gather(*(chain(ask, name) for name in "abc"))

    run_asking(main, Asker(scripted, None, n_at_once=1))
    assert scripted.batches[0] == ["a", "b", "c"]
    assert sorted(name for batch in scripted.batches[1:] for name in batch) == [
        "a again",
        "b again",
        "c again",
    ]
    assert (
        len(scripted.batches) <= 3
    )  # a late reply may miss the second batch; one by one there would be four
    assert arrived == ["a", "c", "b"] or arrived == ["a", "b", "c"]
    assert threading.get_ident() not in scripted.threads


def test_asking_one_batch_after_another_and_on_several_loops(cache: ReplyCache):
    scripted = Scripted()
    asker = Asker(scripted, cache, n_at_once=1)
    assert [run_asking(lambda ask, r=request: ask(r), asker).text for request in FIVE[:2]] == ["0?", "1?"]
    assert scripted.batches == [["0?"], ["1?"]]
    assert asker.counts == AskerCounts(2, 0, 2, 0, 20, 2)
    assert len(cache) == 2


@pytest.mark.parametrize("fault", [GenerationError("gone"), RuntimeError("a fault of ours")])
def test_what_a_batch_raises_reaches_all_who_asked(fault: Exception):
    async def main(ask: Ask) -> list[BaseException | Reply]:
        return await asyncio.gather(*map(ask, FIVE), return_exceptions=True)

    errors = run_asking(main, Asker(Scripted(fault=fault), None, n_at_once=1))
    assert {str(err) for err in errors} == {str(fault)}


@pytest.fixture
def with_interrupts() -> Iterator[None]:
    """Whoever is started in the background ignores Ctrl-C, and asyncio leaves that as it is."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_after(n_replies: int) -> Callable[[AskerCounts], None]:
    """Ctrl-C once so many replies were handed on."""
    left = iter(range(n_replies - 1, -1, -1))

    def on_reply(counts: AskerCounts) -> None:
        if next(left, 1) == 0:
            os.kill(os.getpid(), signal.SIGINT)

    return on_reply


@pytest.mark.usefixtures("with_interrupts")
def test_an_interrupt_of_an_endpoint_is_quick_and_keeps_what_arrived(cache: ReplyCache):
    def faults(number: int, body: dict) -> str | None:
        return "hang" if body["messages"][-1]["content"] in ("3?", "4?") else None

    with FaultyEndpoint(faults=faults) as server:
        asker = Asker(endpoint_of(server), cache, n_at_once=5, on_reply=interrupt_after(3))
        with pytest.raises(KeyboardInterrupt):
            run_asking(ask_all, asker)
        assert not server.ended.is_set()
    assert len(cache) == 3


@pytest.mark.usefixtures("with_interrupts")
def test_an_interrupt_of_a_batch_stops_it_and_keeps_what_arrived(cache: ReplyCache):
    scripted, many = Scripted(seconds=0.01), [Request(f"{n}?") for n in range(300)]
    asker = Asker(scripted, cache, n_at_once=1, on_reply=interrupt_after(3))
    with pytest.raises(KeyboardInterrupt):
        run_asking(lambda ask: ask_all(ask, many), asker)
    assert scripted.stopped.is_set()
    assert 3 <= len(cache) < 150
