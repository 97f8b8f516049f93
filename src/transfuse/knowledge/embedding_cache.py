"""Embeddings kept on disk: a text is embedded once, whichever run or process asks."""

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast, final

import numpy as np
from jaxtyping import Float32

from transfuse.errors import DataError, RunFolderError
from transfuse.io.files import write_errors
from transfuse.knowledge.embeddings import Embedder, OnTexts, RetrievalEmbedder, Role

_TEXTS_PER_COMMIT = 1024
_KEYS_PER_QUERY = 500  # SQLite builds of before 2020 take at most 999
_WAIT_S = 60.0
_UNWRITABLE = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")
_TABLE = "CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, vector BLOB NOT NULL)"


@final
class CachedEmbedder:
    """An embedder that asks another one only for texts that the cache file does not hold.

    The file is an SQLite database. Each batch is committed whole, so a kill loses the batch under way at most;
    several processes may use one file at the same time.
    """

    def __init__(self, embedder: Embedder, path: Path) -> None:
        """Open the cache, or make it.

        Args:
            embedder: makes the vectors; its identity is part of every key, so one file may serve several.
            path: the cache file; its folder is made.

        Raises:
            DataError: the file is no embedding cache.
            RunFolderError: the file cannot be written.
        """
        self._embedder = embedder
        self._path = path
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._database() as database, database:
            database.execute(_TABLE)

    @property
    def identity(self) -> str:
        """That of the embedder whose vectors are kept."""
        return self._embedder.identity

    @property
    def n_dimensions(self) -> int:
        """Length of a vector."""
        return self._embedder.n_dimensions

    def embed(
        self, texts: Sequence[str], on_texts: OnTexts | None = None
    ) -> Float32[np.ndarray, "texts dims"]:
        """One row of L2 norm 1 for each text, from the file where it is there.

        Args:
            texts: any texts; one that stands there twice is embedded once.
            on_texts: told of the distinct texts, after those from the file and after each batch of the others.

        Returns:
            The rows, in the order of the texts.

        Raises:
            DataError: the file is no embedding cache.
            RunFolderError: the file cannot be written.
        """
        return self._rows(texts, None, on_texts)

    @property
    def max_tokens(self) -> int:
        """That of the embedder whose vectors are kept."""
        return self._retriever.max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, as the embedder counts them."""
        return self._retriever.count_tokens(texts)

    def embed_passages(
        self, texts: Sequence[str], on_texts: OnTexts | None = None
    ) -> Float32[np.ndarray, "texts dims"]:
        """Like `embed`, for passages; kept apart where the model has a prompt for them."""
        return self._rows(texts, "passage", on_texts)

    def embed_queries(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dims"]:
        """Like `embed`, for queries; kept apart where the model has a prompt for them."""
        return self._rows(texts, "query", None)

    @property
    def _retriever(self) -> RetrievalEmbedder:
        """The embedder, where it has roles; else the cache has none either."""
        if not hasattr(self._embedder, "embed_passages"):
            raise AttributeError(f"{type(self._embedder).__name__} does not know passages from queries")
        return cast(RetrievalEmbedder, self._embedder)

    def _rows(
        self, texts: Sequence[str], role: Role | None, on_texts: OnTexts | None
    ) -> Float32[np.ndarray, "texts dims"]:
        role = None if role in getattr(self._embedder, "plain_roles", ()) else role
        keys = [self._key(text, role) for text in texts]
        text_of = dict(zip(keys, texts, strict=True))
        place_of = {key: place for place, key in enumerate(text_of)}
        rows = np.empty((len(text_of), self.n_dimensions), dtype=np.float32)
        missing = self._read_into(rows, place_of)
        n_done = len(text_of) - len(missing)
        if on_texts and n_done:
            on_texts(n_done, len(text_of))
        missing.sort(key=lambda key: len(text_of[key]))  # so that a batch holds texts of like length
        for start in range(0, len(missing), _TEXTS_PER_COMMIT):
            batch = missing[start : start + _TEXTS_PER_COMMIT]
            fresh = self._fresh([text_of[key] for key in batch], role)
            self._write(batch, fresh)
            rows[[place_of[key] for key in batch]] = fresh
            n_done += len(batch)
            if on_texts:
                on_texts(n_done, len(text_of))
        return rows[[place_of[key] for key in keys]] if len(keys) > len(place_of) else rows

    def _fresh(self, texts: list[str], role: Role | None) -> Float32[np.ndarray, "texts dims"]:
        match role:
            case "passage":
                return self._retriever.embed_passages(texts)
            case "query":
                return self._retriever.embed_queries(texts)
            case None:
                return self._embedder.embed(texts)

    def _key(self, text: str, role: Role | None) -> bytes:
        made_by = f"{self.identity} as {role}" if role else self.identity
        return hashlib.sha256(f"{made_by}\0{text}".encode()).digest()

    def _read_into(self, rows: np.ndarray, place_of: Mapping[bytes, int]) -> list[bytes]:
        """Fill the rows that the file holds; the keys of the others."""
        keys, found = list(place_of), set[bytes]()
        n_bytes = self.n_dimensions * np.dtype("<f4").itemsize
        with self._database() as database:
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                batch = keys[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(batch))
                query = f"SELECT key, vector FROM embeddings WHERE key IN ({marks})"  # noqa: S608 - marks only
                for key, vector in database.execute(query, batch):
                    if len(vector) == n_bytes:
                        rows[place_of[key]] = np.frombuffer(vector, dtype="<f4")
                        found.add(key)
        return [key for key in keys if key not in found]

    def _write(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        blobs = (row.astype("<f4").tobytes() for row in rows)
        with self._database() as database, database:
            database.executemany(
                "INSERT OR REPLACE INTO embeddings VALUES (?, ?)", zip(keys, blobs, strict=True)
            )

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """A connection, closed at the end; SQLite's own errors say what to do."""
        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=_WAIT_S)) as database:
                yield database
        except sqlite3.Error as err:
            raise self._explained(err) from err

    def _explained(self, err: sqlite3.Error) -> DataError | RunFolderError:
        name = getattr(err, "sqlite_errorname", "")
        if name.startswith("SQLITE_BUSY"):
            return RunFolderError(
                f"{self._path}: expected to write here, but another process has held the file for "
                f"{_WAIT_S:.0f} s; let it finish, or name another cache file."
            )
        if name.startswith(_UNWRITABLE):
            return RunFolderError(
                f"{self._path}: expected to write here, got '{err}'; free space, or name another cache file."
            )
        return DataError(
            f"{self._path}: expected an embedding cache, got '{err}'; delete the file if it is one (its "
            f"vectors are made again), or name another."
        )
