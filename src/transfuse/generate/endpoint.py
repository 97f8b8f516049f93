"""Replies of any OpenAI-compatible endpoint: many at once, repeated with patience, stopped with a reason."""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

from transfuse.errors import GenerationError
from transfuse.generate.asking import Asker, run_asking
from transfuse.generate.endpoint_client import EndpointClient
from transfuse.generate.endpoint_faults import (
    REPEATABLE,
    AttemptError,
    Complaint,
    RejectionError,
    read_reply,
    unknown_model,
)
from transfuse.generate.protocol import Ask, OnReply, Reply, Request
from transfuse.generate.settings import endpoint_reference

MAX_PAUSE_S = 60.0
"""Longest pause between two attempts, unless the server names a longer one."""

MAX_WAIT_S = 600.0
"""A server that asks to wait longer than this is not waited for."""

FORMATS = ("json_schema", "json_object", None)
"""How a schema is handed over; the next one where the endpoint does not know one."""

OPTIONAL = ("seed", "top_p", "temperature")
"""Parameters that are left out where the endpoint refuses them."""


@final
class EndpointGenerator:
    """A model behind an endpoint; what the endpoint cannot do is learned once and remembered."""

    def __init__(
        self,
        reference: str,
        *,
        key_env: str | None = None,
        n_at_once: int = 16,
        timeout_s: float = 120.0,
        max_retries: int = 6,
        backoff_s: float = 1.0,
    ) -> None:
        """Asks the endpoint for its models where the reference names none; sends nothing else yet.

        Args:
            reference: `openai:MODEL@URL`, or a base URL that offers one model.
            key_env: name of the environment variable with the key; None looks at the usual one, which may be
                unset for servers that ask for no key.
            n_at_once: requests of one `generate` that are on their way at the same time.
            timeout_s: of one attempt.
            max_retries: attempts after the first.
            backoff_s: first pause between attempts; each further one is twice as long.

        Raises:
            GenerationError: the reference, the key or the endpoint is unusable.
            MissingExtraError: the `aiohttp` package is not installed.
        """
        try:
            place = endpoint_reference(reference)
        except ValueError as err:
            raise GenerationError(f"generator: {err}.") from err
        if place is None:
            raise GenerationError(f"generator: expected openai:MODEL@URL, got {reference!r}.")
        self._client = EndpointClient(
            place.url,
            key_env or place.default_key_env,
            is_key_required=key_env is not None,
            timeout_s=timeout_s,
            n_at_once=n_at_once,
        )
        self._n_at_once, self._max_retries, self._backoff_s = n_at_once, max_retries, backoff_s
        self._resume_at = 0.0
        self._has_connected = False
        self._n_unconnected = 0
        """Attempts in a row, over all requests, that brought no connection about."""
        self._n_refused_formats, self._left_out = 0, set[str]()
        self._limit_name = "max_tokens"
        self._model = place.model or self._only_model()

    @property
    def identity(self) -> str:
        """The model's name and its URL."""
        return f"openai:{self._model}@{self._client.url}"

    @property
    def left_out(self) -> frozenset[str]:
        """Parameters and reply formats that the endpoint refused; requests go without them since."""
        return frozenset(self._left_out).union(str(name) for name in FORMATS[: self._n_refused_formats])

    def generate(self, requests: Sequence[Request], on_reply: OnReply | None = None) -> list[Reply]:
        """One reply for each request, in order; a failed one carries its error."""

        async def all_of_them(ask: Ask) -> list[Reply]:
            async def one(index: int, request: Request) -> Reply:
                reply = await ask(request)
                if on_reply:
                    on_reply(index, reply)
                return reply

            return await asyncio.gather(*(one(index, request) for index, request in enumerate(requests)))

        return run_asking(all_of_them, Asker(self, None, n_at_once=self._n_at_once))

    async def answer(self, request: Request) -> Reply:
        """The reply to one request.

        Args:
            request: what to send.

        Returns:
            The reply; after the last attempt has failed, one whose error names the last fault. Its token counts
            hold what every attempt was charged.

        Raises:
            GenerationError: no request can succeed: key, model or URL is wrong, or nobody answers there.
        """
        reply = Reply("")
        n_prompt = n_reply = 0
        for attempt in range(self._max_retries + 1):
            await self._wait_turn()
            try:
                reply = await self._attempt(request)
            except AttemptError as fault:
                n_prompt, n_reply = n_prompt + fault.n_prompt_tokens, n_reply + fault.n_reply_tokens
                is_last = attempt == self._max_retries
                self._note(fault, is_last)
                reply = Reply("", error=f"{fault} ({attempt + 1} attempts)")
                if not is_last:
                    await asyncio.sleep(self._pause_s(attempt, fault))
            else:
                self._note(None, False)
                break
        if n_prompt or n_reply:
            n_prompt, n_reply = n_prompt + reply.n_prompt_tokens, n_reply + reply.n_reply_tokens
            reply = replace(reply, n_prompt_tokens=n_prompt, n_reply_tokens=n_reply)
        return reply

    async def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        await self._client.close()

    async def _attempt(self, request: Request) -> Reply:
        while True:
            body = self._body(request)
            try:
                return read_reply(await self._client.complete(body), request)
            except RejectionError as rejection:
                if not self._adapts(body, rejection.complaint):
                    return await self._rejected(rejection)

    async def _rejected(self, rejection: RejectionError) -> Reply:
        """What a refusal means: for this attempt, for all requests (both raise), or for this request."""
        complaint, url = rejection.complaint, self._client.url
        said = f"status {complaint.status}: {complaint.words or 'no words'}"
        if complaint.status in (401, 403):
            self._client.refuse_key(complaint)
        if complaint.is_spent:
            raise GenerationError(
                f"{url}: the account behind {self._client.key_text} is used up ({said}); pay in, then run again: "
                "what has been answered is kept."
            ) from None
        if 300 <= complaint.status < 400:
            raise GenerationError(
                f"{url}: redirects to {rejection.location or 'another place'}, where the key is not sent; give that "
                "URL in openai:MODEL@URL if you trust it."
            ) from None
        if complaint.status in REPEATABLE or complaint.status >= 500:
            raise self._postponed(rejection, said) from None
        if complaint.is_unknown_model and not complaint.is_too_long:
            offered = await asyncio.to_thread(self._offered)
            raise unknown_model(self._model, url, offered, complaint) from None
        return Reply("", error=f"{'prompt too long' if complaint.is_too_long else 'refused'} ({said})")

    def _postponed(self, rejection: RejectionError, said: str) -> AttemptError:
        seconds = rejection.wait_s
        if seconds is not None and seconds > MAX_WAIT_S:
            raise GenerationError(
                f"{self._client.url}: asks to wait {seconds:.0f} s ({said}); run again then: what has been answered "
                "is kept."
            ) from None
        if seconds is not None and rejection.complaint.status == 429:
            self._resume_at = max(self._resume_at, time.monotonic() + seconds)
        return AttemptError(said, wait_s=seconds)

    def _adapts(self, body: dict[str, Any], complaint: Complaint) -> bool:
        """Whether the request can be put in another way, which is remembered for all later ones."""
        if complaint.status not in (400, 422):
            return False
        if "max_tokens" in body and complaint.is_about("max_completion_tokens"):
            self._limit_name = "max_completion_tokens"
            return True
        if complaint.is_too_long:
            return False
        sent = body.get("response_format")
        if sent is not None and complaint.is_about_format:
            self._n_refused_formats = max(self._n_refused_formats, FORMATS.index(sent["type"]) + 1)
            return True
        refused = {name for name in OPTIONAL if name in body and complaint.is_about(name)}
        self._left_out |= refused
        return bool(refused)

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": _messages(request),
            self._limit_name: request.max_new_tokens,
            "temperature": request.temperature,
        }
        if request.temperature:
            body |= (
                {"seed": request.seed}
                if request.top_p == 1
                else {"seed": request.seed, "top_p": request.top_p}
            )
        for name in self._left_out:
            body.pop(name, None)
        kind = FORMATS[self._n_refused_formats] if request.schema is not None else None
        if kind == "json_schema":
            schema = json.loads(request.schema or "{}")
            described = {"name": "reply", "schema": schema, "strict": True}
            body["response_format"] = {"type": kind, "json_schema": described}
        elif kind is not None:
            body["response_format"] = {"type": kind}
        return body

    def _note(self, fault: AttemptError | None, is_last: bool) -> None:
        """Tell an endpoint that is gone from one that has a bad moment."""
        if fault is None or not fault.is_unconnected:
            self._has_connected, self._n_unconnected = True, 0
            return
        self._n_unconnected += 1
        if not self._has_connected:
            raise GenerationError(
                f"{self._client.url}: nobody answers there: {fault}; start the server, or check the URL."
            ) from None
        if is_last and self._n_unconnected > self._max_retries:
            raise GenerationError(
                f"{self._client.url}: stopped answering ({self._n_unconnected} attempts in a row, the last: "
                f"{fault}); what has been answered is kept; run again when it is back."
            ) from None

    async def _wait_turn(self) -> None:
        """While one request is told to wait, all wait; then they set off a little apart."""
        while (left := self._resume_at - time.monotonic()) > 0:
            await asyncio.sleep(left + random.uniform(0, 0.1 * self._backoff_s))  # noqa: S311 - no secret

    def _pause_s(self, attempt: int, fault: AttemptError) -> float:
        if fault.wait_s is not None:
            return fault.wait_s
        pause = min(MAX_PAUSE_S, self._backoff_s * 2**attempt)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret

    def _only_model(self) -> str:
        """The one model that the endpoint offers."""
        url = self._client.url
        try:
            offered = self._client.offered()
        except AttemptError as fault:
            raise GenerationError(
                f"{url}: expected a list of models, got {fault}; start the server, check the URL, or name the "
                "model: openai:MODEL@URL."
            ) from None
        except RejectionError as rejection:
            if rejection.complaint.status in (401, 403):
                self._client.refuse_key(rejection.complaint)
            raise GenerationError(
                f"{url}: expected a list of models, got {rejection}; name the model: openai:MODEL@URL."
            ) from None
        if len(offered) != 1:
            raise GenerationError(
                f"{url}: expected one model, it offers {', '.join(offered) or 'none'}; name one: openai:MODEL@URL."
            )
        return offered[0]

    def _offered(self) -> list[str]:
        try:
            return self._client.offered()
        except (AttemptError, RejectionError):
            return []


def _messages(request: Request) -> list[dict[str, str]]:
    if request.messages:
        return [turn._asdict() for turn in request.messages]
    lead = ""
    if request.context is not None:
        from transfuse.io.chat import CONTEXT  # heavy: torch and transformers come with it

        lead = CONTEXT.format(context=request.context)
    turns = [] if request.system is None else [{"role": "system", "content": request.system}]
    return [*turns, {"role": "user", "content": lead + request.question}]
