"""The connection to an OpenAI-compatible endpoint: one attempt, no patience, no key where it does not belong."""

import asyncio
import json
import os
import ssl
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
    import openai

CONNECT_S = 20.0
"""Longest wait for a connection."""


@final
class EndpointClient:
    """Sends requests with the `openai` package, which does nothing of its own accord here."""

    def __init__(self, url: str, key_env: str, *, is_key_required: bool, timeout_s: float) -> None:
        """Opens nothing yet.

        Args:
            url: base URL.
            key_env: name of the environment variable with the key.
            is_key_required: whether an unset variable is an error.
            timeout_s: of one attempt, from connecting to the last byte.

        Raises:
            GenerationError: the key is unset though it is required, or it is no key.
            MissingExtraError: the `openai` package is not installed.
        """
        try:
            import openai
        except ImportError as err:
            raise MissingExtraError(
                "asking an endpoint needs the openai package: pip install 'transfuse[endpoint]'"
            ) from err
        self._openai = openai
        self.url, self.key_env = url, key_env
        self._key = _key(key_env, is_key_required)
        self._timeout_s = timeout_s
        self._client: openai.AsyncOpenAI | None = None

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
        openai = self._openai
        try:
            async with asyncio.timeout(self._timeout_s):
                payload: object = await self._opened().post(
                    "/chat/completions", cast_to=object, body=body, options={"headers": self._headers()}
                )
            return _from_json(payload)
        except openai.APIStatusError as err:
            raise self._rejection(err) from None
        except (TimeoutError, openai.APIConnectionError) as err:
            raise self._unheard(err) from None
        except ValueError:
            raise AttemptError("a reply that is no JSON") from None

    def offered(self) -> list[str]:
        """Names of the models that the endpoint offers.

        Returns:
            What `GET /models` lists; nothing where it lists nothing.

        Raises:
            AttemptError: no answer, or none that is JSON.
            RejectionError: the endpoint answers with a status that is no success.
        """
        openai = self._openai
        http_client = openai.DefaultHttpxClient(**self._transport())
        try:
            with openai.OpenAI(**self._options(), http_client=http_client) as client:
                payload = client.get("/models", cast_to=object, options={"headers": self._headers()})
            return offered_models(_from_json(payload))
        except openai.APIStatusError as err:
            raise self._rejection(err) from None
        except openai.APIConnectionError as err:
            raise self._unheard(err) from None
        except ValueError:
            raise AttemptError("a list of models that is no JSON") from None

    def refuse_key(self, complaint: Complaint) -> NoReturn:
        """Raise the error for a key that the endpoint does not take."""
        raise GenerationError(
            f"{self.url}: refuses {self.key_text} (status {complaint.status}: {complaint.words or 'no words'}); "
            f"set {self.key_env} to a valid key, or name another variable in key_env."
        ) from None

    async def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _opened(self) -> "openai.AsyncOpenAI":
        if self._client is None:
            http_client = self._openai.DefaultAsyncHttpxClient(**self._transport())
            self._client = self._openai.AsyncOpenAI(**self._options(), http_client=http_client)
        return self._client

    def _options(self) -> dict[str, Any]:
        timeout = self._openai.Timeout(self._timeout_s, connect=min(0.9 * self._timeout_s, CONNECT_S))
        # The package wants some key; the header below is what is sent.
        return {"base_url": self.url, "api_key": "none", "max_retries": 0, "timeout": timeout}

    def _transport(self) -> dict[str, Any]:
        # Redirects would carry the key to another host.
        options: dict[str, Any] = {"follow_redirects": False}
        if self.url.startswith("http:"):
            # Nothing to verify: an empty context spares reading the certificates, and trusts nobody.
            options["verify"] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return options

    def _headers(self) -> dict[str, Any]:
        """The key, and nothing that the package would take from the environment: it may be for another host."""
        omit = self._openai.Omit()
        return {
            "Authorization": f"Bearer {self._key}" if self._key else omit,
            "OpenAI-Organization": omit,
            "OpenAI-Project": omit,
        }

    def _rejection(self, err: "openai.APIStatusError") -> RejectionError:
        headers = err.response.headers
        complaint = Complaint(err.status_code, server_words(err.body, self._key))
        return RejectionError(complaint, wait_s(headers), headers.get("location"))

    def _unheard(self, err: BaseException) -> AttemptError:
        cause = err.__cause__
        kind = type(cause).__name__  # two HTTP libraries are in use, by the package's version
        if kind in ("ConnectError", "ConnectTimeout"):
            return AttemptError(f"no connection ({cause or 'in time'})", is_unconnected=True)
        if isinstance(err, TimeoutError | self._openai.APITimeoutError):
            return AttemptError(f"no reply within {self._timeout_s:g} s")
        return AttemptError(f"the connection was cut ({kind})")


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


def _from_json(payload: object) -> object:
    """The package hands over text where the content type is not that of JSON."""
    return json.loads(payload) if isinstance(payload, str) else payload
