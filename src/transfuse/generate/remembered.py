"""A generator whose replies are kept on disk as they arrive: what was answered once is not asked again."""

from collections.abc import Callable, Sequence
from typing import final

from transfuse.generate.protocol import Generator, OnReply, Reply, Request
from transfuse.generate.reply_cache import ReplyCache, reply_key


@final
class RememberedReplies:
    """Answers from a cache, and asks for the rest; a killed process goes on with the next batch.

    The generator behind is opened at the first request that the cache does not answer.
    """

    def __init__(self, identity: str, open_generator: Callable[[], Generator], cache: ReplyCache) -> None:
        self._identity, self._open, self._cache = identity, open_generator, cache
        self._opened: Generator | None = None

    @property
    def identity(self) -> str:
        """What a reply depends on beside its request."""
        return self._identity

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """One reply for each request, in order; a failed one is not kept.

        Args:
            requests: equal ones are asked once.
            on_reply: called with index and reply, those of the cache first.

        Returns:
            The replies.
        """
        keys = [reply_key(each, self._identity) for each in requests]
        replies: dict[int, Reply] = {}
        asked: dict[str, list[int]] = {}
        for index, key in enumerate(keys):
            kept = self._cache.get(key) if key not in asked else None
            if kept is None:
                asked.setdefault(key, []).append(index)
            else:
                replies[index] = kept
                if on_reply:
                    on_reply(index, kept)
        places = list(asked.values())

        def arrived(number: int, reply: Reply) -> None:
            self._cache.put(keys[places[number][0]], reply)
            for index in places[number]:
                replies[index] = reply
                if on_reply:
                    on_reply(index, reply)

        if places:
            if self._opened is None:
                self._opened = self._open()
            self._opened.generate([requests[each[0]] for each in places], arrived)
        return [replies[index] for index in range(len(requests))]
