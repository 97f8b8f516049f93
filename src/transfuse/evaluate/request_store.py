"""Answers of a model to requests of an evaluation, kept on disk as they arrive."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from transfuse.errors import DataError
from transfuse.io.bundled import cache_folder
from transfuse.io.sqlite_tables import make_folder, open_table

ENGINE_VERSION = 1
"""Raised whenever the engine may answer the same request in another way; it is part of every key."""

TABLE_VERSION = 1
"""Of the file; another is refused."""

_LOOKED_UP_AT_ONCE = 500

_TABLE = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID"

_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=False)


def default_store_path(identity: str) -> Path:
    """Where the answers of a model are kept unless another place is named.

    Args:
        identity: of model, adapter and precision; what cannot stand in a file's name is replaced.

    Returns:
        A path in the cache folder.
    """
    name = identity if identity.isalnum() else hashlib.sha256(identity.encode()).hexdigest()
    return cache_folder() / "evaluations" / f"{name}.sqlite"


def request_key(identity: str, kind: str, parts: Sequence[Any]) -> str:
    """SHA-256 of everything that an answer depends on.

    Args:
        identity: of model, adapter and precision.
        kind: of request.
        parts: what is asked, as JSON can hold it: token ids, settings.

    Returns:
        Hexadecimal digits.
    """
    return hashlib.sha256(_JSON.encode([ENGINE_VERSION, identity, kind, parts]).encode()).hexdigest()


@final
class RequestStore:
    """One file that many processes read and write at once; a batch of answers is on disk when `put` returns."""

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Args:
            path: its folder is made where it is missing.

        Raises:
            DataError: the file is damaged, of another kind, or cannot be opened.
            RunFolderError: its folder cannot be made.
        """
        self.path = path
        make_folder(path)
        with self._explained():
            self._database = open_table(path, _TABLE, TABLE_VERSION, self._refusal)

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """The answers kept under `request_key`s; keys without one are left out."""
        found: dict[str, Any] = {}
        with self._explained():
            for start in range(0, len(keys), _LOOKED_UP_AT_ONCE):
                part = keys[start : start + _LOOKED_UP_AT_ONCE]
                marks = ", ".join("?" * len(part))
                rows = self._database.execute(
                    f"SELECT key, answer FROM answers WHERE key IN ({marks})",  # noqa: S608 - only question marks
                    part,
                )
                found |= {key: json.loads(answer) for key, answer in rows}
        return found

    def put(self, answers: Mapping[str, Any]) -> None:
        """Keep answers, as JSON, all in one commit."""
        if not answers:
            return
        rows = [(key, _JSON.encode(answer)) for key, answer in answers.items()]
        with self._explained():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def __enter__(self) -> "RequestStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        with self._explained():
            return int(self._database.execute("SELECT count(*) FROM answers").fetchone()[0])

    def _refusal(self, version: int) -> DataError:
        return DataError(
            f"{self.path}: expected answers of an evaluation, version {TABLE_VERSION}, found another SQLite "
            f"database (version {version}); name another file, or move this one away."
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as err:
            raise DataError(
                f"{self.path}: answers cannot be read or kept there: {err}; check the disk and the permissions, "
                "or name another file. What was kept before stays."
            ) from err
        except (sqlite3.DatabaseError, json.JSONDecodeError) as err:
            raise DataError(
                f"{self.path}: expected answers of an evaluation, the file is damaged ({err}); move it away, and "
                f"run again: mv {self.path} {self.path}.damaged"
            ) from err
