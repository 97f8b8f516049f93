"""The indexes that a service answers from: open, with their embedding models, and replaced by newer ones."""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float32

from transfuse.errors import IndexFolderError, TransfuseError
from transfuse.knowledge.embeddings import OnTexts, RetrievalEmbedder, load_embedder
from transfuse.knowledge.index import KnowledgeIndex, open_index
from transfuse.knowledge.index_files import INFO_FILE
from transfuse.knowledge.records import IndexInfo

INDEX_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""What an index's id, which is its folder's name, may look like."""
LOOK_EVERY_S = 0.5
_BAD_NAME = (
    "expected a name of at most 128 letters, digits, '.', '_' and '-' that begins with a letter or digit, since an "
    "index is asked for by its folder's name; rename it."
)
log = logging.getLogger(__name__)


@final
class SharedEmbedder:
    """An embedder for many threads: they take turns, since a tokenizer must not be used by two at once."""

    def __init__(self, embedder: RetrievalEmbedder) -> None:
        self._embedder = embedder
        self._turn = threading.Lock()

    @property
    def identity(self) -> str:
        """That of the embedder."""
        return self._embedder.identity

    @property
    def n_dimensions(self) -> int:
        """Length of a vector."""
        return self._embedder.n_dimensions

    @property
    def max_tokens(self) -> int:
        """The model's limit."""
        return self._embedder.max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special ones."""
        with self._turn:
            return self._embedder.count_tokens(texts)

    def embed(
        self, texts: Sequence[str], on_texts: OnTexts | None = None
    ) -> Float32[np.ndarray, "texts dims"]:
        """One row of L2 norm 1 for each text."""
        with self._turn:
            return self._embedder.embed(texts, on_texts)

    def embed_passages(
        self, texts: Sequence[str], on_texts: OnTexts | None = None
    ) -> Float32[np.ndarray, "texts dims"]:
        """One row of L2 norm 1 for each passage."""
        with self._turn:
            return self._embedder.embed_passages(texts, on_texts)

    def embed_queries(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dims"]:
        """One row of L2 norm 1 for each query."""
        with self._turn:
            return self._embedder.embed_queries(texts)


@dataclass(frozen=True, slots=True)
class ServedIndex:
    """An open index, and what its queries are embedded by."""

    id: str
    index: KnowledgeIndex
    embedder: RetrievalEmbedder | None
    no_embedder: str = ""
    """Why there is none, in words that tell no paths; empty where there is one."""


class _Fault(NamedTuple):
    """Why something is not served."""

    words: str
    """For everybody: tells no paths."""
    detail: str
    """For the log."""


_UNREADABLE = ""
"""The folder of indexes itself, among the faults by id."""


@final
class Catalogue:
    """One index folder, or a folder of them; an index's id is its folder's name.

    Everything is loaded before it is served: an index is opened, and its embedding model with it, at the start or,
    where it appears later, on the watching thread; indexes with the same model share it. A newer generation takes the
    place of the older one in one step, and whoever searches the older one goes on with it: its files stay mapped. One
    that cannot be opened leaves the older one in its place.
    """

    def __init__(self, path: Path, load: Callable[[str], RetrievalEmbedder] | None = load_embedder) -> None:
        """Open everything.

        Args:
            path: the folder of an index, or one whose folders are indexes (others in it are passed over).
            load: gives the embedding model of a reference; None does without, so that text is not searched.

        Raises:
            IndexFolderError: no index is there, or none can be opened.
        """
        self._path = Path(
            os.path.normpath(path.expanduser().absolute())
        )  # links are kept: they may be changed
        self._load = load
        self._is_single = (self._path / INFO_FILE).is_file()
        self._served: dict[str, ServedIndex] = {}
        self._faults: dict[str, _Fault] = {}
        self._embedders: dict[str, SharedEmbedder] = {}
        self._one_at_a_time = threading.Lock()
        self._look()
        if not self._served:
            raise IndexFolderError(
                next((fault.detail for fault in self._faults.values()), "")
                or f"{path}: expected a knowledge index, or a folder of them, found none; make one with "
                "`transfuse index build DOCS --out INDEX`."
            )
        self._log_faults({})

    def served(self) -> Mapping[str, ServedIndex]:
        """The indexes as they are now, by id, sorted; a later change gives a new mapping and leaves this one alone."""
        return self._served

    def problems(self) -> list[str]:
        """What is not served, or not in full, in words that tell no paths."""
        served, faults = self._served, self._faults
        words = [
            f"{index_id}: {fault.words}" if index_id else fault.words
            for index_id, fault in sorted(faults.items())
        ]
        return words + [f"{each.id}: {each.no_embedder}" for each in served.values() if each.no_embedder]

    def refresh(self) -> None:
        """Look at the folder once: open what is new or newer, leave out what is gone."""
        with self._one_at_a_time:
            before = self._faults
            self._look()
            self._log_faults(before)

    @contextmanager
    def watched(self, every_s: float = LOOK_EVERY_S) -> Iterator[None]:
        """Look at the folder from time to time, on a thread of its own, while the block runs."""
        end = threading.Event()

        def look() -> None:
            while not end.wait(every_s):
                try:
                    self.refresh()
                except Exception:  # whatever it was, the next look may go well
                    log.exception("looking for newer indexes failed")

        thread = threading.Thread(target=look, name="index-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()

    def _look(self) -> None:
        try:
            folders = self._folders()
        except OSError as err:
            detail = f"{self._path}: cannot be read ({err.strerror}); what was open is still served."
            fault = _Fault("the folder of indexes cannot be read", detail)
            self._faults = self._faults | {_UNREADABLE: fault}
            return
        served: dict[str, ServedIndex] = {}
        faults: dict[str, _Fault] = {}
        for index_id, folder in sorted(folders.items()):
            if not re.fullmatch(INDEX_ID, index_id):
                faults[index_id] = _Fault("its name cannot be an index's id", f"{folder}: {_BAD_NAME}")
                continue
            before = self._served.get(index_id)
            try:
                if before is not None and before.index.is_current():
                    served[index_id] = before
                else:
                    served[index_id] = self._opened(index_id, folder)
            except (TransfuseError, OSError) as err:
                words = "its files cannot be used"
                if before is not None:
                    served[index_id] = before
                    words += "; the ones before are served"
                faults[index_id] = _Fault(words, str(err))
        for index_id in self._served.keys() - served.keys():
            log.warning("%s: is gone and no longer served", index_id)
        self._served, self._faults = served, faults
        in_use = {each.index.info.embedder_identity for each in served.values()}
        self._embedders = {key: each for key, each in self._embedders.items() if key in in_use}

    def _log_faults(self, before: Mapping[str, _Fault]) -> None:
        """Each once, until it changes."""
        for index_id, fault in self._faults.items():
            if before.get(index_id) != fault:
                log.error("%s", fault.detail)

    def _folders(self) -> dict[str, Path]:
        """The folders that hold an index, by id; the rest is none of ours."""
        try:
            candidates = [self._path] if self._is_single else [*self._path.iterdir()]
        except FileNotFoundError:
            return {}
        found = [each for each in candidates if self._is_single or not each.name.startswith(".")]
        return {each.name: each for each in found if (each / INFO_FILE).is_file()}

    def _opened(self, index_id: str, folder: Path) -> ServedIndex:
        index = open_index(folder)
        embedder, reason = self._embedder(index_id, index.info)
        log.info("%s: %d passages", index_id, index.info.n_passages)
        return ServedIndex(index_id, index, embedder, reason)

    def _embedder(self, index_id: str, info: IndexInfo) -> tuple[SharedEmbedder | None, str]:
        """The model of an index, or why there is none."""
        known = self._embedders.get(info.embedder_identity)
        if known is not None or self._load is None:
            return known, ""
        try:
            loaded = self._load(info.settings.embedder)
        except TransfuseError as err:
            log.warning("%s: text is not searched by meaning: %s", index_id, err)
            return None, "its embedding model cannot be loaded"
        if loaded.identity != info.embedder_identity:
            log.warning(
                "%s: text is not searched by meaning: expected the embedding model %s, but %r is now %s; build the "
                "index anew, or put the model back and start again",
                index_id,
                info.embedder_identity,
                info.settings.embedder,
                loaded.identity,
            )
            return None, "its embedding model is not the one that the index was built with"
        self._embedders[loaded.identity] = SharedEmbedder(loaded)
        return self._embedders[loaded.identity], ""
