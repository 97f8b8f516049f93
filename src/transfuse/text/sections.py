"""Cuts documents into sections by their headings, and screens the sections."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from transfuse.errors import DataError
from transfuse.text.plain_text import n_tables, plain_lines, plain_text, plain_title
from transfuse.types import Document, Dropped, Section

_MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
_PARSERS: dict[str, MarkdownIt] = {
    "md": _MARKDOWN,
    "html": _MARKDOWN,
    "docx": _MARKDOWN,
    "pdf": MarkdownIt("zero").enable("heading"),
    "txt": MarkdownIt("zero"),
}
"""Text of a PDF file is plain but for its headings; a text file has none."""

_LINE_END = re.compile(r"\r\n?|\n")  # what the parser counts as line ends; str.splitlines knows more
_FRONT_MATTER = re.compile(
    r"---[ \t]*(?:\r\n?|\n)(?=[\w-]+[ \t]*:).*?(?:\r\n?|\n)(?:---|\.\.\.)[ \t]*(?:\r\n?|\n|\Z)", re.DOTALL
)
_MAX_UNDERLINED_TITLE_CHARS = 120


@dataclass(slots=True)
class _Part:
    """What stands between one heading and the next."""

    heading_path: tuple[str, ...]
    has_heading: bool
    first_line: int
    last_line: int = 0
    """Exclusive."""
    blocks: list[SyntaxTreeNode] = field(default_factory=list)


def split_sections(document: Document) -> tuple[list[Section], list[Dropped]]:
    """Cut a document at its headings and clean the text between them.

    Headings inside code, lists and quotes cut nothing, and neither does an underlined paragraph
    of more than 120 characters. Text before the first heading is a section of its own. A text
    file is one section.

    Args:
        document: Markdown, except where its format is `txt`.

    Returns:
        Sections that hold text, in order, their spans disjoint; and what was left out: sections
        that are "empty" or hold "only a table", tables inside other sections, front matter.
    """
    front = _FRONT_MATTER.match(document.text) if document.format == "md" else None
    text = document.text
    dropped: list[Dropped] = []
    if front:  # blanked, not cut: every offset stays what it is
        text = re.sub(r"[^\r\n]", " ", front[0]) + text[front.end() :]
        dropped.append(Dropped("section", f"{document.name}: front matter", "settings, not prose"))
    line_starts = [0, *(end.end() for end in _LINE_END.finditer(text)), len(text)]
    sections: list[Section] = []
    for part in _parts(text, document.format, len(line_starts) - 1):
        span = _trimmed(text, line_starts[part.first_line], line_starts[part.last_line])
        if span[0] == span[1] and not part.has_heading:
            continue
        cleaned = _cleaned(part, text[slice(*span)], document.format)
        tables = n_tables(part.blocks)
        what = f"{document.name}: {' / '.join(part.heading_path)}" if part.heading_path else document.name
        if not cleaned:
            dropped.append(Dropped("section", what, "holds only a table" if tables else "empty"))
            continue
        if tables:
            count = "1 table" if tables == 1 else f"{tables} tables"
            dropped.append(Dropped("table", what, f"{count} left out of the text"))
        page = max(bisect_right(document.page_starts, span[0]), 1) if document.page_starts else None
        sections.append(Section(document.name, part.heading_path, cleaned, span, page))
    return sections, dropped


def _parts(text: str, format_: str, n_lines: int) -> list[_Part]:
    part = _Part((), has_heading=False, first_line=0)
    parts = [part]
    open_titles: list[tuple[int, str]] = []
    for node in SyntaxTreeNode(_PARSERS[format_].parse(text)).children:
        if not _cuts(node) or node.map is None:
            part.blocks.append(node)
            continue
        level = int(node.tag[1])
        open_titles = [(above, title) for above, title in open_titles if above < level]
        if title := plain_title(node):
            open_titles.append((level, title))
        part.last_line, first_line = node.map
        part = _Part(tuple(title for _, title in open_titles), has_heading=True, first_line=first_line)
        parts.append(part)
    part.last_line = n_lines
    return parts


def _cuts(node: SyntaxTreeNode) -> bool:
    """Whether a node is a heading; a long paragraph above a rule is a paragraph that lacks a blank line."""
    if node.type != "heading":
        return False
    return not (node.markup in ("-", "=") and len(plain_title(node)) > _MAX_UNDERLINED_TITLE_CHARS)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without blank lines at its ends; indentation of the first line stays."""
    body = text[start:end]
    if not body.strip():
        return start, start
    lead = body[: len(body) - len(body.lstrip())]
    ends = [found.end() for found in _LINE_END.finditer(lead)]
    return start + (ends[-1] if ends else 0), start + len(body.rstrip())


def _cleaned(part: _Part, body: str, format_: str) -> str:
    if format_ == "txt":
        return plain_lines(body)
    if format_ == "pdf":
        return plain_lines(re.sub(r"^\\(?=#)", "", body, flags=re.MULTILINE))
    return plain_text(part.blocks)


def screen_sections(
    sections: Sequence[Section], *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[list[Section], list[Dropped]]:
    """Keep the sections that the patterns ask for.

    Args:
        sections: of one or more documents.
        include: glob patterns, upper and lower case alike. A section is kept if one matches its
            heading path joined by " / ", its title, or a heading above it. Empty keeps all.
        exclude: patterns of the same form; a section that one matches is dropped.

    Returns:
        The kept sections in order, and the dropped ones with the reason.

    Raises:
        DataError: an include pattern matches no section, or no section is left.
    """
    for pattern in include:
        if sections and not any(_matches(section, pattern) for section in sections):
            raise DataError(
                f"include pattern '{pattern}' matches none of the {len(sections)} sections; "
                f"their titles are: {_listed(sections)}. '*' stands for any text."
            )
    kept: list[Section] = []
    dropped: list[Dropped] = []
    for section in sections:
        if reason := _drop_reason(section, include, exclude):
            what = ": ".join((section.document, " / ".join(section.heading_path))).removesuffix(": ")
            dropped.append(Dropped("section", what, reason))
        else:
            kept.append(section)
    if sections and not kept:
        reasons = "; ".join(dict.fromkeys(drop.reason for drop in dropped))
        raise DataError(
            f"none of the {len(sections)} sections is left ({reasons}); "
            f"loosen the patterns. The titles are: {_listed(sections)}."
        )
    return kept, dropped


def _drop_reason(section: Section, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    if not section.text.strip():
        return "empty"
    if include and not any(_matches(section, pattern) for pattern in include):
        return "matches no include pattern"
    excluded_by = next((pattern for pattern in exclude if _matches(section, pattern)), None)
    return None if excluded_by is None else f"excluded by pattern '{excluded_by}'"


def _matches(section: Section, pattern: str) -> bool:
    names = (section.title, *section.heading_path, " / ".join(section.heading_path))
    return any(fnmatchcase(name.casefold(), pattern.casefold()) for name in names)


def _listed(sections: Sequence[Section]) -> str:
    titles = list(dict.fromkeys(section.title for section in sections))
    more = f" and {len(titles) - 40} more" if len(titles) > 40 else ""
    return ", ".join(f"'{title}'" for title in titles[:40]) + more
