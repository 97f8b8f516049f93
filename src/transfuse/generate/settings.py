"""Settings of a generator; part of every recipe that has text written."""

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from transfuse.types import ModelReference, StrictModel

OPENAI_HOST = "api.openai.com"

WITHOUT_EFFECT: frozenset[str] = frozenset(
    {
        "n_at_once",
        "timeout_s",
        "max_retries",
        "max_requests",
        "max_tokens",
        "price_in",
        "price_out",
        "key_env",
    }
)
"""Names of the settings that change no reply."""


class EndpointReference(NamedTuple):
    """A model behind an OpenAI-compatible endpoint."""

    model: str | None
    """None means the only model that the endpoint offers."""
    url: str
    """Base URL, such as `http://localhost:8000/v1`."""

    @property
    def default_key_env(self) -> str:
        """The environment variable that holds the key where the settings name none."""
        return "OPENAI_API_KEY" if urlsplit(self.url).hostname == OPENAI_HOST else "TRANSFUSE_API_KEY"


class GeneratorSettings(StrictModel):
    """Who writes text, how, and what it may cost."""

    reference: ModelReference
    """Who answers: `openai:MODEL@URL` (any OpenAI-compatible endpoint), `http://HOST/v1` (its only model),
    `recorded:FILE` (replies played back), or a model reference (run on this machine)."""
    n_at_once: PositiveInt = 16
    """Requests sent to an endpoint at the same time."""
    timeout_s: PositiveFloat = 120.0
    """Seconds after which an unanswered request is sent again."""
    max_retries: NonNegativeInt = 6
    """How often a failed request is sent again, with growing pauses, before it is given up."""
    max_requests: NonNegativeInt | None = None
    """Budget of requests; replies that are kept from earlier runs are free."""
    max_tokens: NonNegativeInt | None = None
    """Budget of tokens, prompts and replies together, as the endpoint counts them."""
    price_in: NonNegativeFloat | None = None
    """Price of a million prompt tokens, in any currency."""
    price_out: NonNegativeFloat | None = None
    """Price of a million reply tokens, in the same currency."""
    key_env: str | None = None
    """Name of the environment variable that holds the key; none means TRANSFUSE_API_KEY, and OPENAI_API_KEY for
    api.openai.com. The key itself stands in no file."""

    @field_validator("reference")
    @classmethod
    def _is_whole(cls, reference: str) -> str:
        endpoint_reference(reference)
        if not reference.strip() or reference in ("recorded:", "recorded"):
            raise ValueError(
                f"expected openai:MODEL@URL, recorded:FILE or a model reference, got {reference!r}"
            )
        return reference


def endpoint_reference(reference: str) -> EndpointReference | None:
    """What `openai:MODEL@URL` or `http(s)://HOST/v1` means.

    Args:
        reference: the model's name may hold `@`, `/` and `:`; the URL may end in `/v1` or not.

    Returns:
        Model and base URL; None where the reference is of another kind.

    Raises:
        ValueError: it begins as an endpoint but is incomplete, or its URL holds a key.
    """
    is_openai = reference.startswith("openai:")
    rest = reference.removeprefix("openai:")
    found = re.fullmatch(r"(?:(?P<model>.*)@)?(?P<url>https?://.*)", rest, re.IGNORECASE | re.DOTALL)
    if found is None:
        if is_openai:
            raise ValueError(
                f"expected openai:MODEL@URL with a URL that begins with http:// or https://, got {reference!r}"
            )
        return None
    if not is_openai and found["model"] is not None:
        return None
    if found["model"] == "":
        raise ValueError(f"expected openai:MODEL@URL, got no model in {reference!r}")
    return EndpointReference(found["model"], _base_url(found["url"]))


def _base_url(url: str) -> str:
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as err:
        raise ValueError(
            f"expected a URL such as http://localhost:8000/v1, got a broken one ({err})"
        ) from err
    if not host or re.search(r"\s", url.strip()):
        raise ValueError(f"expected a URL such as http://localhost:8000/v1, got {url!r}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            f"the URL of {host} holds a user name, a query or a fragment; leave them out, and give a key in the "
            "environment variable that key_env names"
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"
