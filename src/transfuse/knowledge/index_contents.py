"""What a generation of an index holds, read from its files and written to new ones."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from transfuse.errors import DataError
from transfuse.io.files import atomic_file, write_json
from transfuse.io.jsonl import read_jsonl, write_jsonl
from transfuse.knowledge.embeddings import OnTexts, RetrievalEmbedder
from transfuse.knowledge.graphs import Earlier, OnVectors, check_usearch, save_graph
from transfuse.knowledge.index import DOCUMENTS_FILE, LEXICAL_FOLDER, IndexedDocument, read_document_list
from transfuse.knowledge.index_files import file_checksums, make_current, new_generation
from transfuse.knowledge.lexical import LexicalIndex
from transfuse.knowledge.passage_files import PassageFile, save_passages
from transfuse.knowledge.passages import searched_text
from transfuse.knowledge.records import IndexInfo, IndexSettings, Passage
from transfuse.knowledge.vectors import VECTORS_FILE, unit_vectors
from transfuse.types import Dropped

DROPPED_FILE = "dropped.jsonl"


@dataclass(frozen=True, slots=True)
class CutDocument:
    """A document as an index holds it."""

    entry: IndexedDocument
    passages: list[Passage]
    dropped: list[Dropped]
    """What of it is not in the index."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Documents, and what was left out when their files were read."""

    documents: list[CutDocument]
    unread: list[Dropped]

    @property
    def passages(self) -> list[Passage]:
        """Of all documents, in order: row n of every file of an index."""
        return [passage for document in self.documents for passage in document.passages]


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation that is changed."""

    folder: Path
    info: IndexInfo
    contents: Contents


@dataclass(frozen=True, slots=True)
class Written:
    """A generation that counts now."""

    info: IndexInfo
    n_embedded: int
    """Passages whose vectors were not there before."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Who is told how far the writing is."""

    on_texts: OnTexts | None = None
    on_vectors: OnVectors | None = None


def read_generation(folder: Path, info: IndexInfo) -> Generation:
    """A generation with what it was written from.

    Args:
        folder: the generation's; its checksums have been compared.
        info: what `index.json` says.

    Returns:
        Its documents with their passages.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged.
    """
    file = PassageFile.load(folder)
    passages = (file[row] for row in range(len(file)))
    dropped: dict[str | None, list[Dropped]] = {}
    for line in read_jsonl(folder / DROPPED_FILE):
        row: dict[str, Any] = line.value
        dropped.setdefault(row["document"], []).append(Dropped(row["kind"], row["what"], row["reason"]))
    documents = [
        CutDocument(entry, list(islice(passages, entry.n_passages)), dropped.get(entry.name, []))
        for entry in read_document_list(folder)
    ]
    return Generation(folder, info, Contents(documents, dropped.get(None, [])))


def write_contents(
    path: Path,
    info: IndexInfo,
    contents: Contents,
    embedder: RetrievalEmbedder | None,
    *,
    before: Generation | None,
    progress: Progress,
) -> Written:
    """Write a generation and make it the one that counts.

    Args:
        path: the index's folder, which the caller holds.
        info: what the index says of itself, but for what follows from the files.
        contents: what is to be written.
        embedder: embeds passages that are new; may be None where there are none.
        before: the generation that is changed; its vectors are used again.
        progress: who is told.

    Returns:
        The index's new `info`, and how many passages were embedded.

    Raises:
        DataError: the model gives no usable vectors.
        IndexFolderError: the earlier graph cannot be read.
        RunFolderError: the files cannot be written.
        MissingExtraError: a package that an index needs is not installed.
    """
    passages = contents.passages
    headings = info.settings.passages.headings
    has_graph = bool(passages) and len(passages) >= info.settings.hnsw.exact_below
    check_installed(info.settings, has_graph=has_graph)
    with new_generation(path) as folder:
        earlier_rows = _earlier_rows(passages, before)
        vectors = np.empty((len(passages), info.n_dimensions), dtype=np.float32)
        if before is not None:
            is_known = earlier_rows >= 0
            earlier_vectors = np.load(before.folder / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
            vectors[is_known] = earlier_vectors[earlier_rows[is_known]]
        new_rows = np.flatnonzero(earlier_rows < 0)
        if len(new_rows) and embedder is not None:
            new = [passages[row] for row in new_rows]
            if progress.on_texts:
                progress.on_texts(0, len(new))
            vectors[new_rows] = _embedded(new, embedder, headings=headings, on_texts=progress.on_texts)
        texts = [searched_text(passage, headings=headings) for passage in passages]
        LexicalIndex.build(texts, info.settings.lexical).save(folder / LEXICAL_FOLDER)
        save_passages(folder, passages)
        _save_documents(folder, contents)
        with atomic_file(folder / VECTORS_FILE) as temporary, temporary.open("wb") as file:
            np.save(file, vectors)
        if has_graph:
            has_earlier = before is not None and before.info.index_type == "hnsw"
            earlier = Earlier(before.folder, earlier_rows) if before is not None and has_earlier else None
            save_graph(folder, vectors, info.settings.hnsw, earlier=earlier, on_vectors=progress.on_vectors)
        files, n_bytes = file_checksums(folder)
    info = info.model_copy(
        update={
            "index_type": "hnsw" if has_graph else "exact",
            "n_documents": len(contents.documents),
            "n_passages": len(passages),
            "generation": folder.name,
            "files": files,
            "n_bytes": n_bytes,
        }
    )
    make_current(path, info)
    return Written(info, len(new_rows))


def check_installed(settings: IndexSettings, *, has_graph: bool) -> None:
    """Refuse early what would fail when everything is embedded.

    Args:
        settings: of the index.
        has_graph: whether it needs a graph.

    Raises:
        DataError: there is no such stemmer.
        MissingExtraError: a package that an index needs is not installed.
    """
    LexicalIndex.build(["one text"], settings.lexical)
    if has_graph:
        check_usearch()


def _earlier_rows(passages: Sequence[Passage], before: Generation | None) -> Int64[np.ndarray, " rows"]:
    """For each passage its row in the generation that is changed, or -1."""
    earlier = before.contents.passages if before else []
    row_of = {passage.id: row for row, passage in enumerate(earlier)}
    return np.array([row_of.get(passage.id, -1) for passage in passages], dtype=np.int64)


def _embedded(
    passages: Sequence[Passage], embedder: RetrievalEmbedder, *, headings: bool, on_texts: OnTexts | None
) -> Float32[np.ndarray, "passages dims"]:
    texts = [searched_text(passage, headings=headings) for passage in passages]
    vectors = embedder.embed_passages(texts, on_texts)
    try:
        return unit_vectors(vectors, embedder.n_dimensions)
    except DataError as err:
        raise DataError(
            f"the embedding model gave {len(texts)} passages unusable vectors: {err} Choose another model."
        ) from err


def _save_documents(folder: Path, contents: Contents) -> None:
    write_json(folder / DOCUMENTS_FILE, [asdict(document.entry) for document in contents.documents])
    of_documents = [
        (document.entry.name, drop) for document in contents.documents for drop in document.dropped
    ]
    rows = [(None, drop) for drop in contents.unread] + of_documents
    write_jsonl(folder / DROPPED_FILE, ({"document": name, **asdict(drop)} for name, drop in rows))
