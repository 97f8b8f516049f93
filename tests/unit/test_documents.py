import builtins
import io
from collections.abc import Callable
from pathlib import Path

import docx
import pypdf
import pytest
from docx.document import Document as WordDocument
from reportlab.pdfgen.canvas import Canvas

from transfuse.errors import DocumentError, MissingExtraError
from transfuse.io.documents import READERS, read_documents
from transfuse.io.pdf import Bookmark, Line, join_lines, mark_headings, strip_running_lines
from transfuse.text.shifted_digits import RAISED, shift_digits
from transfuse.types import Document, Dropped


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read_one(path: Path) -> Document:
    documents, _ = read_documents(path)
    (document,) = documents
    return document


def pdf_bytes(pages: list[list[str]], bookmarks: list[tuple[str, int, int]] | None = None) -> bytes:
    """Lines of each page; bookmarks as (title, level from 0, page from 0)."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer)
    for number, lines in enumerate(pages):
        for title, level, page in bookmarks or []:
            if page == number:
                canvas.bookmarkPage(title)
                canvas.addOutlineEntry(title, title, level)
        for row, line in enumerate(lines):
            canvas.drawString(50, 800 - 14 * row, line)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def docx_bytes(fill: Callable[..., object]) -> bytes:
    document = docx.Document()
    fill(document)
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def encrypted(data: bytes, password: str) -> bytes:
    writer = pypdf.PdfWriter(clone_from=pypdf.PdfReader(io.BytesIO(data)))
    writer.encrypt(password, "owner", algorithm="AES-256")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


# text and folders


@pytest.mark.parametrize("name", ["a.md", "a.txt", "A.MD"])
def test_text_is_kept_verbatim(tmp_path: Path, name: str) -> None:
    text = "# Zürich\r\n\r\n  two  spaces \t\n\n\nend"
    document = read_one(write(tmp_path / name, text))
    assert document.text == text
    assert (document.name, document.format) == (name, name[-3:].lower().lstrip("."))


def test_byte_order_mark_is_stripped(tmp_path: Path) -> None:
    assert read_one(write(tmp_path / "a.txt", "\ufeffHello")).text == "Hello"


def test_folder_is_sorted_and_says_what_it_left_out(tmp_path: Path) -> None:
    for name in ("b/z.md", "b.md", "a.txt", ".hidden.md", ".git/x.md"):
        write(tmp_path / name, name)
    for name, content in (("~$a.docx", "x"), ("pic.png", "x"), ("empty.md", " \n"), ("README", "x")):
        write(tmp_path / name, content)
    (tmp_path / "gone.md").symlink_to(tmp_path / "nowhere")
    documents, dropped = read_documents(tmp_path)
    assert [(document.name, document.text) for document in documents] == [
        ("a.txt", "a.txt"), ("b.md", "b.md"), ("b/z.md", "b/z.md"),
    ]  # fmt: skip
    assert {drop.what: drop.reason.partition(";")[0] for drop in dropped} == {
        "README": "a file without an ending",
        "empty.md": "empty file",
        "gone.md": "a broken link",
        "pic.png": "a file ending in '.png'",
        "~$a.docx": "the lock file of an open office document",
    }
    assert {drop.kind for drop in dropped} == {"document"}


def test_symlink_loop_ends(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.md", "text")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "self.md").symlink_to(tmp_path / "a" / "self.md")
    documents, dropped = read_documents(tmp_path)
    assert [document.name for document in documents] == ["a/x.md"]
    assert [drop.what for drop in dropped] == ["a/self.md"]


def test_linked_folder_is_read(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "x.md", "text")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert read_one(tmp_path / "docs").name == "link/x.md"


# refusals


def test_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="expected a file or a folder, nothing is there"):
        read_documents(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.md", b"", "the file is empty"),
        ("a.pdf", b"", "the file is empty"),
        ("a.html", b"<html><script>x()</script></html>", "the file is empty"),
        ("a.md", b"ab\0c", "a NUL byte at byte 2"),
        ("a.txt", b"caf\xe9 au lait", "0xe9 at byte 3; convert it, for example: iconv -f WINDOWS-1252"),
        ("a.txt", b"\xef\xbb\xbfcaf\xe9", "at byte 6"),
        ("a.txt", "hello".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        ("a.pdf", b"%PDF-1.4 broken", "expected a PDF file, it is damaged"),
        ("a.docx", b"PK broken", "expected a .docx file, it is damaged"),
        ("a.docx", bytes.fromhex("d0cf11e0a1b11ae1") + b"x", "this is an older .doc file"),
        (
            "a.docx",
            bytes.fromhex("d0cf11e0a1b11ae1") + "EncryptedPackage".encode("utf-16-le"),
            "it is password-protected",
        ),
        ("a.html", b"<p>caf\xe9</p>", r"the page declares \(none\), found byte 0xe9 at byte 6"),
        ("a.html", b"<div>" * 3000 + b"x", "nested too deeply"),
        ("a.odt", b"x", r"expected a document \(.md.*\), this is a file ending in '.odt'"),
    ],
)  # fmt: skip
def test_unreadable_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DocumentError, match=message) as caught:
        read_documents(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_decoding_error_keeps_its_cause(tmp_path: Path) -> None:
    with pytest.raises(DocumentError) as caught:
        read_documents(write(tmp_path / "a.txt", b"\xff"))
    assert isinstance(caught.value.__cause__, UnicodeDecodeError)


def test_damaged_file_in_a_folder_stops_the_reading(tmp_path: Path) -> None:
    write(tmp_path / "good.md", "text")
    write(tmp_path / "bad.pdf", b"%PDF-1.4 broken")
    with pytest.raises(DocumentError, match=r"bad\.pdf: .* damaged"):
        read_documents(tmp_path)


def test_folder_without_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="found no files"):
        read_documents(tmp_path)
    write(tmp_path / "a.png", "x")
    write(tmp_path / "b.md", "")
    with pytest.raises(
        DocumentError, match=r"found a\.png \(a file ending in '\.png'\); b\.md \(empty file\)"
    ):
        read_documents(tmp_path)


def test_forbidden_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.md", "text")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DocumentError, match=r"cannot be opened \(Permission denied\); check its permissions"):
        read_documents(path)


@pytest.mark.parametrize(
    ("name", "package"),
    [("a.pdf", "pypdf"), ("a.docx", "mammoth"), ("a.html", "bs4"), ("a.htm", "markdownify")],
)
def test_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    real_import = builtins.__import__

    def without_package(module: str, *args: object, **kwargs: object) -> object:
        if module.partition(".")[0] == package:
            raise ImportError(f"No module named '{package}'")
        return real_import(module, *args, **kwargs)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(builtins, "__import__", without_package)
    spelled = {"bs4": "beautifulsoup4"}.get(package, package)
    with pytest.raises(MissingExtraError, match=rf"needs {spelled}: pip install 'transfuse\[documents\]'"):
        read_documents(write(tmp_path / name, "x"))


def test_every_reader_names_the_document_by_its_path() -> None:
    assert READERS[".md"](b"x", "folder/a.md")[0].name == "folder/a.md"


# HTML

PAGE = """<!DOCTYPE html><html><head><title>Site</title><style>p{}</style></head><body>
<!-- secret --><header>Brand</header><nav>Menu</nav>
<article><header><h1>Iron <em>ore</em></h1></header>
<p>Output was 10<sup>6</sup> t of Fe<sub>2</sub>O<sub>3</sub><sup><a href="#note-1">[1]</a></sup>.</p>
<p># no heading</p><p>1. no list</p><p>&lt;b&gt; 2 * 3 * 4 a_b_c</p>
<table><tr><th>a</th></tr><tr><td>1</td></tr></table></article>
<script>evil()</script><footer>Imprint</footer></body></html>"""


def test_html_keeps_prose_and_drops_boilerplate(tmp_path: Path) -> None:
    text = read_one(write(tmp_path / "a.html", PAGE)).text
    assert text.startswith("# Iron *ore*\n")
    assert "10⁶ t of Fe₂O₃." in text
    assert "| a |" in text
    assert "\\# no heading" in text
    for gone in ("Site", "secret", "Brand", "Menu", "evil", "Imprint", "[1]", "p{}"):
        assert gone not in text


def test_html_title_stands_in_for_a_missing_h1(tmp_path: Path) -> None:
    page = "<head><title>The\n page</title></head><h2>Part</h2><p>x</p>"
    assert read_one(write(tmp_path / "a.htm", page)).text == "# The page\n\n## Part\n\nx\n"


def test_unclosed_head_does_not_swallow_the_page(tmp_path: Path) -> None:
    page = "<html><head><title>T</title><meta charset=utf-8><body><p>x</p></body></html>"
    assert read_one(write(tmp_path / "a.html", page)).text == "# T\n\nx\n"


def test_html_h1_in_the_page_header_is_kept(tmp_path: Path) -> None:
    page = "<header>Menu <h1>Main</h1></header><p>x</p>"
    assert read_one(write(tmp_path / "a.html", page)).text == "# Main\n\nx\n"


def test_html_declared_encoding_is_used(tmp_path: Path) -> None:
    page = '<meta charset="iso-8859-1"><p>café</p>'.encode("latin-1")
    assert read_one(write(tmp_path / "a.html", page)).text == "café\n"


def test_html_layout_table_is_read_as_text(tmp_path: Path) -> None:
    page = "<table><tr><td><h2>Left</h2><p>One.</p></td><td>Two.</td></tr></table>"
    assert read_one(write(tmp_path / "a.html", page)).text == "## Left\n\nOne.\n\nTwo.\n"


def test_html_table_with_caption_stays_a_table(tmp_path: Path) -> None:
    page = "<table><caption>Sizes</caption><tr><th>h</th></tr><tr><td>v</td></tr><tr><td>w</td></tr></table>"
    text = read_one(write(tmp_path / "a.html", page)).text
    assert text == "Sizes\n\n| h |\n| --- |\n| v |\n| w |\n"


def test_html_code_that_holds_a_fence_does_not_end_early(tmp_path: Path) -> None:
    page = "<pre>a\n```\n# b</pre><p>x</p>"
    assert read_one(write(tmp_path / "a.html", page)).text == "```\na\n~~~\n# b\n```\n\nx\n"


def test_xhtml_gives_no_warning(tmp_path: Path) -> None:
    page = '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body><p>x</p></body></html>'
    assert read_one(write(tmp_path / "a.html", page)).text == "x\n"


def test_raised_digits_stay_told_apart() -> None:
    assert [shift_digits(text, RAISED) for text in ("6", "-12", "st")] == ["⁶", "⁻¹²", "st"]


# Word


def test_docx_keeps_headings_lists_and_tables(tmp_path: Path) -> None:
    def fill(document: WordDocument) -> None:
        document.add_heading("Report", 0)
        document.add_heading("One", 1)
        document.add_paragraph("Text # here.").add_run(" bold").bold = True
        document.add_paragraph("item", style="List Bullet")
        document.add_table(1, 2).cell(0, 1).text = "x|y"

    document = read_one(write(tmp_path / "a.docx", docx_bytes(fill)))
    assert document.format == "docx"
    assert document.text.startswith("# Report\n\n## One\n\nText \\# here. **bold**\n\n- item\n")
    assert "| x\\|y |" in document.text


def test_docx_without_title_keeps_its_heading_levels(tmp_path: Path) -> None:
    data = docx_bytes(lambda document: document.add_heading("One", 1))
    assert read_one(write(tmp_path / "a.docx", data)).text == "# One\n"


# PDF


def test_pdf_bookmarks_become_headings_and_pages_are_known(tmp_path: Path) -> None:
    pages = [["1 Start", "The first page ends in exam-"], ["ples of words.", "Results", "Fine."]]
    bookmarks = [("Start", 0, 0), ("Absent", 0, 0), ("Results", 1, 1)]
    document = read_one(write(tmp_path / "a.pdf", pdf_bytes(pages, bookmarks)))
    assert document.text == "# Start\n\nThe first page ends in examples of words.\n\n## Results\n\nFine.\n"
    assert document.page_starts == (0, document.text.index("ples"))


def test_pdf_line_that_looks_like_a_heading_is_text(tmp_path: Path) -> None:
    assert read_one(write(tmp_path / "a.pdf", pdf_bytes([["# 5 were lost."]]))).text == "\\# 5 were lost.\n"


def test_pdf_with_empty_user_password_is_read(tmp_path: Path) -> None:
    data = encrypted(pdf_bytes([["Open text."]]), "")
    assert read_one(write(tmp_path / "a.pdf", data)).text == "Open text.\n"


def test_encrypted_pdf_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pdf", encrypted(pdf_bytes([["Secret."]]), "word"))
    with pytest.raises(DocumentError, match=r"it is encrypted with a password; decrypt it first.*qpdf"):
        read_documents(path)


def test_scanned_pdf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"none of the 2 pages has a text layer .* run OCR"):
        read_documents(write(tmp_path / "a.pdf", pdf_bytes([[], []])))


def test_pdf_page_without_text_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pdf", pdf_bytes([["One."], [], ["Three."]]))
    documents, dropped = read_documents(path)
    assert documents[0].page_starts == (0, 6, 6)
    assert [(drop.kind, drop.what) for drop in dropped] == [("page", f"{path}: 2")]


def test_running_lines_are_dropped_with_a_reason(tmp_path: Path) -> None:
    pages = [["Annual report", f"Body of {name}.", f"Page {n}"] for n, name in enumerate("abcd", start=1)]
    path = write(tmp_path / "a.pdf", pdf_bytes(pages))
    documents, dropped = read_documents(path)
    assert documents[0].text.split() == [
        "Body",
        "of",
        "a.",
        "Body",
        "of",
        "b.",
        "Body",
        "of",
        "c.",
        "Body",
        "of",
        "d.",
    ]
    assert dropped == [
        Dropped("line", f"{path}: Annual report", "repeated on 4 pages"),
        Dropped("line", f"{path}: Page 1", "repeated on 4 pages"),
    ]


def test_two_pages_have_no_running_lines() -> None:
    assert strip_running_lines([["Same", "a"], ["Same", "b"]]) == ([["Same", "a"], ["Same", "b"]], {})


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        ("the exam-", "ple", "the example"),
        ("a well-", "known fact, a well-known one", "a well-known fact, a well-known one"),
        ("in Rostov-", "Don", "in Rostov-Don"),
        ("from 2010-", "2012", "from 2010-2012"),
        ("a soft\u00ad", "ware", "a software"),
        ("a full line of", "Words", "a full line of Words"),
        ("Short.", "Then a longer line of words.", "Short.\n\nThen a longer line of words."),
        ("a full line of words", "• item", "a full line of words\n\n• item"),
    ],
)
def test_wrapped_lines_are_joined(first: str, second: str, joined: str) -> None:
    text, _ = join_lines([Line(first, 0, width=12), Line(second, 0, width=12)], 1)
    assert text == f"{joined}\n"


def test_title_over_two_lines_is_one_heading() -> None:
    lines = [Line("2.1 A long", 0), Line("title", 0), Line("Text", 0)]
    assert mark_headings(lines, [Bookmark("A long title", 2, 0)]) == [
        Line("A long title", 0, level=2),
        Line("Text", 0),
    ]
