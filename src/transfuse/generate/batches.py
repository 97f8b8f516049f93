"""A generator that works in batches, asked one request at a time: whatever waits goes together."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import final

from transfuse.generate.protocol import Generator, Reply, Request


@final
class Batches:
    """Gives a generator that works in batches whatever is waiting, one batch after another."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._waiting: list[tuple[Request, asyncio.Future[Reply]]] = []
        self._work: asyncio.Task[None] | None = None

    async def answer(self, request: Request) -> Reply:
        """The reply to one request, with those that wait beside it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self._waiting.append((request, future))
        if self._work is None:
            self._work = loop.create_task(self._work_off())
        return await future

    async def close(self) -> None:
        """Wait for what is at work."""
        if self._work is not None:
            await self._work

    async def stop(self) -> None:
        """Drop what waits, and end the batch at work as soon as the generator can."""
        self._waiting.clear()
        stop = getattr(self._generator, "stop", None)
        if self._work is not None and stop is not None:
            stop()
        await self.close()

    async def _work_off(self) -> None:
        try:
            # Its own pool: the loop's default one keeps its thread.
            with ThreadPoolExecutor(1, "generate") as pool:
                while self._waiting:
                    await self._settled()
                    batch, self._waiting = self._waiting, []
                    await self._batch(batch, pool)
        finally:
            self._work = None

    async def _settled(self) -> None:
        """Until the event loop brings nothing more to the batch."""
        n_seen = -1
        while n_seen != len(self._waiting):
            n_seen = len(self._waiting)
            for _ in range(3):
                await asyncio.sleep(0)

    async def _batch(
        self, batch: list[tuple[Request, asyncio.Future[Reply]]], pool: ThreadPoolExecutor
    ) -> None:
        loop = asyncio.get_running_loop()
        futures = [future for _, future in batch]

        def on_reply(index: int, reply: Reply) -> None:
            loop.call_soon_threadsafe(_resolve, futures[index], reply)

        requests = [request for request, _ in batch]
        try:
            replies = await loop.run_in_executor(pool, self._generator.generate, requests, on_reply)
        except Exception as err:  # whatever it is belongs to those who asked
            for future in futures:
                if not future.done():
                    future.set_exception(err)
                    future.exception()  # seen, even where nobody waits any more
            return
        for future, reply in zip(futures, replies, strict=True):
            _resolve(future, reply)


def _resolve(future: asyncio.Future[Reply], reply: Reply) -> None:
    with suppress(asyncio.InvalidStateError):  # there already, or nobody waits any more
        future.set_result(reply)
