"""The asynchronous front of every generator: cache first, many at once, within a budget."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar, final, runtime_checkable

from transfuse.errors import BudgetError, GenerationError, TransfuseError
from transfuse.generate.batches import Batches
from transfuse.generate.protocol import Ask, Generator, Reply, Request
from transfuse.generate.reply_cache import ReplyCache, reply_key

T = TypeVar("T")

GRACE_S = 2.0
"""How long replies on their way are waited for where asking ends in an error."""

INTERRUPT_S = 0.05
"""The same where a person ends it."""


@runtime_checkable
class ConcurrentGenerator(Generator, Protocol):
    """A generator that answers many requests at once on an event loop: an endpoint."""

    async def answer(self, request: Request) -> Reply:
        """The reply to one request; a failed one carries its error."""
        ...

    async def close(self) -> None:
        """Close connections; they are opened again when they are needed."""
        ...


@dataclass(frozen=True, slots=True)
class AskerCounts:
    """What has been asked so far, and what it took."""

    n_asked: int = 0
    n_cached: int = 0
    """Replies found in the cache: free."""
    n_sent: int = 0
    """Requests handed to the generator; asking the same thing while it is on its way sends nothing."""
    n_failed: int = 0
    """Replies that carry an error."""
    n_prompt_tokens: int = 0
    """Of the requests sent, as the generator counts them."""
    n_reply_tokens: int = 0


@final
class Asker:
    """Asks a generator; whatever it answers is kept before it is handed on."""

    def __init__(
        self,
        generator: Generator,
        cache: ReplyCache | None,
        *,
        n_at_once: int,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        on_reply: Callable[[AskerCounts], None] | None = None,
    ) -> None:
        """Nothing is sent before the first `ask`.

        Args:
            generator: who answers; endpoints get `n_at_once` requests, others get batches in a worker thread.
            cache: looked into first; None keeps nothing.
            n_at_once: requests that are with an endpoint at the same time.
            max_requests: requests that may be sent; None means any number.
            max_tokens: prompt and reply tokens after which nothing more is sent; those on their way may go over.
            on_reply: called with the counts after each reply, on the event loop's thread.
        """
        self._identity = generator.identity
        self._cache = cache
        self._max_requests, self._max_tokens = max_requests, max_tokens
        self._on_reply = on_reply
        self._front = generator if isinstance(generator, ConcurrentGenerator) else Batches(generator)
        # Batches limit themselves.
        self._n_places = n_at_once if not isinstance(self._front, Batches) else 1 << 30
        self._counts = asdict(AskerCounts())
        self._fault: GenerationError | None = None
        self._in_flight: dict[str, asyncio.Task[Reply]] = {}
        self._turns: asyncio.Semaphore | None = None
        self._places: asyncio.Semaphore | None = None
        self._is_closing = False

    @property
    def counts(self) -> AskerCounts:
        """What has been asked so far."""
        return AskerCounts(**self._counts)

    async def ask(self, request: Request) -> Reply:
        """The reply to one request, from the cache or the generator.

        Args:
            request: one that is on its way already is not sent again.

        Returns:
            The reply; it carries an error where this request has failed for good.

        Raises:
            BudgetError: the budget is spent.
            GenerationError: no further request can succeed.
        """
        if self._turns is None:
            self._turns = asyncio.Semaphore(self._n_places)
        async with self._turns:
            self._refuse()
            found = self._looked_up(request)
            # Where many ask at the same moment, the first request leaves before the last is looked up.
            await asyncio.sleep(0)
        # Whoever asked may be cancelled; what is on its way is paid for and still kept.
        reply = found if isinstance(found, Reply) else await asyncio.shield(found)
        if self._on_reply is not None:
            self._on_reply(self.counts)
        return reply

    async def close(self, wait_s: float | None = None) -> None:
        """Let replies on their way arrive, then close connections; a later `ask` opens them again.

        Args:
            wait_s: seconds to wait for them; None waits until the last is there.
        """
        self._is_closing = True
        if isinstance(self._front, Batches) and wait_s is not None:
            await self._front.stop()
        on_their_way = list(self._in_flight.values())
        if on_their_way:
            await asyncio.wait(on_their_way, timeout=wait_s)
            for task in on_their_way:
                task.cancel()
            await asyncio.gather(*on_their_way, return_exceptions=True)
        await self._front.close()
        self._turns = self._places = None  # they belong to this event loop
        self._is_closing = False

    def _looked_up(self, request: Request) -> Reply | asyncio.Task[Reply]:
        """The reply from the cache, or where it will come from."""
        self._count(n_asked=1)
        key = reply_key(request, self._identity)
        reply = self._cache.get(key) if self._cache is not None else None
        if reply is not None:
            self._count(n_cached=1)
            return reply
        task = self._in_flight.get(key)
        if task is None:
            task = self._in_flight[key] = asyncio.create_task(self._send(key, request))
            task.add_done_callback(lambda done: self._landed(key, done))
        return task

    async def _send(self, key: str, request: Request) -> Reply:
        if self._places is None:
            self._places = asyncio.Semaphore(self._n_places)
        async with self._places:
            self._refuse()
            try:
                self._check_budget()
                self._count(n_sent=1)
                reply = await self._front.answer(request)
                if self._cache is not None:
                    self._cache.put(key, reply)
            except GenerationError as err:
                self._fault = self._fault or err
                raise
        self._count(
            n_failed=int(bool(reply.error)),
            n_prompt_tokens=reply.n_prompt_tokens,
            n_reply_tokens=reply.n_reply_tokens,
        )
        return reply

    def _refuse(self) -> None:
        """Nothing new once no request can succeed, or while the last replies are waited for."""
        if self._fault is not None:
            raise _again(self._fault)
        if self._is_closing:
            raise asyncio.CancelledError

    def _check_budget(self) -> None:
        counts = self.counts
        n_tokens = counts.n_prompt_tokens + counts.n_reply_tokens
        if self._max_requests is not None and counts.n_sent >= self._max_requests:
            spent, setting = f"{counts.n_sent} of {self._max_requests} requests", "max_requests"
        elif self._max_tokens is not None and n_tokens >= self._max_tokens:
            spent, setting = f"{n_tokens} of {self._max_tokens} tokens", "max_tokens"
        else:
            return
        kept = "every reply paid for is kept" if self._cache is not None else "no cache keeps the replies"
        raise BudgetError(f"the budget is spent: {spent}; raise {setting} and run again ({kept}).")

    def _count(self, **more: int) -> None:
        for name, number in more.items():
            self._counts[name] += number

    def _landed(self, key: str, task: asyncio.Task[Reply]) -> None:
        del self._in_flight[key]
        if not task.cancelled():
            task.exception()  # seen: whoever asked may be gone


def run_asking(main: Callable[[Ask], Awaitable[T]], asker: Asker) -> T:
    """Run something that asks, to its end.

    Args:
        main: called with `asker.ask`.
        asker: its connections are closed afterwards; it may be used again.

    Returns:
        What `main` returns.

    Raises:
        TransfuseError: what `main` raised; of a group of errors, the first one of ours.
    """

    async def whole() -> T:
        try:
            result = await main(asker.ask)
        except BudgetError:
            await asker.close()
            raise
        except (asyncio.CancelledError, KeyboardInterrupt):
            await asker.close(wait_s=INTERRUPT_S)
            raise
        except BaseException as err:
            is_budget = any(isinstance(each, BudgetError) for each in _leaves(err))
            await asker.close(wait_s=None if is_budget else GRACE_S)
            raise
        await asker.close()
        return result

    try:
        return asyncio.run(whole())
    except BaseExceptionGroup as group:
        ours = next((each for each in _leaves(group) if isinstance(each, TransfuseError)), None)
        if ours is None:
            raise
        raise ours from group


def _again(fault: GenerationError) -> GenerationError:
    """The same error anew: one object raised many times would gather tracebacks."""
    return type(fault)(*fault.args)


def _leaves(err: BaseException) -> Iterator[BaseException]:
    if isinstance(err, BaseExceptionGroup):
        for each in err.exceptions:
            yield from _leaves(each)
    else:
        yield err
