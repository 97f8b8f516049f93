"""A knowledge index, open for searching: by meaning, by words, or by both."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final, get_args

import numpy as np
from jaxtyping import Float32, Int64

from transfuse.errors import DataError, IndexFolderError
from transfuse.knowledge.embeddings import RetrievalEmbedder
from transfuse.knowledge.index_files import INFO_FILE, open_generation, read_info
from transfuse.knowledge.lexical import LexicalIndex
from transfuse.knowledge.passage_files import PassageFile
from transfuse.knowledge.passages import searched_text
from transfuse.knowledge.records import Hit, IndexInfo, Rerank, Reranker, SearchMode
from transfuse.knowledge.vectors import DEFAULT_LEVEL, LEVELS, VectorIndex, check_search
from transfuse.tensors.rank_fusion import reciprocal_rank_fusion

DOCUMENTS_FILE, LEXICAL_FOLDER = "documents.json", "lexical"
N_RERANKED = 50
"""Hits that a reranker reads; `top_n`, where that is more."""
_N_CANDIDATES, _CANDIDATES_PER_HIT = 100, 4


@dataclass(frozen=True, slots=True)
class IndexedDocument:
    """A document of an index."""

    name: str
    """`Document.name`."""
    sha256: str
    """Of its text."""
    n_passages: int


class _Ranking(NamedTuple):
    """Best first."""

    rows: Int64[np.ndarray, " hits"]
    scores: Float32[np.ndarray, " hits"]


def open_index(path: Path, *, verify: bool = False) -> "KnowledgeIndex":
    """Open an index for searching; its files are mapped into memory, not read.

    Args:
        path: the index's folder.
        verify: also compare the checksums of all files.

    Returns:
        The index as it is now; a writer's later changes do not touch it.

    Raises:
        IndexFolderError: no index is there, it is damaged, or of another format.
        MissingExtraError: a package that searches it is not installed.
    """
    return open_generation(path, lambda folder, info: KnowledgeIndex(path, folder, info), verify=verify)


def read_document_list(folder: Path) -> list[IndexedDocument]:
    """The documents of a generation.

    Args:
        folder: the generation's.

    Returns:
        One record each, in the order of their passages.

    Raises:
        OSError: the file is missing.
        ValueError: the file is damaged.
    """
    rows = json.loads((folder / DOCUMENTS_FILE).read_text(encoding="utf-8"))
    return [IndexedDocument(str(row["name"]), str(row["sha256"]), int(row["n_passages"])) for row in rows]


@final
class KnowledgeIndex:
    """An open index: read-only, and safe between threads."""

    def __init__(self, path: Path, folder: Path, info: IndexInfo) -> None:
        """Map the files of a generation; `open_index` finds the one that counts.

        Args:
            path: the index's folder.
            folder: the generation's, inside it.
            info: what `index.json` says.
        """
        self.path = path
        self.info = info
        self._documents = read_document_list(folder)
        self._passages = PassageFile.load(folder)
        self._vectors = VectorIndex.load(folder, has_graph=info.index_type == "hnsw")
        self._lexical = LexicalIndex.load(folder / LEXICAL_FOLDER, info.settings.lexical)
        self._info_file_seen: tuple[int, int, int] | None = None
        counts = [info.n_passages, len(self._passages), len(self._vectors), len(self._lexical)]
        if len(set(counts)) > 1 or self._vectors.n_dimensions != info.n_dimensions:
            raise ValueError(f"the files do not fit one another: they hold {counts} passages")

    def documents(self) -> list[IndexedDocument]:
        """The documents whose passages are searched, in the order of these."""
        return list(self._documents)

    def is_current(self) -> bool:
        """Whether this is still what `index.json` names: False once a newer generation is there, or the index gone.

        Costs one look at the file's status as long as nothing was written.
        """
        try:
            status = (self.path / INFO_FILE).stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen != self._info_file_seen:
                if read_info(self.path).generation != self.info.generation:
                    return False
                self._info_file_seen = seen
        except (OSError, IndexFolderError):
            return False
        return True

    def search(
        self,
        queries: Sequence[str],
        embedder: RetrievalEmbedder | None,
        *,
        top_n: int = 10,
        mode: SearchMode = "hybrid",
        level: int = DEFAULT_LEVEL,
        rerank: Rerank = None,
    ) -> list[list[Hit]]:
        """The passages that fit each query best.

        Args:
            queries: questions or other texts, none of them empty.
            embedder: the model that the index was built with; may be None where the mode is `lexical`.
            top_n: how many passages for each; fewer where there are no more (mode `lexical`: that share a word).
            mode: `hybrid` adds the reciprocal ranks of both lists.
            level: effort of the graph's search, 0 to 4; without effect where every vector is compared.
            rerank: `exact` puts the candidates of either list in the order of their exact cosines before the ranks
                are added (mode `lexical` has no cosines: nothing changes); a reranker reads the best 50 candidates,
                or `top_n` where that is more, and alone decides their order.

        Returns:
            For each query its hits, best first.

        Raises:
            DataError: an empty query, `top_n` below 1, no such mode or level.
            IndexFolderError: the embedder is another than that of the index.
        """
        check_request(queries, mode, top_n, level)
        n_wanted = max(top_n, N_RERANKED) if callable(rerank) else top_n
        n_candidates = max(_N_CANDIDATES, _CANDIDATES_PER_HIT * n_wanted)
        if mode == "lexical":
            rankings = [_Ranking(*self._lexical.search(query, n_wanted)) for query in queries]
        else:
            vectors = self._embedded(queries, embedder)
            if mode == "dense":
                rankings = self._dense(vectors, n_wanted, level, is_exact=rerank == "exact")
            else:
                dense = self._dense(vectors, self._n_dense(n_wanted, level), level, is_exact=False)
                rankings = [
                    self._fused(vector, near, self._lexical.search(query, n_candidates)[0], n_wanted, rerank)
                    for query, vector, near in zip(queries, vectors, dense, strict=True)
                ]
        hits = [self._hits(ranking) for ranking in rankings]
        if callable(rerank):
            hits = [self._reranked(query, found, rerank) for query, found in zip(queries, hits, strict=True)]
        return [found[:top_n] for found in hits]

    def search_vectors(
        self,
        vectors: Float32[np.ndarray, "queries dims"],
        *,
        top_n: int = 10,
        level: int = DEFAULT_LEVEL,
        rerank: bool = False,
    ) -> list[list[Hit]]:
        """The passages nearest to each vector.

        Args:
            vectors: of the index's own model; of any length but 0.
            top_n: how many passages for each; all where there are fewer.
            level: effort of the graph's search, 0 to 4.
            rerank: whether candidates of the graph's search are ordered by exact cosines.

        Returns:
            For each vector its hits, best first.

        Raises:
            DataError: a vector has another number of dimensions, is not finite or zero; `top_n` below 1; no such level.
        """
        return [self._hits(ranking) for ranking in self._dense(vectors, top_n, level, is_exact=rerank)]

    def _embedded(
        self, queries: Sequence[str], embedder: RetrievalEmbedder | None
    ) -> Float32[np.ndarray, "queries dims"]:
        if embedder is None:
            raise DataError(
                "a search by meaning needs the embedding model; give it, or search in mode 'lexical'."
            )
        check_embedder(self.path, self.info, embedder)
        return embedder.embed_queries(queries)

    def _n_dense(self, n_wanted: int, level: int) -> int:
        """How many candidates by meaning: more than a level's breadth would make that level as slow as the next."""
        breadth = LEVELS[level] if self.info.index_type == "hnsw" else _N_CANDIDATES
        return max(_CANDIDATES_PER_HIT * n_wanted, min(breadth, _N_CANDIDATES))

    def _dense(
        self, vectors: Float32[np.ndarray, "queries dims"], n_wanted: int, level: int, *, is_exact: bool
    ) -> list[_Ranking]:
        """By cosine; exact ones are ordered among more candidates than are wanted."""
        check_search(n_wanted, level)
        if not is_exact or self.info.index_type == "exact":
            found = self._vectors.search(vectors, n_wanted, level)
            return [_Ranking(*each) for each in zip(*found, strict=True)]
        rows, _ = self._vectors.search(vectors, self._n_dense(n_wanted, level), level)
        return [
            self._by_cosine(vector, np.sort(near), n_wanted)
            for vector, near in zip(vectors, rows, strict=True)
        ]

    def _by_cosine(
        self, vector: Float32[np.ndarray, " dims"], rows: Int64[np.ndarray, " rows"], n_wanted: int
    ) -> _Ranking:
        """Rows, given in ascending order, by exact cosine; equal ones by row."""
        cosines = self._vectors.cosines(vector, rows)
        best_first = np.argsort(-cosines, kind="stable")[:n_wanted]
        return _Ranking(rows[best_first], cosines[best_first])

    def _fused(
        self,
        vector: Float32[np.ndarray, " dims"],
        dense: _Ranking,
        lexical: Int64[np.ndarray, " hits"],
        n_wanted: int,
        rerank: Rerank,
    ) -> _Ranking:
        near = dense.rows
        if rerank == "exact":
            candidates = np.union1d(dense.rows, lexical)
            near = self._by_cosine(vector, candidates, len(candidates)).rows
        return _Ranking(*reciprocal_rank_fusion([near, lexical], n_wanted))

    def _hits(self, ranking: _Ranking) -> list[Hit]:
        return [
            Hit(self._passages[int(row)], float(score))
            for row, score in zip(ranking.rows, ranking.scores, strict=True)
        ]

    def _reranked(self, query: str, hits: list[Hit], reranker: Reranker) -> list[Hit]:
        if not hits:
            return []
        headings = self.info.settings.passages.headings
        scores = reranker(query, [searched_text(hit.passage, headings=headings) for hit in hits])
        scored = [Hit(hit.passage, float(score)) for hit, score in zip(hits, scores, strict=True)]
        return sorted(scored, key=lambda hit: -hit.score)


def check_embedder(path: Path, info: IndexInfo, embedder: RetrievalEmbedder) -> None:
    """Refuse an embedding model that is not the index's own.

    Args:
        path: the index's folder, to be named.
        info: what the index says of itself.
        embedder: the model at hand.

    Raises:
        IndexFolderError: its identity or its number of dimensions differs (both models are named).
    """
    if (embedder.identity, embedder.n_dimensions) != (info.embedder_identity, info.n_dimensions):
        raise IndexFolderError(
            f"{path}: was built with the embedding model {info.settings.embedder!r} ({info.embedder_identity}, "
            f"{info.n_dimensions} dimensions), got one that is {embedder.identity} ({embedder.n_dimensions} "
            "dimensions), whose vectors mean something else; use the model it was built with, or build it anew."
        )


def check_request(queries: Sequence[str], mode: str, top_n: int, level: int) -> None:
    """Refuse what cannot be searched for.

    Args:
        queries: none may be empty.
        mode: one of `SearchMode`.
        top_n: at least 1.
        level: an index into `LEVELS`.

    Raises:
        DataError: one of them is not so.
    """
    if mode not in get_args(SearchMode):
        raise DataError(f"mode: expected {', '.join(get_args(SearchMode))}, got {mode!r}.")
    for query in queries:
        if not query.strip():
            raise DataError(f"question: expected words, got {query!r}.")
    check_search(top_n, level)
