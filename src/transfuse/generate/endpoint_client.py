"""The connection to an OpenAI-compatible endpoint: one attempt, no patience, no key where it does not belong.

It sends with aiohttp, whose parser is in C, rather than with the `openai` package: that one takes several times as much
CPU a request, and one core then keeps 16 quick requests at once waiting (`benchmarks/generation_overhead.py`).
"""

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any, NoReturn, final

from transfuse.errors import GenerationError, MissingExtraError
from transfuse.generate.endpoint_faults import (
    AttemptError,
    Complaint,
    RejectionError,
    offered_models,
    server_words,
    wait_s,
)

if TYPE_CHECKING:
    import aiohttp

CONNECT_S = 20.0
"""Longest wait for a connection."""


@final
class EndpointClient:
    """Sends requests over connections that stay open; follows no redirect, proxy setting or cookie."""

    def __init__(
        self, url: str, key_env: str, *, is_key_required: bool, timeout_s: float, n_at_once: int
    ) -> None:
        """Opens nothing yet.

        Args:
            url: base URL.
            key_env: name of the environment variable with the key.
            is_key_required: whether an unset variable is an error.
            timeout_s: of one attempt, from connecting to the last byte.
            n_at_once: connections that are open at the same time.

        Raises:
            GenerationError: the key is unset though it is required, or it is no key.
            MissingExtraError: the `aiohttp` package is not installed.
        """
        try:
            import aiohttp
        except ImportError as err:
            raise MissingExtraError(
                "asking an endpoint needs the aiohttp package: pip install 'transfuse[endpoint]'"
            ) from err
        self._aiohttp = aiohttp
        self.url, self.key_env = url, key_env
        self._key = _key(key_env, is_key_required)
        self._timeout_s, self._n_at_once = timeout_s, n_at_once
        self._session: aiohttp.ClientSession | None = None

    @property
    def key_text(self) -> str:
        """What was sent as a key, in words that do not give it away."""
        return (
            f"the key in {self.key_env}"
            if self._key
            else f"a request without a key ({self.key_env} is not set)"
        )

    async def complete(self, body: dict[str, Any]) -> object:
        """Ask for one chat completion.

        Args:
            body: of the request.

        Returns:
            The response's body, from JSON.

        Raises:
            AttemptError: no answer, or none that is JSON.
            RejectionError: the endpoint answers with a status that is no success.
        """
        if self._session is None:
            self._session = self._opened()
        data = await self._answer(self._session, "POST", "/chat/completions", json.dumps(body).encode())
        return _from_json(data, "a reply")

    def offered(self) -> list[str]:
        """Names of the models that the endpoint offers.

        Returns:
            What `GET /models` lists; nothing where it lists nothing.

        Raises:
            AttemptError: no answer, or none that is JSON.
            RejectionError: the endpoint answers with a status that is no success.
        """

        async def ask() -> bytes:
            async with self._opened() as session:
                return await self._answer(session, "GET", "/models", None)

        return offered_models(_from_json(asyncio.run(ask()), "a list of models"))

    def refuse_key(self, complaint: Complaint) -> NoReturn:
        """Raise the error for a key that the endpoint does not take."""
        raise GenerationError(
            f"{self.url}: refuses {self.key_text} (status {complaint.status}: {complaint.words or 'no words'}); "
            f"set {self.key_env} to a valid key, or name another variable in key_env."
        ) from None

    async def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _opened(self) -> "aiohttp.ClientSession":
        aiohttp = self._aiohttp
        headers = {
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": "transfuse",
        }
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._n_at_once),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            timeout=aiohttp.ClientTimeout(
                total=self._timeout_s, sock_connect=min(0.9 * self._timeout_s, CONNECT_S)
            ),
            trust_env=False,
        )

    async def _answer(
        self, session: "aiohttp.ClientSession", method: str, path: str, data: bytes | None
    ) -> bytes:
        """The body of a successful response."""
        aiohttp = self._aiohttp
        try:
            # Redirects would carry the key to another host.
            async with session.request(method, self.url + path, data=data, allow_redirects=False) as response:
                content = await response.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as err:
            raise AttemptError(f"no connection ({_reason(err)})", is_unconnected=True) from None
        except TimeoutError:
            raise AttemptError(f"no reply within {self._timeout_s:g} s") from None
        except aiohttp.ClientError as err:
            raise AttemptError(f"the connection was cut ({type(err).__name__})") from None
        if not 200 <= response.status < 300:
            complaint = Complaint(response.status, server_words(_json_or_text(content), self._key))
            raise RejectionError(complaint, wait_s(response.headers), response.headers.get("location"))
        return content


def _key(key_env: str, is_required: bool) -> str:
    key = os.environ.get(key_env, "").strip()
    if is_required and not key:
        raise GenerationError(
            f"key_env: expected the key in the environment variable {key_env}, it is not set; set it, or leave "
            "key_env out for an endpoint that asks for none."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise GenerationError(
            f"{key_env}: expected a key in printable ASCII without spaces, got something else; set it anew."
        )
    return key


def _from_json(content: bytes, what: str) -> object:
    try:
        return json.loads(content)
    except ValueError:
        raise AttemptError(f"{what} that is no JSON") from None


def _json_or_text(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode("utf-8", "replace")


def _reason(err: Exception) -> str:
    return "in time" if isinstance(err, TimeoutError) else str(err.__cause__ or err)
