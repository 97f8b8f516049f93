"""Replies recorded in a JSONL file, played back: exact, offline, free."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import final

from transfuse.errors import GenerationError
from transfuse.generate.protocol import Generator, OnReply, Reply, Request, request_parts
from transfuse.io.files import file_sha256
from transfuse.io.jsonl import read_jsonl, write_jsonl


def request_key(request: Request) -> str:
    """SHA-256 of everything that a reply depends on."""
    return hashlib.sha256(json.dumps(request_parts(request), sort_keys=True).encode()).hexdigest()


@final
class RecordedGenerator:
    """Plays back the replies of a recording; a request that it does not hold is an error in its reply."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._replies: dict[str, Reply] = {}
        for line in read_jsonl(path):
            key, text = line.value.get("key"), line.value.get("text")
            if not isinstance(key, str) or not isinstance(text, str):
                raise GenerationError(
                    f"{line.where}: expected a recorded reply with the strings 'key' and 'text', got the keys "
                    f"{sorted(line.value)}; record replies with `record_replies`."
                )
            self._replies[key] = Reply(
                text,
                is_cut=bool(line.value.get("is_cut", False)),
                n_prompt_tokens=_count(line.value.get("n_prompt_tokens")),
                n_reply_tokens=_count(line.value.get("n_reply_tokens")),
            )
        self._identity = f"recorded:{file_sha256(path)}"

    @property
    def identity(self) -> str:
        """The recording's content."""
        return self._identity

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """The recorded reply of each request, in order."""
        missing = Reply("", error=f"{self._path} holds no reply to this request")
        replies = [self._replies.get(request_key(request), missing) for request in requests]
        if on_reply:
            for index, reply in enumerate(replies):
                on_reply(index, reply)
        return replies


def record_replies(generator: Generator, requests: Sequence[Request], path: Path) -> list[Reply]:
    """Ask a generator and write its replies where `RecordedGenerator` finds them; failed ones are left out."""
    replies = generator.generate(requests)
    rows = [
        {"key": request_key(request), **request_parts(request), **_kept(reply)}
        for request, reply in zip(requests, replies, strict=True)
        if not reply.error
    ]
    write_jsonl(path, rows)
    return replies


def _kept(reply: Reply) -> dict[str, str | bool | int]:
    return {
        "text": reply.text,
        "is_cut": reply.is_cut,
        "n_prompt_tokens": reply.n_prompt_tokens,
        "n_reply_tokens": reply.n_reply_tokens,
    }


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0
