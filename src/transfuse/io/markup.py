"""Reads HTML and Word files as Markdown."""

import io
import re
import warnings
from typing import TYPE_CHECKING

from transfuse.errors import DocumentError, MissingExtraError
from transfuse.text.shifted_digits import LOWERED, RAISED, shift_digits
from transfuse.types import Document, Dropped

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

_NEVER_PROSE = (
    "script, style, template, noscript, iframe, object, svg, img, picture, video, audio, canvas, "
    "nav, footer, .mw-editsection, button, select, input, textarea, [hidden], "
    "[role=navigation], [role=contentinfo], [role=search]"
)
_HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
_NOTE_LINK = re.compile(r"^#(?:.*note|.*\bfn|.*\bref|cite)", re.IGNORECASE)
_OLE_CONTAINER = bytes.fromhex("d0cf11e0a1b11ae1")
_DOCX_STYLES = "p[style-name='Title'] => h1.title:fresh\np[style-name='Subtitle'] => p:fresh"


def read_html(data: bytes, where: str) -> tuple[Document, list[Dropped]]:
    """Read an HTML page; scripts, styles, navigation, banners, images and comments are removed.

    Args:
        data: the file's bytes; UTF-8 unless the page declares another encoding.
        where: the file's path, for messages.

    Returns:
        The document, its headings as `#` lines, and nothing dropped.

    Raises:
        DocumentError: the encoding is neither UTF-8 nor declared, or the page is nested too deeply.
        MissingExtraError: beautifulsoup4 or markdownify is not installed.
    """
    return Document(where, _markdown(_decoded_html(data, where), where, ".html"), "html"), []


def read_docx(data: bytes, where: str) -> tuple[Document, list[Dropped]]:
    """Read a Word file; headings, lists and tables are kept, page headers and comments are not.

    Args:
        data: the file's bytes.
        where: the file's path, for messages.

    Returns:
        The document as Markdown, and its equations, which have no text form.

    Raises:
        DocumentError: the file is damaged, password-protected or of the older .doc format.
        MissingExtraError: mammoth, beautifulsoup4 or markdownify is not installed.
    """
    try:
        import mammoth
    except ImportError as err:
        raise missing_extra(".docx", "mammoth") from err
    if data.startswith(_OLE_CONTAINER):
        raise DocumentError(f"{where}: {_ole_complaint(data)}")
    try:
        result = mammoth.convert_to_html(io.BytesIO(data), style_map=_DOCX_STYLES)
    except Exception as err:  # zip, XML and key errors of a broken archive alike
        raise DocumentError(
            f"{where}: expected a .docx file, it is damaged ({type(err).__name__}: {err}); "
            "open it in a word processor and save it again."
        ) from err
    n_equations = sum("m:oMath " in f"{message.message} " for message in result.messages)
    dropped = [Dropped("equation", where, "equations have no text form")] if n_equations else []
    return Document(where, _markdown(result.value, where, ".docx"), "docx"), dropped


def missing_extra(ending: str, package: str) -> MissingExtraError:
    """The error for a reader whose package is absent."""
    return MissingExtraError(f"reading {ending} files needs {package}: pip install 'transfuse[documents]'")


def _ole_complaint(data: bytes) -> str:
    if "EncryptedPackage".encode("utf-16-le") in data:
        return "expected a readable .docx file, it is password-protected; save a copy without password."
    return "expected a .docx file, this is an older .doc file; open it and save it as .docx."


def _decoded_html(data: bytes, where: str) -> str:
    try:
        from bs4.dammit import EncodingDetector
    except ImportError as err:
        raise missing_extra(".html", "beautifulsoup4") from err
    content, marked = EncodingDetector.strip_byte_order_mark(data)
    declared = EncodingDetector.find_declared_encoding(content, is_html=True)
    try:
        return content.decode(marked or "utf-8")
    except UnicodeDecodeError as err:
        if not marked and declared and declared.lower() not in ("utf-8", "utf8"):
            try:
                return content.decode(declared)
            except (LookupError, UnicodeDecodeError):
                pass
        raise DocumentError(
            f"{where}: expected UTF-8 or the encoding that the page declares ({declared or 'none'}), "
            f"found byte 0x{content[err.start]:02x} at byte {err.start}; "
            f"convert it, for example: iconv -f WINDOWS-1252 -t UTF-8 '{where}' > converted"
        ) from err


def _markdown(html: str, where: str, ending: str) -> str:
    try:
        from bs4 import BeautifulSoup
    except ImportError as err:
        raise missing_extra(ending, "beautifulsoup4") from err
    try:
        from markdownify import MarkdownConverter
    except ImportError as err:
        raise missing_extra(ending, "markdownify") from err
    converter = MarkdownConverter(heading_style="atx", bullets="-", escape_misc=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bs4 guesses aloud that XHTML or short input may be no HTML
            soup = BeautifulSoup(html, "html.parser")
        _keep_prose(soup)
        text = converter.convert_soup(soup)
    except RecursionError as err:
        raise DocumentError(
            f"{where}: expected a document of usual depth, its elements are nested too deeply to read; "
            "save it in a simpler form, for example as plain text."
        ) from err
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n" if text.strip() else ""


def _keep_prose(soup: "BeautifulSoup") -> None:
    """Leave in the tree what a reader would read, in elements that Markdown knows."""
    from bs4.element import PreformattedString

    for string in soup.find_all(string=lambda string: isinstance(string, PreformattedString)):
        string.extract()  # comments, doctypes, processing instructions
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    for element in soup.find_all(["title", "meta", "link", "base"]):  # an unclosed <head> holds the body too
        element.decompose()
    _remove_banners(soup)
    for element in soup.select(_NEVER_PROSE):
        element.decompose()
    _move_notes(soup)
    _unwrap_layout_tables(soup)
    _suit_converter(soup)
    _set_title(soup, title)
    soup.smooth()


def _remove_banners(soup: "BeautifulSoup") -> None:
    """Remove page headers, except headers of articles; a page's only h1 is kept."""
    banners = [*soup.find_all("header"), *soup.select("[role=banner]")]
    for banner in banners:
        if banner.decomposed or banner.find_parent(["article", "main", "section"]):
            continue
        inside = banner.find_all("h1")
        if inside and len(inside) == len(soup.find_all("h1")):
            banner.replace_with(*(heading.extract() for heading in inside))
        else:
            banner.decompose()


def _move_notes(soup: "BeautifulSoup") -> None:
    """Remove footnote marks; a Word file's notes get a heading, lest they end the last section."""
    for link in soup.find_all("a", href=_NOTE_LINK):
        text = link.get_text(strip=True)
        if re.fullmatch(r"\[.{1,8}\]|\d+|[*†‡↑^]", text):
            raised = link.find_parent("sup")
            (raised or link).decompose()
    notes = soup.select_one("ol > li[id^=footnote-], ol > li[id^=endnote-]")
    if notes and notes.parent:
        heading = soup.new_tag("h2")
        heading.string = "Notes"
        notes.parent.insert_before(heading)


def _unwrap_layout_tables(soup: "BeautifulSoup") -> None:
    """A table that holds headings or tables, or has a single cell, is layout: its cells are blocks."""
    for table in soup.find_all("table"):
        cells = table.find_all(["td", "th"])
        if len(cells) > 1 and not table.find([*_HEADINGS, "table"]):
            continue
        for element in table.find_all(["thead", "tbody", "tfoot", "tr", "td", "th", "caption"]):
            if element.find_parent("table") is table:
                element.name = "div"
        table.name = "div"


def _suit_converter(soup: "BeautifulSoup") -> None:
    """Spell out what the converter to Markdown would lose."""
    for caption in soup.select("table > caption"):  # inside, it would hide the header row
        if table := caption.find_parent("table"):
            caption.name = "p"
            table.insert_before(caption.extract())
    for string in soup.find_all(string=re.compile("```")):
        if string.find_parent("pre"):  # would end the fence that is put around it
            string.replace_with(str(string).replace("```", "~~~"))
    for name, digits in (("sup", RAISED), ("sub", LOWERED)):
        for element in soup.find_all(name):
            element.replace_with(shift_digits(element.get_text(), digits))


def _set_title(soup: "BeautifulSoup", title: str) -> None:
    """A Word title becomes the only h1, other headings move down; a page without h1 gets its title as one."""
    word_title = soup.select_one("h1.title")
    if word_title:
        for heading in soup.find_all(_HEADINGS):
            if heading is not word_title:
                heading.name = f"h{min(int(heading.name[1]) + 1, 6)}"
    elif title and not soup.find("h1") and soup.get_text(strip=True):
        heading = soup.new_tag("h1")
        heading.string = title
        (soup.body or soup).insert(0, heading)
