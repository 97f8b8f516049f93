"""What an OpenAI-compatible endpoint sends back, read with suspicion: replies, complaints, waiting times."""

import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from transfuse.errors import GenerationError
from transfuse.generate.protocol import Reply, Request

REPEATABLE = frozenset({408, 409, 425, 429})
"""Statuses, beside 5xx, after which the same request may succeed."""

N_SHOWN = 300
"""Characters of a server's own words in a message."""

_TOO_LONG = re.compile(
    r"context[ _-](length|window|size)|maximum context|max_model_len|(prompt|input) is too long|too many tokens",
    re.IGNORECASE,
)
_SPENT = re.compile(r"insufficient[ _](quota|balance|credit)|exceeded your current quota", re.IGNORECASE)
_UNKNOWN_MODEL = re.compile(
    r"(unknown|invalid|no such) model\b|model\b.{0,200}\b(not exist|not found|not a valid)|not a valid model",
    re.IGNORECASE | re.DOTALL,
)
_FORMAT = re.compile(
    r"response_?format|json_?schema|json_?object|structured|guided|grammar|\bschema\b", re.IGNORECASE
)


class AttemptError(Exception):
    """One attempt failed; the same request may succeed later."""

    def __init__(self, reason: str, *, wait_s: float | None = None, is_unconnected: bool = False) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        """What the server asked to wait, if it did."""
        self.is_unconnected = is_unconnected
        """Whether no connection came about."""
        self.n_prompt_tokens = self.n_reply_tokens = 0
        """What the attempt was charged."""


class Complaint(NamedTuple):
    """A status that is no success, and what the server says of it."""

    status: int
    words: str

    @property
    def is_too_long(self) -> bool:
        """Whether the prompt (with its reply) does not fit the model's context."""
        return bool(_TOO_LONG.search(self.words)) or self.status == 413

    @property
    def is_spent(self) -> bool:
        """Whether the account has no money left, so that waiting does not help."""
        return self.status == 402 or (self.status == 429 and bool(_SPENT.search(self.words)))

    @property
    def is_unknown_model(self) -> bool:
        """Whether the endpoint does not know the model (or the path)."""
        return self.status == 404 or bool(_UNKNOWN_MODEL.search(self.words))

    @property
    def is_about_format(self) -> bool:
        """Whether the reply's format is what the server cannot do."""
        return bool(_FORMAT.search(self.words))

    def is_about(self, parameter: str) -> bool:
        """Whether the server names a parameter."""
        return bool(re.search(rf"(?<![A-Za-z_]){parameter}(?![A-Za-z_])", self.words, re.IGNORECASE))


class RejectionError(Exception):
    """The endpoint answers with a status that is no success."""

    def __init__(self, complaint: Complaint, wait_s: float | None, location: str | None) -> None:
        super().__init__(f"status {complaint.status}: {complaint.words}")
        self.complaint = complaint
        self.wait_s = wait_s
        """What the server asks to wait, if it does."""
        self.location = location
        """Where it redirects to, if it does."""


def server_words(body: object, key: str | None) -> str:
    """The message in an error's body, without the key, short enough for a line."""
    inner: object = body
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        if isinstance(inner, Mapping):
            parts = [inner.get("message"), inner.get("code"), inner.get("param")]
            inner = " ".join(str(part) for part in parts if part is not None) or dict(inner)
    words = " ".join(str("" if inner is None else inner).split())
    if key:
        words = words.replace(key, "[key]")
    return words[:N_SHOWN]


def wait_s(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that a server asks to wait.

    Args:
        headers: of its response.
        now: seconds since the epoch; None asks the clock.

    Returns:
        From `retry-after-ms`, or `retry-after` in seconds or as an HTTP date; None where it does not say.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    try:
        then = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, then - (time.time() if now is None else now))


def read_reply(payload: object, request: Request) -> Reply:
    """The reply in a chat completion.

    Args:
        payload: the body of a successful response, from JSON.
        request: what was asked.

    Returns:
        The reply; it carries an error where repeating the request would bring nothing else.

    Raises:
        AttemptError: there is no reply in it.
    """
    root = payload if isinstance(payload, dict) else {}
    usage = root.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    n_prompt, n_reply = _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))
    try:
        choice = _first_choice(root)
        message = choice.get("message")
        message = message if isinstance(message, dict) else {}
        text = _whole_characters(message.get("content"))
        if text:
            return _told(text, choice, request, n_prompt, n_reply)
        refusal = _whole_characters(message.get("refusal"))
        error = _final_silence(choice.get("finish_reason"), refusal, request)
        if error:
            return Reply("", error=error, n_prompt_tokens=n_prompt, n_reply_tokens=n_reply)
        raise AttemptError("an empty reply")
    except AttemptError as fault:
        fault.n_prompt_tokens, fault.n_reply_tokens = n_prompt, n_reply
        raise


def offered_models(payload: object) -> list[str]:
    """Names in the answer to `GET /models`."""
    data = payload.get("data") if isinstance(payload, dict) else None
    rows = data if isinstance(data, list) else []
    return [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]


def unknown_model(model: str, url: str, offered: list[str], complaint: Complaint) -> GenerationError:
    """The error for a model, or a path, that an endpoint does not know."""
    if not offered or model in offered:
        return GenerationError(
            f"{url}: expected a chat completion of the model {model!r}, got status {complaint.status} "
            f"({complaint.words or 'no words'}); check the URL and the model's name in openai:MODEL@URL."
        )
    more = f" and {len(offered) - 20} more" if len(offered) > 20 else ""
    return GenerationError(
        f"{url}: offers no model {model!r}; it offers: {', '.join(offered[:20])}{more}. "
        "Name one of them in openai:MODEL@URL."
    )


def _told(text: str, choice: dict[str, Any], request: Request, n_prompt: int, n_reply: int) -> Reply:
    is_cut = choice.get("finish_reason") == "length"
    if request.is_one_line and "\n" in text:
        text, is_cut = text.split("\n")[0].rstrip(), False
    return Reply(text, is_cut=is_cut, n_prompt_tokens=n_prompt, n_reply_tokens=n_reply)


def _final_silence(finish_reason: object, refusal: str, request: Request) -> str:
    """Why an empty reply would be empty again; empty where it need not be."""
    if refusal:
        return f"the model refuses: {refusal[:N_SHOWN]}"
    if finish_reason == "content_filter":
        return "the endpoint's content filter holds the reply back"
    if finish_reason == "length":
        return (
            f"the limit of {request.max_new_tokens} reply tokens was used up before the first word (a model that "
            "reasons first?); raise max_new_tokens"
        )
    return ""


def _first_choice(root: dict[str, Any]) -> dict[str, Any]:
    choices = root.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    words = server_words(root, None) if "error" in root else ""
    raise AttemptError(f"a reply without a choice{': ' if words else ''}{words}")


def _whole_characters(text: object) -> str:
    # JSON can escape half of a character, which no file and no tokenizer takes.
    return text.encode("utf-8", "replace").decode("utf-8").strip() if isinstance(text, str) else ""


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
