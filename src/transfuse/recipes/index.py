"""Knowledge indexes from files: read documents, embed them, write the index, say what was done."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from transfuse.io.documents import read_documents
from transfuse.knowledge.index_building import IndexChange, add_documents, build_index, remove_documents
from transfuse.knowledge.index_contents import DROPPED_FILE, check_installed
from transfuse.knowledge.index_files import check_place, read_info
from transfuse.knowledge.records import IndexSettings
from transfuse.recipes.embedding import cached_embedder
from transfuse.recipes.index_search import counted
from transfuse.recipes.progress import Advance, Display
from transfuse.recipes.schema import make_settings


def build_from_files(
    documents: Path,
    out: Path,
    embedder: str | None,
    overrides: Sequence[str] = (),
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> str:
    """Make an index of a file, or of every document below a folder.

    Vectors are kept in the user's cache as they are made, so that a build that was stopped goes on cheaply.

    Args:
        documents: a file or a folder.
        out: the index's folder.
        embedder: reference of the embedding model; None takes that of the settings.
        overrides: settings as `key=value` with dotted keys.
        overwrite: whether an index that is there may be replaced.
        trust_remote_code: whether Python code that comes with the embedding model may run.

    Returns:
        What was done, in words.

    Raises:
        RecipeError: a setting is unknown or wrong.
        DocumentError: a document cannot be read.
        DataError: no document holds text.
        ModelError: the embedding model cannot be loaded.
        IndexFolderError: an index is there already, or other things are; or another process is writing.
        RunFolderError: the index cannot be written.
        MissingExtraError: a package is not installed.
    """
    settings = index_settings(embedder, overrides)
    check_place(out, overwrite=overwrite)
    check_installed(settings, has_graph=False)
    texts, unread = read_documents(documents)
    model = cached_embedder(settings.embedder, trust_remote_code=trust_remote_code)
    with _bars() as bar:
        change = build_index(
            texts,
            out,
            settings,
            model,
            overwrite=overwrite,
            unread=unread,
            on_texts=bar("embedding passages"),
            on_vectors=bar("linking vectors"),
        )
    return change_text(change, out)


def add_from_files(index: Path, documents: Path, *, trust_remote_code: bool = False) -> str:
    """Add a file, or every document below a folder, to an index.

    Args:
        index: the index's folder.
        documents: a file or a folder.
        trust_remote_code: whether Python code that comes with the embedding model may run.

    Returns:
        What was done, in words.

    Raises:
        IndexFolderError: no index is there, it is damaged, the embedding model has changed since it was built, or
            another process is writing.
        DocumentError: a document cannot be read.
        ModelError: the embedding model cannot be loaded.
        RunFolderError: the index cannot be written.
        MissingExtraError: a package is not installed.
    """
    settings = read_info(index).settings
    check_installed(settings, has_graph=False)
    texts, unread = read_documents(documents)
    model = cached_embedder(settings.embedder, trust_remote_code=trust_remote_code)
    with _bars() as bar:
        change = add_documents(
            index,
            texts,
            model,
            unread=unread,
            on_texts=bar("embedding passages"),
            on_vectors=bar("linking vectors"),
        )
    return change_text(change, index)


def remove_by_name(index: Path, patterns: Sequence[str]) -> str:
    """Remove the documents whose names match.

    Args:
        index: the index's folder.
        patterns: globs, each of which must match.

    Returns:
        What was done, in words.

    Raises:
        DataError: a pattern matches no document.
        IndexFolderError: no index is there, it is damaged, or another process is writing.
        RunFolderError: the index cannot be written.
    """
    return change_text(remove_documents(index, patterns), index)


def index_settings(embedder: str | None, overrides: Sequence[str]) -> IndexSettings:
    """Settings of a new index; an embedding model that lies in a folder is named by its absolute path.

    Args:
        embedder: reference of the embedding model; None takes the default, or that of the overrides.
        overrides: settings as `key=value` with dotted keys.

    Returns:
        The checked settings.

    Raises:
        RecipeError: a setting is unknown or wrong.
    """
    tree = {} if embedder is None else {"embedder": embedder}
    settings = make_settings(IndexSettings, tree, overrides, where="transfuse index build")
    folder = Path(settings.embedder).expanduser()
    if settings.embedder and folder.is_dir():
        return settings.model_copy(update={"embedder": str(folder.absolute())})
    return settings


def change_text(change: IndexChange, index: Path) -> str:
    """What was done to an index, in words.

    Args:
        change: as the building returned it.
        index: the index's folder.

    Returns:
        A few lines.
    """
    counts = {
        "added": change.added,
        "replaced": change.replaced,
        "removed": change.removed,
        "unchanged": change.unchanged,
    }
    done = ", ".join(f"{len(names)} {what}" for what, names in counts.items() if names)
    info = change.info
    how = "every passage is compared" if info.index_type == "exact" else "found by a graph (HNSW)"
    lines = [
        f"Documents: {done or 'none'}; {counted(change.n_embedded, 'passage')} embedded.",
        f"{index}: {counted(info.n_passages, 'passage')} of {counted(info.n_documents, 'document')}, {how}.",
    ]
    if change.dropped:
        kinds = Counter(drop.kind for drop in change.dropped)
        listed = ", ".join(counted(n, kind) for kind, n in kinds.items())
        is_written = bool(change.added or change.replaced)
        why = f"; {index / info.generation / DROPPED_FILE} says why" if is_written else ""
        lines.append(f"Left out: {listed}{why}.")
    return "\n".join(lines)


@contextmanager
def _bars() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Bars that follow one another, each opened when it is first told of something."""
    display = Display()
    opened: dict[str, Advance] = {}
    with ExitStack() as stack:

        def bar(title: str) -> Callable[[int, int], None]:
            def advance(done: int, total: int) -> None:
                if title not in opened:
                    stack.close()
                    opened[title] = stack.enter_context(display.bar(title))
                opened[title](done, total, "")

            return advance

        yield bar
