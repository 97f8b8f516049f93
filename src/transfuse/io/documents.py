"""Reads a document, or a folder of them, as Markdown or plain text."""

import codecs
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from transfuse.errors import DocumentError
from transfuse.io.markup import read_docx, read_html
from transfuse.io.pdf import read_pdf
from transfuse.types import Document, Dropped

Reader = Callable[[bytes, str], tuple[Document, list[Dropped]]]
"""From a file's bytes and its path (for messages) to a document named after that path."""


def read_markdown(data: bytes, where: str) -> tuple[Document, list[Dropped]]:
    """The file's text, kept verbatim."""
    return Document(where, _decoded(data, where), "md"), []


def read_text(data: bytes, where: str) -> tuple[Document, list[Dropped]]:
    """The file's text, kept verbatim."""
    return Document(where, _decoded(data, where), "txt"), []


READERS: dict[str, Reader] = {
    ".md": read_markdown,
    ".txt": read_text,
    ".html": read_html,
    ".htm": read_html,
    ".docx": read_docx,
    ".pdf": read_pdf,
}
_ENDINGS = ", ".join(READERS)


def read_documents(path: Path) -> tuple[list[Document], list[Dropped]]:
    """Read one file, or every readable file below a folder.

    Args:
        path: a file, or a folder searched recursively. Hidden files and folders are skipped;
            links are followed, each folder once.

    Returns:
        The documents sorted by relative path, and what was left out of them: files with other
        endings, empty files, running lines and textless pages of PDF files.

    Raises:
        DocumentError: `path` or a document in it cannot be read, or nothing in it is a document.
        MissingExtraError: a format needs a package that is not installed.
    """
    if not path.exists():
        raise DocumentError(f"{path}: expected a file or a folder, nothing is there; check the path.")
    return _read_folder(path) if path.is_dir() else _read_single(path)


def _read_single(path: Path) -> tuple[list[Document], list[Dropped]]:
    if refusal := _refusal(path):
        raise DocumentError(
            f"{path}: expected a document ({_ENDINGS}), this is {refusal}; "
            "convert it to one of these formats first."
        )
    reading = _read_file(path)
    if not reading.document.text.strip():
        raise DocumentError(f"{path}: expected text, the file is empty; give a file that holds text.")
    return [replace(reading.document, name=path.name)], reading.dropped


def _read_folder(folder: Path) -> tuple[list[Document], list[Dropped]]:
    documents: list[Document] = []
    dropped: list[Dropped] = []
    for path in sorted(_files_below(folder), key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        if refusal := _refusal(path):
            dropped.append(Dropped("document", name, f"{refusal}; read are {_ENDINGS}"))
            continue
        reading = _read_file(path)
        if reading.document.text.strip():
            documents.append(replace(reading.document, name=name))
            dropped.extend(reading.dropped)
        else:
            dropped.append(Dropped("document", name, "empty file"))
    if not documents:
        came = "; ".join(f"{drop.what} ({drop.reason.partition(';')[0]})" for drop in dropped[:5])
        more = f" and {len(dropped) - 5} more" if len(dropped) > 5 else ""
        raise DocumentError(
            f"{folder}: expected at least one document ({_ENDINGS}), found {came or 'no files'}{more}; "
            "check the path or convert the files to one of these formats."
        )
    return documents, dropped


def _files_below(folder: Path) -> Iterator[Path]:
    """Every file that is not hidden; a folder reached twice through links is walked once."""
    seen: set[tuple[int, int]] = set()

    def refuse(err: OSError) -> None:
        raise DocumentError(
            f"{err.filename}: the folder cannot be listed ({err.strerror}); check its permissions."
        ) from err

    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = Path(root).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in files if not name.startswith("."))


def _refusal(path: Path) -> str | None:
    """Why a file is not even opened, judged by its name and kind."""
    if not path.is_file():
        return "a broken link" if path.is_symlink() else "not a regular file"
    if path.name.startswith("~$"):
        return "the lock file of an open office document"
    if path.suffix.lower() not in READERS:
        return f"a file ending in '{path.suffix}'" if path.suffix else "a file without an ending"
    return None


class _Reading(NamedTuple):
    document: Document
    dropped: list[Dropped]


def _read_file(path: Path) -> _Reading:
    try:
        data = path.read_bytes()
    except OSError as err:
        raise DocumentError(
            f"{path}: the file cannot be opened ({err.strerror}); check its permissions."
        ) from err
    if not data.strip():  # a PDF or docx reader would call an empty file damaged
        return _Reading(Document(str(path), "", "txt"), [])
    return _Reading(*READERS[path.suffix.lower()](data, str(path)))


def _decoded(data: bytes, where: str) -> str:
    """Strict UTF-8; a byte order mark is stripped."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DocumentError(
            f"{where}: expected UTF-8, the file begins with a UTF-16 mark at byte 0; "
            f"convert it: iconv -f UTF-16 -t UTF-8 '{where}' > converted"
        )
    if (at := data.find(b"\0")) >= 0:
        raise DocumentError(
            f"{where}: expected text, found binary content (a NUL byte at byte {at}); "
            "give a text file, or name the file by its true format."
        )
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as err:
        raise DocumentError(
            f"{where}: expected UTF-8, found byte 0x{data[err.start]:02x} at byte {err.start}; "
            f"convert it, for example: iconv -f WINDOWS-1252 -t UTF-8 '{where}' > converted"
        ) from err
