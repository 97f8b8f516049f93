"""What is decided before a request is read: its host, its key, and its body's type and size."""

import asyncio
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transfuse.knowledge.service_keys import ApiKeys

KEY_HEADER = "x-api-key"
PUBLIC_PATHS = frozenset({"/", "/health", "/openapi.json"})
"""What needs no key."""
_SAFE_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What one client may ask of the service, so that others get their turn."""

    max_body_bytes: int = 2**20
    """Longest body of a request."""
    max_body_s: float = 30.0
    """How long a request's body may take to arrive."""
    n_threads: int = 4
    """Searches that run at the same time, in one process."""
    max_waiting: int = 512
    """Searches that may wait for a thread."""
    max_wait_s: float = 10.0
    """How long one waits at most."""


class _RefusedError(Exception):
    """A request that goes no further."""

    def __init__(self, code: int, error: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(error)
        self.code, self.error, self.headers = code, error, headers


@final
class Gate:
    """ASGI middleware in front of everything; what it refuses reaches no route."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: ApiKeys | None,
        limits: ServiceLimits,
        json_paths: Collection[str],
        allowed_hosts: Collection[str] | None,
    ) -> None:
        """Stand before an app.

        Args:
            app: who is called with what may pass.
            keys: accepted in the header `x-api-key`; None asks for none.
            limits: of bodies.
            json_paths: POST requests to these carry JSON.
            allowed_hosts: names that the header `Host` may give, so that a page elsewhere whose name is made to
                point here cannot search with its visitor's browser; None allows all.
        """
        self._app = app
        self._keys, self._limits, self._json_paths = keys, limits, json_paths
        self._allowed_hosts = (
            None if allowed_hosts is None else {host.strip("[]").lower() for host in allowed_hosts}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a refusal, or call the app with the body read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_SAFE_HEADERS]}
            await send(message)

        try:
            self._check_host(scope)
            self._check_key(scope)
            if scope["method"] == "POST" and scope["path"] in self._json_paths:
                receive = await self._body(scope, receive)
        except _RefusedError as refusal:
            await _answer(refusal, send_safely)
        except _GoneError:
            return
        else:
            await self._app(scope, receive, send_safely)

    def _check_host(self, scope: Scope) -> None:
        if self._allowed_hosts is None:
            return
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or _host_name(hosts[0].decode("latin-1")) not in self._allowed_hosts:
            raise _RefusedError(
                400,
                "header host: this service has no keys and answers only to the names of the machine that it runs on; "
                "start it with --api-key-file to reach it by other names.",
            )

    def _check_key(self, scope: Scope) -> None:
        if self._keys is None or scope["path"] in PUBLIC_PATHS:
            return
        given = _values(scope, KEY_HEADER.encode())
        if len(given) != 1 or not self._keys.accepts(given[0]):
            what = "is not accepted" if given else "is missing"
            raise _RefusedError(
                401,
                f"header {KEY_HEADER}: the key {what}; send one of the service's keys.",
                [(b"www-authenticate", b"APIKey")],
            )

    async def _body(self, scope: Scope, receive: Receive) -> Receive:
        """Read the whole body, as far as it may go; who receives it then."""
        given = b",".join(_values(scope, b"content-type")).decode("latin-1")
        if given.partition(";")[0].strip().lower() != "application/json":
            raise _RefusedError(415, "header content-type: expected application/json.")
        limit = self._limits.max_body_bytes
        too_large = _RefusedError(413, f"the body is larger than {limit:,} bytes, the most that is read.")
        length = b"".join(_values(scope, b"content-length"))
        if length.isdigit() and int(length[:20]) > limit:
            raise too_large
        body, is_more = bytearray(), True
        try:
            async with asyncio.timeout(self._limits.max_body_s):
                while is_more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    body += message.get("body", b"")
                    is_more = message.get("more_body", False)
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise _RefusedError(
                408, f"the body did not arrive within {self._limits.max_body_s:g} s; send it again."
            ) from None
        is_given = False

        async def receive_read() -> Message:
            nonlocal is_given
            if is_given:
                return await receive()
            is_given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return receive_read


class _GoneError(Exception):
    """The client closed the connection before its request was complete."""


async def _answer(refusal: _RefusedError, send: Send) -> None:
    body = json.dumps({"success": False, "code": refusal.code, "error": refusal.error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send(
        {"type": "http.response.start", "status": refusal.code, "headers": [*headers, *refusal.headers]}
    )
    await send({"type": "http.response.body", "body": body})


def _values(scope: Scope, name: bytes) -> list[bytes]:
    """Every value of a header; ASGI gives names in lower case."""
    return [value for key, value in scope["headers"] if key == name]


def _host_name(value: str) -> str:
    """The name in a Host header, without its port."""
    if value.startswith("["):
        return value[1:].partition("]")[0].lower()
    return value.partition(":")[0].lower()
