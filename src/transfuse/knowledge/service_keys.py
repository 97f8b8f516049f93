"""API keys of the service: read from a file, kept as digests, compared in constant time."""

import hashlib
import hmac
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import final

from transfuse.errors import RecipeError

MIN_KEY_CHARACTERS = 16
_MAX_FILE_BYTES = 2**20


@final
class ApiKeys:
    """The keys that a service accepts; only their SHA-256 digests stay in memory."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def accepts(self, key: bytes) -> bool:
        """Whether it is one of them; takes as long whichever it is, or none."""
        digest = hashlib.sha256(key).digest()
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0  # none is left out


def read_keys(path: Path) -> ApiKeys:
    """Keys from a file: one a line, `#` begins a comment line, blank lines are passed over.

    Args:
        path: the file, in UTF-8.

    Returns:
        The keys.

    Raises:
        RecipeError: the file cannot be read or holds no key, or a line is no key (its number is named, never its text).
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise RecipeError(f"{path}: expected a file of API keys, one a line; this one is over 1 MiB.")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as err:
        raise RecipeError(
            f"{path}: expected a file of API keys, one a line, got '{err.strerror}'; check --api-key-file."
        ) from err
    except UnicodeDecodeError:  # without its cause, which holds the file's bytes
        raise RecipeError(
            f"{path}: expected a text file of API keys, one a line; this is no UTF-8."
        ) from None
    keys = [
        _key(line.strip(), path, number) for number, line in enumerate(lines, start=1) if _is_key_line(line)
    ]
    if not keys:
        raise RecipeError(f"{path}: expected at least one API key, one a line; the file holds none.")
    return ApiKeys(keys)


def _is_key_line(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _key(text: str, path: Path, number: int) -> str:
    if len(text) < MIN_KEY_CHARACTERS:
        raise RecipeError(
            f"{path}, line {number}: expected a key of at least {MIN_KEY_CHARACTERS} characters, got {len(text)}; "
            "make one with `openssl rand -hex 24`."
        )
    if not all("!" <= character <= "~" for character in text):
        raise RecipeError(
            f"{path}, line {number}: expected a key of visible ASCII characters, without spaces: it is sent as an "
            "HTTP header."
        )
    return text


def is_readable_by_others(path: Path) -> bool:
    """Whether users other than the file's owner may read it."""
    return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
