"""Nearest vectors by cosine: every one compared, or by a graph (HNSW) that compares few."""

from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Float32, Int64

from transfuse.errors import DataError
from transfuse.knowledge.graphs import MappedGraph

LEVELS = (16, 32, 48, 64, 96)
"""Search breadth (`expansion_search`) of levels 0 to 4: how many candidates the graph search weighs."""
DEFAULT_LEVEL = 3
VECTORS_FILE = "vectors.npy"
_SCORES_AT_ONCE = 1 << 24  # 64 MiB of float32


@final
class VectorIndex:
    """The vectors of an index, memory-mapped and read-only; many threads may search at once."""

    def __init__(self, vectors: Float32[np.ndarray, "rows dims"], graph: MappedGraph | None = None) -> None:
        """Take what is there.

        Args:
            vectors: rows of length 1.
            graph: finds the nearest of them; none compares every vector.
        """
        self._vectors = vectors
        self._graph = graph

    @classmethod
    def load(cls, folder: Path, *, has_graph: bool) -> "VectorIndex":
        """Map the files of an index.

        Args:
            folder: holds them; may be removed afterwards.
            has_graph: whether a graph is among them.

        Returns:
            The index; no vectors are copied into memory.

        Raises:
            OSError: a file is missing.
            ValueError: a file is damaged.
            MissingExtraError: usearch is not installed.
        """
        vectors = np.load(folder / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
        return cls(vectors, MappedGraph.load(folder, n_rows=len(vectors)) if has_graph else None)

    @property
    def n_dimensions(self) -> int:
        """Length of a vector."""
        return self._vectors.shape[1]

    def __len__(self) -> int:
        return len(self._vectors)

    def search(
        self,
        vectors: Float32[np.ndarray, "queries dims"],
        top_n: int,
        level: int = DEFAULT_LEVEL,
        *,
        exact: bool = False,
    ) -> tuple[Int64[np.ndarray, "queries hits"], Float32[np.ndarray, "queries hits"]]:
        """The nearest rows of each query, nearest first, ties by row.

        Args:
            vectors: queries of any length but 0.
            top_n: how many; all rows where there are fewer.
            level: of effort, an index into `LEVELS`; without effect where every vector is compared.
            exact: compare every vector although there is a graph.

        Returns:
            Rows, and their cosines; those of a graph are as precise as its vectors.

        Raises:
            DataError: a query has another number of dimensions, is not finite or zero; no such level; `top_n` < 1.
        """
        check_search(top_n, level)
        queries = unit_vectors(vectors, self.n_dimensions)
        n_hits = min(top_n, len(self))
        if exact or self._graph is None or not n_hits:
            return _exact_search(self._vectors, queries, n_hits)
        rows, cosines = self._graph.search(queries, n_hits, LEVELS[level])
        if (missed := np.flatnonzero((rows < 0).any(axis=1))).size:
            rows[missed], cosines[missed] = _exact_search(self._vectors, queries[missed], n_hits)
        return rows, cosines

    def cosines(
        self, vector: Float32[np.ndarray, " dims"], rows: Int64[np.ndarray, " hits"]
    ) -> Float32[np.ndarray, " hits"]:
        """Exact cosines of a query and some rows, from the vectors in full precision."""
        query = unit_vectors(vector[None], self.n_dimensions)[0]
        return np.asarray(self._vectors[rows] @ query, dtype=np.float32)


def check_search(top_n: int, level: int) -> None:
    """Refuse a number of hits, or a level, that there is not; raises DataError."""
    if top_n < 1:
        raise DataError(f"top_n: expected at least 1, got {top_n}.")
    if not 0 <= level < len(LEVELS):
        raise DataError(f"level: expected 0 (fastest) to {len(LEVELS) - 1} (most thorough), got {level}.")


def unit_vectors(vectors: np.ndarray, n_dimensions: int) -> Float32[np.ndarray, "rows dims"]:
    """Vectors scaled to length 1.

    Args:
        vectors: one a row.
        n_dimensions: what each must have.

    Returns:
        The same directions in float32.

    Raises:
        DataError: another number of dimensions, a value that is not finite, or a vector of zeros (the row is named).
    """
    if vectors.ndim != 2 or vectors.shape[1] != n_dimensions:
        raise DataError(
            f"vectors: expected {n_dimensions} numbers each, as the index has, got {vectors.shape[-1]}; embed with "
            "the index's own model."
        )
    rows = vectors.astype(np.float64)
    for problem, is_wrong in (
        ("a number that is not finite", ~np.isfinite(rows).all(axis=1)),
        ("only zeros, which point nowhere", ~rows.any(axis=1)),
    ):
        if is_wrong.any():
            raise DataError(f"vector {int(np.argmax(is_wrong))}: expected finite numbers, got {problem}.")
    rows /= np.abs(rows).max(axis=1, keepdims=True, initial=0)  # so that no square overflows or vanishes
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _exact_search(
    vectors: Float32[np.ndarray, "rows dims"], queries: Float32[np.ndarray, "queries dims"], n_hits: int
) -> tuple[Int64[np.ndarray, "queries hits"], Float32[np.ndarray, "queries hits"]]:
    """Every row compared with every query, as many queries at once as memory allows."""
    rows = np.empty((len(queries), n_hits), dtype=np.int64)
    cosines = np.empty((len(queries), n_hits), dtype=np.float32)
    if not n_hits:
        return rows, cosines
    n_at_once = max(1, _SCORES_AT_ONCE // len(vectors))
    for start in range(0, len(queries), n_at_once):
        scores = queries[start : start + n_at_once] @ vectors.T
        for place, row_scores in enumerate(scores, start=start):
            least = np.partition(row_scores, -n_hits)[-n_hits]
            near = np.flatnonzero(row_scores >= least)
            rows[place] = near[np.argsort(-row_scores[near], kind="stable")][:n_hits]
            cosines[place] = row_scores[rows[place]]
    return rows, cosines
