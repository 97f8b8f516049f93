"""Renders parsed Markdown as plain text."""

import html
import re
from collections.abc import Callable, Sequence

from markdown_it.tree import SyntaxTreeNode

from transfuse.text.shifted_digits import LOWERED, RAISED, shift_digits

_NOTE_MARK = re.compile(r"\s*\[\^[^\]\s]+\]")
_NOTE_START = re.compile(r"(?:^|\s+)\[\^[^\]\s]+\]:\s*")
_LINKED_NOTE = re.compile(r"\[[^\]]{1,12}\]|\^\S+")
_INVISIBLE = str.maketrans(dict.fromkeys("\u00ad\u200b\u2060\ufeff"))
_LIST_MARK = re.compile(r"(?:[-–•◦▪‣*+]|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s")
_TABLE_TAGS = re.compile(r"</?(?:table|thead|tbody|tfoot|tr|td|th|caption|colgroup)\b", re.IGNORECASE)


def plain_text(nodes: Sequence[SyntaxTreeNode]) -> str:
    """Render block nodes: paragraphs apart by a blank line, list items as lines, code as it is, no tables."""
    return "\n\n".join(text for text in map(_block, nodes) if text)


def plain_title(heading: SyntaxTreeNode) -> str:
    """A heading's text on one line."""
    return " ".join(_paragraph(heading).split())


def n_tables(nodes: Sequence[SyntaxTreeNode]) -> int:
    """Number of tables that `plain_text` leaves out."""
    return sum(
        found.type == "table" or (found.type == "html_block" and "<table" in found.content.lower())
        for node in nodes
        for found in node.walk()
    )


def plain_lines(text: str) -> str:
    """Paragraphs of text that is no Markdown: wrapped lines are joined, list items stay lines.

    Args:
        text: paragraphs are apart by blank lines.

    Returns:
        The same paragraphs, each run of white space a single space.
    """
    paragraphs = []
    for paragraph in re.split(r"(?:\r\n?|\n)[^\S\n]*(?:\r\n?|\n)\s*", text):
        joined = ""
        for line in _tidy(paragraph).split("\n"):
            joined += ("\n" if _LIST_MARK.match(line) else " ") + line
        paragraphs.append(joined.strip())
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _tidy(text: str) -> str:
    lines = re.split(r"\r\n?|\n", text.translate(_INVISIBLE))
    return "\n".join(" ".join(line.split()) for line in lines).strip()


# blocks


def _block(node: SyntaxTreeNode) -> str:
    return _BLOCKS[node.type](node) if node.type in _BLOCKS else ""


def _children(node: SyntaxTreeNode) -> str:
    return plain_text(node.children)


def _paragraph(node: SyntaxTreeNode) -> str:
    text = "".join(map(_inlines, node.children))
    return _tidy(_NOTE_MARK.sub("", _NOTE_START.sub("\n", text)))


def _code(node: SyntaxTreeNode) -> str:
    return node.content.rstrip() if node.content.strip() else ""


def _list(node: SyntaxTreeNode) -> str:
    first = int(node.attrs.get("start", 1))
    lines = []
    for number, item in enumerate(node.children, start=first):
        mark = f"{number}." if node.type == "ordered_list" else "-"
        text = "\n".join(text for text in map(_block, item.children) if text)
        if text:
            lines.append(f"{mark} " + text.replace("\n", "\n" + " " * (len(mark) + 1)))
    return "\n".join(lines)


def _html(node: SyntaxTreeNode) -> str:
    text = re.sub(r"<!--.*?(?:-->|\Z)", "", node.content, flags=re.DOTALL)
    text = re.sub(r"<(script|style|table)\b.*?(?:</\1>|\Z)", "", text, flags=re.DOTALL | re.IGNORECASE)
    if _TABLE_TAGS.match(text.lstrip()):  # a table with blank lines in it comes in pieces
        return ""
    text = re.sub(r"<br\s*/?>|</(?:p|div|li|h[1-6]|summary)>", "\n", text, flags=re.IGNORECASE)
    lines = _tidy(html.unescape(re.sub(r"<[!/?]?[a-zA-Z][^>]*>|<\?.*?\?>", "", text))).split("\n")
    return "\n".join(line for line in lines if line)


_BLOCKS: dict[str, Callable[[SyntaxTreeNode], str]] = {
    "heading": _paragraph,
    "paragraph": _paragraph,
    "blockquote": _children,
    "bullet_list": _list,
    "ordered_list": _list,
    "fence": _code,
    "code_block": _code,
    "html_block": _html,
}


# inlines


def _inlines(node: SyntaxTreeNode) -> str:
    """The text of a node's children; digits in <sup> and <sub> stay told apart."""
    texts = []
    table: dict[int, int] | None = None
    for child in node.children:
        tag = child.content.lower() if child.type == "html_inline" else ""
        if tag in ("<sup>", "<sub>"):
            table = RAISED if tag == "<sup>" else LOWERED
        elif tag in ("</sup>", "</sub>"):
            table = None
        else:
            text = _inline(child)
            texts.append(shift_digits(text, table) if table else text)
    return "".join(texts)


def _inline(node: SyntaxTreeNode) -> str:
    if node.type in ("text", "code_inline"):
        return node.content
    if node.type in _FIXED:
        return _FIXED[node.type]
    if node.type == "html_inline":
        return "\n" if re.match(r"<br\b", node.content, re.IGNORECASE) else ""
    text = _inlines(node)
    return "" if node.type == "link" and _LINKED_NOTE.fullmatch(text) else text


_FIXED = {"softbreak": " ", "hardbreak": "\n", "image": ""}
