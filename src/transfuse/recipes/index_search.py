"""Searches a knowledge index, and says what one holds, for a person or as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from transfuse.knowledge.index import check_request, open_index
from transfuse.knowledge.records import Hit, Rerank, SearchMode
from transfuse.knowledge.vectors import DEFAULT_LEVEL

N_SHOWN = 20
"""Documents that a table lists."""


def search_index(
    index: Path,
    question: str,
    *,
    top_n: int = 10,
    mode: SearchMode | str = "hybrid",
    level: int | None = None,
    is_reranked: bool = False,
    reranker: str | None = None,
    trust_remote_code: bool = False,
) -> list[Hit]:
    """The passages of an index that fit a question best.

    Args:
        index: its folder.
        question: any text.
        top_n: how many.
        mode: `hybrid`, `dense` or `lexical`; the last needs no embedding model.
        level: effort of the search in a graph, 0 to 4; None takes the default.
        is_reranked: whether the candidates are scored again.
        reranker: reference of a cross-encoder that does so; None compares the vectors in full precision.
        trust_remote_code: whether Python code that comes with the embedding model may run.

    Returns:
        The hits, best first.

    Raises:
        DataError: an empty question, `top_n` below 1, no such mode or level.
        IndexFolderError: no index is there, it is damaged, or its embedding model has changed since it was built.
        ModelError: a model cannot be loaded.
        MissingExtraError: a package is not installed.
    """
    level = DEFAULT_LEVEL if level is None else level
    check_request([question], mode, top_n, level)
    opened = open_index(index)
    rerank: Rerank = "exact" if is_reranked else None
    if reranker is not None:
        from transfuse.knowledge.reranking import load_reranker

        rerank = load_reranker(reranker)
    embedder = None
    if mode != "lexical":
        from transfuse.knowledge.embeddings import load_embedder

        embedder = load_embedder(opened.info.settings.embedder, trust_remote_code=trust_remote_code)
    (hits,) = opened.search([question], embedder, top_n=top_n, mode=mode, level=level, rerank=rerank)  # type: ignore[arg-type] - checked above
    return hits


def hits_text(hits: Sequence[Hit]) -> str:
    """Hits for a person to read.

    Args:
        hits: best first.

    Returns:
        Rank, score, id, document, heading path and page of each on a line, its text below.
    """
    if not hits:
        return "Nothing was found: no passage shares a word with the question."
    return "\n\n".join(
        f"{_headline(rank, hit)}\n{hit.passage.text}" for rank, hit in enumerate(hits, start=1)
    )


def _headline(rank: int, hit: Hit) -> str:
    passage = hit.passage
    where = [passage.document, " > ".join(passage.heading_path)]
    where += [f"page {passage.page}"] if passage.page is not None else []
    return f"{rank}. {hit.score:.4f}  {passage.id}  {' | '.join(part for part in where if part)}"


def hit_trees(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """Hits as JSON values.

    Args:
        hits: best first.

    Returns:
        Rank, id, score, metadata and text of each.
    """
    return [
        {
            "rank": rank,
            "id": hit.passage.id,
            "score": hit.score,
            "metadata": {
                "document": hit.passage.document,
                "heading_path": list(hit.passage.heading_path),
                "page": hit.passage.page,
                "span": list(hit.passage.span),
            },
            "text": hit.passage.text,
        }
        for rank, hit in enumerate(hits, start=1)
    ]


def info_tree(index: Path, *, verify: bool = False) -> dict[str, Any]:
    """What an index says of itself, with its documents, as JSON values.

    Args:
        index: its folder.
        verify: whether the checksums of all files are compared.

    Returns:
        The contents of `index.json`, and the documents.

    Raises:
        IndexFolderError: no index is there, it is damaged, or of another format.
    """
    opened = open_index(index, verify=verify)
    documents = [asdict(document) for document in opened.documents()]
    return {**opened.info.model_dump(mode="json"), "documents": documents}


def info_table(index: Path, *, verify: bool = False) -> Table:
    """What an index holds, and what it was made with, as a table.

    Args:
        index: its folder.
        verify: whether the checksums of all files are compared.

    Returns:
        One row each.

    Raises:
        IndexFolderError: no index is there, it is damaged, or of another format.
    """
    opened = open_index(index, verify=verify)
    info, settings = opened.info, opened.info.settings
    cut = settings.passages
    graph = settings.hnsw
    kinds = {
        "exact": f"exact (fewer than {graph.exact_below:,} passages)",
        "hnsw": f"HNSW (connectivity {graph.connectivity}, expansion_add {graph.expansion_add}, {graph.dtype})",
    }
    headings = "with headings" if cut.headings else "without headings"
    stemmer = f"stemmer {settings.lexical.stemmer}" if settings.lexical.stemmer else "words kept whole"
    rows = {
        "index": str(index),
        "passages": f"{info.n_passages:,} of {counted(info.n_documents, 'document')}",
        "passage length": f"at most {cut.max_tokens} tokens, {headings}; overlap at most {cut.overlap_tokens}",
        "embedding model": f"{settings.embedder}, {info.n_dimensions} dimensions",
        "model identity": info.embedder_identity,
        "search by meaning": f"{info.metric}, {kinds[info.index_type]}",
        "search by words": f"BM25 (k1 {settings.lexical.k1}, b {settings.lexical.b}, {stemmer})",
        "created": info.created,
        "updated": info.updated,
        "size": f"{info.n_bytes / 2**20:.1f} MiB in {len(info.files)} files",
        "checksums": "all files are as they were written"
        if verify
        else "not compared (--verify compares them)",
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    documents = opened.documents()
    for place, document in enumerate(documents[:N_SHOWN]):
        size = counted(document.n_passages, "passage")
        table.add_row("" if place else "documents", f"{document.name} ({size})")
    if len(documents) > N_SHOWN:
        table.add_row("", f"and {len(documents) - N_SHOWN:,} more (--json lists them)")
    return table


def counted(n: int, noun: str) -> str:
    """A number with its noun: `1 passage`, `2,000 passages`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
