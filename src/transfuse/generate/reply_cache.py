"""Replies kept on disk: what was answered once is never paid for again."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

from transfuse.errors import GenerationError
from transfuse.generate.protocol import Reply, Request, request_parts
from transfuse.io.bundled import cache_folder
from transfuse.io.sqlite_tables import make_folder, open_table

VERSION = 1
"""Of the table; another version is refused."""

_JSON = json.JSONEncoder(sort_keys=True)

_TABLE = """CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, text TEXT NOT NULL, is_cut INTEGER NOT NULL,
    n_prompt_tokens INTEGER NOT NULL, n_reply_tokens INTEGER NOT NULL
) WITHOUT ROWID"""


def default_cache_path() -> Path:
    """Where replies are kept unless another place is named."""
    return cache_folder() / "replies.sqlite"


def reply_key(request: Request, identity: str) -> str:
    """SHA-256 of everything that a reply depends on: the request and who answers it."""
    return hashlib.sha256(_JSON.encode([identity, request_parts(request)]).encode()).hexdigest()


@final
class ReplyCache:
    """One file that many processes read and write at once; each reply is on disk when `put` returns."""

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Args:
            path: its folder is made where it is missing.

        Raises:
            GenerationError: the file is damaged, of another kind, or cannot be opened.
            RunFolderError: its folder cannot be made.
        """
        self.path = path
        make_folder(path)
        with self._explained():
            self._database = open_table(path, _TABLE, VERSION, self._refusal)

    def get(self, key: str) -> Reply | None:
        """The reply kept under `reply_key`, or None."""
        with self._explained():
            row = self._database.execute(
                "SELECT text, is_cut, n_prompt_tokens, n_reply_tokens FROM replies WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else Reply(row[0], bool(row[1]), "", row[2], row[3])

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply; a failed one is not kept."""
        if reply.error:
            return
        with self._explained():
            self._database.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?)",
                (key, reply.text, reply.is_cut, reply.n_prompt_tokens, reply.n_reply_tokens),
            )

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def __enter__(self) -> "ReplyCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        with self._explained():
            return int(self._database.execute("SELECT count(*) FROM replies").fetchone()[0])

    def _refusal(self, version: int) -> GenerationError:
        return GenerationError(
            f"{self.path}: expected a reply cache of version {VERSION}, found another SQLite database "
            f"(version {version}); name another file, or move this one away."
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as err:
            raise GenerationError(
                f"{self.path}: replies cannot be read or kept there: {err}; check the disk and the permissions, "
                "or name another file. What was kept before stays."
            ) from err
        except sqlite3.DatabaseError as err:
            raise GenerationError(
                f"{self.path}: expected a reply cache, the file is damaged ({err}); move it away, and run again: "
                f"mv {self.path} {self.path}.damaged"
            ) from err
