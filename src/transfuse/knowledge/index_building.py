"""Makes and changes knowledge indexes: each change writes a new generation, until then the old one stays whole."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from transfuse.errors import DataError, RecipeError
from transfuse.knowledge.embeddings import OnTexts, RetrievalEmbedder
from transfuse.knowledge.graphs import OnVectors
from transfuse.knowledge.index import IndexedDocument, check_embedder
from transfuse.knowledge.index_contents import (
    Contents,
    CutDocument,
    Generation,
    Progress,
    check_installed,
    read_generation,
    write_contents,
)
from transfuse.knowledge.index_files import check_place, open_generation, read_info, writing
from transfuse.knowledge.passages import cut_passages
from transfuse.knowledge.records import IndexInfo, IndexSettings, PassageSettings
from transfuse.text.sections import split_sections
from transfuse.types import Document, Dropped

N_SHOWN = 8


@dataclass(frozen=True, slots=True)
class IndexChange:
    """What a build, an add or a remove did."""

    added: list[str]
    """Names of documents that were not there."""
    replaced: list[str]
    """Were there with another text."""
    removed: list[str]
    unchanged: list[str]
    """Given, and there already with the same text."""
    info: IndexInfo
    """What the index says of itself now."""
    dropped: list[Dropped] = field(default_factory=list)
    """What was given and is not in the index, and why."""
    n_embedded: int = 0
    """Passages whose vectors were not there yet."""


def build_index(
    documents: Sequence[Document],
    path: Path,
    settings: IndexSettings,
    embedder: RetrievalEmbedder,
    *,
    overwrite: bool = False,
    unread: Sequence[Dropped] = (),
    on_texts: OnTexts | None = None,
    on_vectors: OnVectors | None = None,
) -> IndexChange:
    """Make an index of documents.

    Args:
        documents: with names of their own.
        path: the folder to make; other things must not be in it.
        settings: kept in the index, for what is added later.
        embedder: the model that `settings.embedder` names.
        overwrite: whether an index that is there may be replaced; it stays whole until the new one is.
        unread: what was left out when the files were read; kept in the index.
        on_texts: told how many passages have been embedded.
        on_vectors: told how many vectors have been put into the graph.

    Returns:
        What was done.

    Raises:
        IndexFolderError: an index is there already, or other things are; or another process is writing.
        DataError: two documents share a name, none holds text, there is no such stemmer, or the model gives no usable
            vectors.
        RecipeError: passages may be longer than what the model reads of them.
        RunFolderError: the files cannot be written.
        MissingExtraError: a package that an index needs is not installed.
    """
    _check_names(documents)
    check_place(path, overwrite=overwrite)
    check_installed(settings, has_graph=False)
    _check_length(settings, embedder)
    contents = Contents([_cut(document, settings.passages, embedder) for document in documents], list(unread))
    dropped = [*unread, *(drop for document in contents.documents for drop in document.dropped)]
    if not contents.passages:
        such = f", such as {dropped[0].what!r}: {dropped[0].reason}" if dropped else ""
        raise DataError(f"expected documents with text, found none in {len(documents)}{such}; check them.")
    now = _now()
    info = IndexInfo(
        id=path.resolve().name,
        created=now,
        updated=now,
        settings=settings,
        embedder_identity=embedder.identity,
        n_dimensions=embedder.n_dimensions,
        index_type="exact",
        n_documents=0,
        n_passages=0,
        generation="",
        files={},
        n_bytes=0,
    )
    with writing(path, overwrite=overwrite):
        check_place(path, overwrite=overwrite)  # again: somebody may have been quicker
        progress = Progress(on_texts, on_vectors)
        written = write_contents(path, info, contents, embedder, before=None, progress=progress)
    names = [document.name for document in documents]
    return IndexChange(names, [], [], [], written.info, dropped, written.n_embedded)


def add_documents(
    path: Path,
    documents: Sequence[Document],
    embedder: RetrievalEmbedder,
    *,
    unread: Sequence[Dropped] = (),
    on_texts: OnTexts | None = None,
    on_vectors: OnVectors | None = None,
) -> IndexChange:
    """Add documents to an index; one whose name is there takes the other's place where its text differs.

    Only passages that are not there yet are embedded.

    Args:
        path: the index's folder.
        documents: with names of their own.
        embedder: the model that the index was built with.
        unread: what was left out when the files were read; kept in the index.
        on_texts: told how many passages have been embedded.
        on_vectors: told how many vectors have been put into the graph.

    Returns:
        What was done; nothing is written where all documents are unchanged.

    Raises:
        IndexFolderError: no index is there, it is damaged, was built with another embedding model, or another
            process is writing.
        DataError: two documents share a name, or the model gives no usable vectors.
        RunFolderError: the files cannot be written.
        MissingExtraError: a package that an index needs is not installed.
    """
    _check_names(documents)
    check_embedder(path, read_info(path), embedder)
    with writing(path):
        before = _read(path)
        check_embedder(path, before.info, embedder)
        earlier = {document.entry.name: document for document in before.contents.documents}
        given = {document.name: document for document in documents}
        unchanged = [
            name for name in given if name in earlier and earlier[name].entry.sha256 == _sha256(given[name])
        ]
        fresh = {
            name: _cut(document, before.info.settings.passages, embedder)
            for name, document in given.items()
            if name not in unchanged
        }
        dropped = [*unread, *(drop for document in fresh.values() for drop in document.dropped)]
        if not fresh:
            return IndexChange([], [], [], unchanged, before.info, dropped)
        contents = Contents(
            list((earlier | fresh).values()),  # a replaced one keeps its place
            list(dict.fromkeys([*before.contents.unread, *unread])),
        )
        info = before.info.model_copy(update={"updated": _now()})
        progress = Progress(on_texts, on_vectors)
        written = write_contents(path, info, contents, embedder, before=before, progress=progress)
    replaced = [name for name in fresh if name in earlier]
    added = [name for name in fresh if name not in earlier]
    return IndexChange(added, replaced, [], unchanged, written.info, dropped, written.n_embedded)


def remove_documents(path: Path, patterns: Sequence[str]) -> IndexChange:
    """Remove documents from an index.

    Args:
        path: the index's folder.
        patterns: globs over the names of its documents (`*` also crosses folders), each of which must match one.

    Returns:
        What was done.

    Raises:
        IndexFolderError: no index is there, it is damaged, or another process is writing.
        DataError: a pattern matches no document.
        RunFolderError: the files cannot be written.
        MissingExtraError: a package that an index needs is not installed.
    """
    with writing(path):
        before = _read(path)
        names = [document.entry.name for document in before.contents.documents]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                there = ", ".join(names[:N_SHOWN]) + (
                    f" and {len(names) - N_SHOWN} more" * (len(names) > N_SHOWN)
                )
                raise DataError(f"{path}: {pattern!r} matches no document; there are: {there or 'none'}.")
        removed = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
        kept = [document for document in before.contents.documents if document.entry.name not in set(removed)]
        info = before.info.model_copy(update={"updated": _now()})
        contents = Contents(kept, before.contents.unread)
        written = write_contents(path, info, contents, None, before=before, progress=Progress())
    return IndexChange([], [], removed, [], written.info)


def _read(path: Path) -> Generation:
    """The generation that counts, its checksums compared: damage must not be carried on."""
    return open_generation(path, read_generation, verify=True)


def _cut(document: Document, settings: PassageSettings, embedder: RetrievalEmbedder) -> CutDocument:
    sections, dropped = split_sections(document)
    passages = cut_passages(document, sections, settings, embedder.count_tokens)
    return CutDocument(IndexedDocument(document.name, _sha256(document), len(passages)), passages, dropped)


def _sha256(document: Document) -> str:
    return hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest()


def _check_length(settings: IndexSettings, embedder: RetrievalEmbedder) -> None:
    longest = settings.passages.max_tokens
    if longest > embedder.max_tokens:
        raise RecipeError(
            f"passages.max_tokens is {longest}, but the embedding model {settings.embedder!r} reads no more than "
            f"{embedder.max_tokens} tokens of a passage; set it to at most that (--set passages.max_tokens=...)."
        )


def _check_names(documents: Sequence[Document]) -> None:
    names = [document.name for document in documents]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"documents: expected names of their own, got {twice[:N_SHOWN]} more than once.")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
