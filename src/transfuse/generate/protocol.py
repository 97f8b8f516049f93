"""What every generator promises: requests in, one reply each, in order."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

from transfuse.types import Turn


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model; the same request gives the same reply."""

    question: str
    """What the user's turn says."""
    context: str | None = None
    """Text that the answer may be drawn from; stands before the question."""
    max_new_tokens: int = 64
    system: str | None = None
    """What the system's turn says; None leaves the model's own default."""
    temperature: float = 0.0
    """0 decodes greedily."""
    top_p: float = 1.0
    seed: int = 0
    """Of sampling; without effect where the temperature is 0."""
    is_one_line: bool = True
    """Whether the reply ends at the first line break."""
    schema: str | None = None
    """JSON schema, as JSON text, that the reply is to follow; a hint to generators that cannot hold to it."""
    messages: tuple[Turn, ...] = ()
    """A whole conversation that the reply continues, in place of `question`, `context` and `system`."""


def request_parts(request: Request) -> dict[str, Any]:
    """Everything that a reply depends on; a conversation only where there is one, so that older keys stay."""
    parts = {field.name: getattr(request, field.name) for field in fields(request)}
    if not request.messages:
        del parts["messages"]
    return parts


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, up to its end token or, for one-line requests, the first line break."""

    text: str
    is_cut: bool = False
    """True where `max_new_tokens` ended the reply."""
    error: str = ""
    """Why there is no reply, where there is none."""
    n_prompt_tokens: int = 0
    """Tokens that were read, as the generator counts them; 0 where it does not say."""
    n_reply_tokens: int = 0


OnReply = Callable[[int, Reply], None]
"""Called with a request's index and its reply as soon as that is there, in any order."""

Ask = Callable[[Request], Awaitable[Reply]]
"""One request, asynchronously. A reply may carry an error: that request has failed for good. Raises GenerationError
where no further request can succeed (the budget is spent, the key refused, the endpoint gone)."""


@runtime_checkable  # for the checks of the test suite
class Generator(Protocol):
    """Anything that answers requests: a local model, an endpoint, recorded replies."""

    @property
    def identity(self) -> str:
        """What a reply depends on beside its request: the model, and where it runs. Holds no key."""
        ...

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """One reply for each request, in the order given; a failed one carries its error.

        Raises GenerationError where no request can succeed.
        """
        ...
