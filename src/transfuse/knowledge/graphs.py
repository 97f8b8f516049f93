"""The HNSW graph of an index: built, changed, mapped; usearch does the work."""

import errno
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import NonNegativeInt, ValidationError

from transfuse.errors import IndexFolderError, MissingExtraError
from transfuse.io.files import atomic_file, write_json
from transfuse.knowledge.records import HnswSettings
from transfuse.types import StrictModel

if TYPE_CHECKING:
    from usearch.index import Index

KEYS_FILE, GRAPH_FILE, STATE_FILE = "keys.npy", "hnsw.usearch", "graph.json"
MAX_REMOVED_SHARE = 0.3
"""Where more nodes than this share of those left were removed since the graph was built, it is built anew."""
_ADDED_AT_ONCE = 4096
_INSTALL = "pip install 'transfuse[index]'"

OnVectors = Callable[[int, int], None]
"""Called from time to time with the number of vectors put into the graph and that of all."""


class GraphState(StrictModel):
    """What is to be known of a graph when it is changed."""

    next_key: NonNegativeInt
    """Keys below this have been given to nodes of this graph; none is given again."""
    n_removed: NonNegativeInt = 0
    """Nodes removed since it was built."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """What of an earlier graph is still wanted."""

    folder: Path
    """Holds its files."""
    rows: np.ndarray
    """For each row now, the one it was then, or -1 where it is new."""


def save_graph(
    folder: Path,
    vectors: Float32[np.ndarray, "rows dims"],
    settings: HnswSettings,
    *,
    earlier: Earlier | None = None,
    on_vectors: OnVectors | None = None,
) -> None:
    """Write the graph of some vectors, by changing an earlier one where that is less work.

    Nodes are added by all cores in turns, so that graphs of the same vectors differ a little from one another; with
    one core (`taskset -c 0`) they are the same to the byte.

    Args:
        folder: where its files are written.
        vectors: rows of length 1.
        settings: of the graph.
        earlier: a graph of some of them, and perhaps of others.
        on_vectors: told how many have been added.

    Raises:
        IndexFolderError: the earlier graph cannot be read.
        RunFolderError: the files cannot be written.
        MissingExtraError: usearch is not installed.
    """
    check_usearch()
    changed = _changed(earlier, len(vectors), settings) if earlier else None
    graph = changed or _empty(vectors, settings)
    new_rows = np.flatnonzero(graph.keys < 0)
    next_key = graph.state.next_key + len(new_rows)
    graph.keys[new_rows] = np.arange(graph.state.next_key, next_key)
    if on_vectors:
        on_vectors(0, len(new_rows))
    for start in range(0, len(new_rows), _ADDED_AT_ONCE):
        rows = new_rows[start : start + _ADDED_AT_ONCE]
        graph.nodes.add(graph.keys[rows], vectors[rows], threads=_n_cores())
        if on_vectors:
            on_vectors(start + len(rows), len(new_rows))
    state = GraphState(next_key=next_key, n_removed=graph.state.n_removed)
    write_json(folder / STATE_FILE, state.model_dump())
    with atomic_file(folder / KEYS_FILE) as temporary, temporary.open("wb") as file:
        np.save(file, graph.keys)
    with atomic_file(folder / GRAPH_FILE) as temporary:
        try:
            graph.nodes.save(temporary)
        except RuntimeError as err:  # usearch does not say what the system refused
            is_full = shutil.disk_usage(folder).free < graph.nodes.serialized_length
            raise OSError(errno.ENOSPC if is_full else errno.EIO, str(err)) from err


@final
class MappedGraph:
    """A graph, memory-mapped and read-only; many threads may search at once.

    A usearch index keeps the search breadth and the candidates of a search in the object, and searches without
    holding Python's lock: two threads must not search one object at once. So each search borrows a view from a pool,
    which grows to the number of searches that ever ran at the same time. All views read one memory map; each takes
    8 bytes a node, and some milliseconds to open.
    """

    def __init__(self, graph: mmap, keys: Int64[np.ndarray, " rows"]) -> None:
        """Open a first view, so that damage shows now.

        Args:
            graph: the bytes of its file.
            keys: the key of each row.

        Raises:
            ValueError: these are not the bytes of a graph of so many nodes.
        """
        self._bytes = graph
        self._row_by_key = np.argsort(keys, kind="stable")
        self._keys = keys[self._row_by_key]
        self._views = [self._opened()]
        if len(self._views[0]) != len(keys):
            raise ValueError(f"{GRAPH_FILE} holds {len(self._views[0])} nodes, {KEYS_FILE} {len(keys)}")

    @classmethod
    def load(cls, folder: Path, *, n_rows: int) -> "MappedGraph":
        """Map the files that `save_graph` wrote.

        Args:
            folder: holds them; may be removed afterwards.
            n_rows: how many rows there must be.

        Returns:
            The graph.

        Raises:
            OSError: a file is missing.
            ValueError: the files are damaged, or of another number of rows.
            MissingExtraError: usearch is not installed.
        """
        check_usearch()
        keys = np.load(folder / KEYS_FILE, allow_pickle=False)
        if keys.shape != (n_rows,):
            raise ValueError(f"{KEYS_FILE} is of shape {keys.shape}, expected ({n_rows},)")
        with (folder / GRAPH_FILE).open("rb") as file:
            return cls(mmap(file.fileno(), 0, access=ACCESS_READ), keys)

    def search(
        self, queries: Float32[np.ndarray, "queries dims"], n_hits: int, breadth: int
    ) -> tuple[Int64[np.ndarray, "queries hits"], Float32[np.ndarray, "queries hits"]]:
        """The rows that the graph leads to, nearest first, ties by row.

        Args:
            queries: of length 1.
            n_hits: how many rows for each.
            breadth: how many candidates are weighed, at least `n_hits`.

        Returns:
            Rows and cosines; -1 and -inf at the end where the graph led to fewer rows.
        """
        rows = np.full((len(queries), n_hits), -1, dtype=np.int64)
        cosines = np.full((len(queries), n_hits), -np.inf, dtype=np.float32)
        with self._view() as view:
            view.expansion_search = breadth
            for place, query in enumerate(queries):
                found = view.search(query, n_hits, threads=1)
                hits = self._row_by_key[np.searchsorted(self._keys, found.keys.astype(np.int64))]
                near = 1 - np.asarray(found.distances, dtype=np.float32)
                order = np.lexsort((hits, -near))
                rows[place, : len(hits)], cosines[place, : len(hits)] = hits[order], near[order]
        return rows, cosines

    @contextmanager
    def _view(self) -> "Iterator[Index]":
        """A view that nobody else uses meanwhile."""
        try:
            view = self._views.pop()  # atomic, as is append
        except IndexError:
            view = self._opened()
        try:
            yield view
        finally:
            self._views.append(view)

    def _opened(self) -> "Index":
        from usearch.index import Index

        try:
            view = Index.restore(memoryview(self._bytes), view=True, enable_key_lookups=False)
        except RuntimeError as err:
            raise ValueError(f"{GRAPH_FILE}: {err}") from err
        if view is None:
            raise ValueError(f"{GRAPH_FILE} holds no graph")
        return view


@dataclass(frozen=True, slots=True)
class _Graph:
    """A graph that is being changed."""

    nodes: "Index"
    keys: np.ndarray
    """The key of each row; -1 where it is yet to be added."""
    state: GraphState


def _changed(earlier: Earlier, n_rows: int, settings: HnswSettings) -> _Graph | None:
    """An earlier graph without the nodes that are no longer wanted; none where too many are gone."""
    from usearch.index import Index

    try:
        state = GraphState.model_validate_json((earlier.folder / STATE_FILE).read_bytes())
        earlier_keys = np.load(earlier.folder / KEYS_FILE, allow_pickle=False)
        is_kept = earlier.rows >= 0
        gone = np.setdiff1d(earlier_keys, earlier_keys[earlier.rows[is_kept]])
        state = GraphState(next_key=state.next_key, n_removed=state.n_removed + len(gone))
        if state.n_removed > MAX_REMOVED_SHARE * n_rows:
            return None
        graph = Index.restore(earlier.folder / GRAPH_FILE, expansion_add=settings.expansion_add)
        if graph is None:
            raise ValueError("holds no graph")
        if len(gone):
            graph.remove(gone, threads=_n_cores())
    except (OSError, ValueError, RuntimeError, ValidationError) as err:
        raise IndexFolderError(
            f"{earlier.folder / GRAPH_FILE}: cannot be read ({err}); build the index anew with --overwrite."
        ) from err
    keys = np.full(n_rows, -1)
    keys[is_kept] = earlier_keys[earlier.rows[is_kept]]
    return _Graph(graph, keys, state)


def _empty(vectors: Float32[np.ndarray, "rows dims"], settings: HnswSettings) -> _Graph:
    from usearch.index import Index

    graph = Index(
        ndim=vectors.shape[1],
        metric="cos",  # as fast as "ip", and right for vectors whose length is no longer 1 once they are rounded
        dtype=settings.dtype,
        connectivity=settings.connectivity,
        expansion_add=settings.expansion_add,
    )
    return _Graph(graph, np.full(len(vectors), -1), GraphState(next_key=0))


def check_usearch() -> None:
    """Refuse a graph where usearch is not installed; raises MissingExtraError."""
    if importlib.util.find_spec("usearch") is None:
        raise MissingExtraError(f"an index of this size needs usearch: {_INSTALL}")


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
