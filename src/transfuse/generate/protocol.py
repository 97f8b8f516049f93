"""What every generator promises: requests in, one reply each, in order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model, decoded greedily."""

    question: str
    context: str | None = None
    """Text that the answer may be drawn from; stands before the question."""
    max_new_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, up to its end token or the first newline."""

    text: str
    is_cut: bool = False
    """True where `max_new_tokens` ended the reply."""
    error: str = ""
    """Why there is no reply, where there is none."""


OnReplies = Callable[[int, int], None]
"""Called with the numbers of replies done and asked for, after each batch."""


@runtime_checkable  # for the checks of the test suite
class Generator(Protocol):
    """Anything that answers requests: a local model, an endpoint, recorded replies."""

    def generate(self, requests: Sequence[Request], on_replies: OnReplies | None = None) -> list[Reply]:
        """One reply for each request, in the order given; a failed one carries its error."""
        ...
