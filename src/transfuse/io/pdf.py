"""Reads PDF files: lines rejoined into paragraphs, bookmarks as headings."""

import io
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from transfuse.errors import DocumentError
from transfuse.io.markup import missing_extra
from transfuse.types import Document, Dropped

if TYPE_CHECKING:
    from pypdf import PdfReader

_GLYPHS = str.maketrans(
    {chr(code): None for code in range(32) if chr(code) not in "\t\n\r"}
    | {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}
    | {"\x7f": "•"}  # what the bullet of the standard fonts comes out as
)
_LIST_MARK = re.compile(r"(?:[-–•◦▪‣*·]|\(?(?:\d{1,2}|[a-z])[.)])\s")
_SENTENCE_END = re.compile(r"[.!?:;…][\"'”’»)\]]*$")
_HEADING_MARK = re.compile(r"#{1,6}(?:\s|$)")
_MIN_PAGES_FOR_RUNNING_LINES = 3


class Bookmark(NamedTuple):
    """One entry of the outline."""

    title: str
    level: int
    """Depth in the outline, from 1."""
    page: int
    """From 0."""


class Line(NamedTuple):
    """One line of a page."""

    text: str
    page: int
    """From 0."""
    width: int = 0
    """Characters of a full line on its page."""
    level: int = 0
    """Heading level; 0 for text."""
    follows_gap: bool = False


def read_pdf(data: bytes, where: str) -> tuple[Document, list[Dropped]]:
    """Read the text layer of a PDF file.

    Args:
        data: the file's bytes.
        where: the file's path, for messages.

    Returns:
        The document: bookmarks found in their page's text are headings, and a text line that
        would look like one begins with a backslash. Beside it the running headers, footers and
        page numbers, and the pages without text.

    Raises:
        DocumentError: the file is encrypted or damaged, or has no text layer.
        MissingExtraError: pypdf (or cryptography, for an encrypted file) is not installed.
    """
    pages, bookmarks = _pages_and_bookmarks(data, where)
    textless = [number for number, lines in enumerate(pages, start=1) if not any(lines)]
    if len(textless) == len(pages):
        raise DocumentError(
            f"{where}: expected text, none of the {len(pages)} pages has a text layer (a scan?); "
            "run OCR on it first, for example with ocrmypdf."
        )
    pages, running = strip_running_lines(pages)
    dropped = [Dropped("line", f"{where}: {line}", f"repeated on {n} pages") for line, n in running.items()]
    if textless:
        numbers = ", ".join(map(str, textless))
        dropped.append(Dropped("page", f"{where}: {numbers}", "no text layer; run OCR if this is a scan"))
    marked = []
    for number, lines in enumerate(pages):
        here = [bookmark for bookmark in bookmarks if bookmark.page == number]
        marked.extend(mark_headings(_as_lines(lines, number), here))
    text, page_starts = join_lines(marked, len(pages))
    return Document(where, text, "pdf", page_starts), dropped


def _pages_and_bookmarks(data: bytes, where: str) -> tuple[list[list[str]], list[Bookmark]]:
    try:
        import pypdf
        from pypdf.errors import DependencyError
    except ImportError as err:
        raise missing_extra(".pdf", "pypdf") from err
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # its complaints are in the error
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if not (reader.is_encrypted and not reader.decrypt("")):
            pages = [page.extract_text().translate(_GLYPHS) for page in reader.pages]
            return [[line.strip() for line in re.split(r"\r\n?|\n", page)] for page in pages], _outline(
                reader
            )
    except DependencyError as err:
        raise missing_extra("encrypted .pdf", "cryptography") from err
    except Exception as err:  # a broken file fails in many ways: pypdf's own errors, key, type, recursion
        raise DocumentError(
            f"{where}: expected a PDF file, it is damaged ({type(err).__name__}: {err}); "
            "repair it, for example: qpdf in.pdf out.pdf"
        ) from err
    raise DocumentError(
        f"{where}: expected a readable PDF file, it is encrypted with a password; "
        "decrypt it first, for example: qpdf --decrypt --password=... in.pdf out.pdf"
    )


def _outline(reader: "PdfReader") -> list[Bookmark]:
    def walk(entries: Sequence[object], level: int) -> Iterator[Bookmark]:
        for entry in entries:
            if isinstance(entry, list):
                yield from walk(entry, level + 1)
            elif isinstance(entry, Destination) and entry.title:
                page = reader.get_destination_page_number(entry)
                if page is not None:
                    yield Bookmark(" ".join(str(entry.title).split()), min(level, 6), page)

    from pypdf.generic import Destination

    try:
        return list(walk(reader.outline, 1))
    except Exception:  # a broken outline costs the headings, never the text
        return []


def strip_running_lines(pages: Sequence[Sequence[str]]) -> tuple[list[list[str]], dict[str, int]]:
    """Remove headers, footers and page numbers: outermost lines that repeat on most pages.

    Args:
        pages: the lines of each page; lines that differ in digits alone count as the same.

    Returns:
        The pages without them, and for each removed line (as first seen) its number of pages.
    """
    kept = [_without_outer_gaps(lines) for lines in pages]
    removed: dict[str, int] = {}
    if len(kept) < _MIN_PAGES_FOR_RUNNING_LINES:
        return kept, removed
    for _ in range(2):  # a header may sit above a page number
        for edge in (0, -1):
            keys = [re.sub(r"\d+", "0", lines[edge]) if lines else "" for lines in kept]
            counts = Counter(key for key in keys if key)
            running = {key: n for key, n in counts.items() if n >= 3 and n > len(kept) / 2}
            for number, key in enumerate(keys):
                if key in running:
                    line = kept[number].pop(edge)
                    kept[number] = _without_outer_gaps(kept[number])
                    if running[key]:
                        removed[line] = running[key]
                        running[key] = 0
    return kept, removed


def _without_outer_gaps(lines: Sequence[str]) -> list[str]:
    filled = [number for number, line in enumerate(lines) if line]
    return list(lines[filled[0] : filled[-1] + 1]) if filled else []


def _as_lines(texts: Sequence[str], page: int) -> list[Line]:
    lengths = sorted(len(text) for text in texts if text)
    width = lengths[int(0.9 * (len(lengths) - 1))] if lengths else 0
    before = ["", *texts]
    return [Line(text, page, width, 0, not before[at]) for at, text in enumerate(texts) if text]


def mark_headings(lines: Sequence[Line], bookmarks: Sequence[Bookmark]) -> list[Line]:
    """Turn the lines that are a bookmark's title into headings.

    Args:
        lines: one page.
        bookmarks: those that point to this page, in order.

    Returns:
        The lines; a title set over up to three lines becomes one. A title that is not found as
        whole lines marks nothing.
    """
    marked = list(lines)
    begin = 0
    for bookmark in bookmarks:
        for start in [*range(begin, len(marked)), *range(begin)]:
            n_lines = next((n for n in (1, 2, 3) if _is_title(marked[start : start + n], bookmark.title)), 0)
            if n_lines:
                marked[start : start + n_lines] = [Line(bookmark.title, bookmark.page, 0, bookmark.level)]
                begin = start + 1
                break
    return marked


def _is_title(lines: Sequence[Line], title: str) -> bool:
    """Whether the lines spell the title; spaces, signs and a section number in one of them don't count."""
    if any(line.level for line in lines):
        return False
    here, wanted = (
        re.sub(r"[\W_]+", "", text).casefold() for text in ("".join(x.text for x in lines), title)
    )
    return bool(wanted) and (here == wanted or here == _unnumbered(wanted) or _unnumbered(here) == wanted)


def _unnumbered(title: str) -> str:
    return re.sub(r"^\d+(?=\D)", "", title)


def join_lines(lines: Sequence[Line], n_pages: int) -> tuple[str, tuple[int, ...]]:
    """Join hard-wrapped lines into paragraphs, also across pages.

    Args:
        lines: of all pages, in order.
        n_pages: pages in the file, the empty ones counted.

    Returns:
        Paragraphs separated by blank lines, and the offset at which each page begins.
    """
    hyphenated = {word.casefold() for line in lines for word in re.findall(r"\w+-\w+", line.text)}
    text = ""
    page_starts: list[int] = []
    for previous, line in zip([None, *lines], lines, strict=False):
        content = f"{'#' * line.level} {line.text}" if line.level else line.text
        if previous is None or _breaks(previous, line):
            text += "\n\n" if text else ""
            content = f"\\{content}" if not line.level and _HEADING_MARK.match(content) else content
        else:
            text = _ready_to_go_on(text, line.text, hyphenated)
        page_starts.extend([len(text)] * (line.page + 1 - len(page_starts)))
        text += content
    page_starts.extend([len(text)] * (n_pages - len(page_starts)))
    return f"{text}\n", tuple(page_starts)


def _breaks(line: Line, following: Line) -> bool:
    """Whether a paragraph ends between two lines."""
    goes_on = following.text[0].islower()
    is_end = bool(_SENTENCE_END.search(line.text))
    if line.level or following.level or _LIST_MARK.match(following.text):
        return True
    if goes_on and not (is_end and following.follows_gap):
        return False
    if following.follows_gap or (is_end and following.page != line.page):
        return True
    return len(line.text) < (0.85 if is_end else 0.6) * line.width


def _ready_to_go_on(text: str, following: str, hyphenated: set[str]) -> str:
    """The text with its line end mended: a hyphen goes unless the word is written with it elsewhere."""
    if text.endswith("\u00ad"):
        return text[:-1]
    split_word = re.search(r"(\w+)-$", text[-80:])
    if not split_word:
        return f"{text} "
    rest = re.match(r"\w*", following)
    whole = f"{split_word[1]}-{rest[0] if rest else ''}".casefold()
    keeps = whole in hyphenated or not following[0].islower() or split_word[1][-1].isdigit()
    return text if keeps else text[:-1]
