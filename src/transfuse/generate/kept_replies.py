"""A generator whose replies are kept: what was answered once is never asked again."""

import asyncio
from collections.abc import Sequence
from typing import final

from transfuse.generate.asking import Asker, run_asking
from transfuse.generate.protocol import Ask, Generator, OnReply, Reply, Request
from transfuse.generate.reply_cache import ReplyCache
from transfuse.generate.settings import GeneratorSettings


@final
class KeptReplies:
    """Asks another generator, within its settings' budget, what the cache does not know."""

    def __init__(self, generator: Generator, cache: ReplyCache, settings: GeneratorSettings) -> None:
        self.identity = generator.identity
        self._asker = Asker(
            generator,
            cache,
            n_at_once=settings.n_at_once,
            max_requests=settings.max_requests,
            max_tokens=settings.max_tokens,
        )

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """One reply a request, in order; every reply is on disk before it is told of.

        Args:
            requests: any number.
            on_reply: told the index and the reply as each one comes.

        Returns:
            The replies; one that has failed for good carries its error.

        Raises:
            BudgetError: the budget is spent.
            GenerationError: no further request can succeed.
        """

        async def every(ask: Ask) -> list[Reply]:
            async def one(index: int, request: Request) -> Reply:
                reply = await ask(request)
                if on_reply is not None:
                    on_reply(index, reply)
                return reply

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(n, request)) for n, request in enumerate(requests)]
            return [task.result() for task in tasks]

        return run_asking(every, self._asker)
