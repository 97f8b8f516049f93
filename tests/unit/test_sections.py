import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfuse.errors import DataError
from transfuse.text.sections import screen_sections, split_sections
from transfuse.types import Document, Dropped, Section


def titles_and_texts(text: str, format_: str = "md") -> list[tuple[str, str]]:
    sections, _ = split_sections(Document("a", text, format_))  # pyright: ignore[reportArgumentType]
    return [(" / ".join(section.heading_path), section.text) for section in sections]


def cleaned(text: str) -> str:
    ((_, only),) = titles_and_texts(text)
    return only


# splitting


def test_heading_path_runs_from_the_title_down() -> None:
    text = "before\n\n# T\n\none\n\n### Deep\n\ntwo\n\nB *b*\n---\n\nthree\n\n# U #\n\nfour\n"
    assert titles_and_texts(text) == [
        ("", "before"), ("T", "one"), ("T / Deep", "two"), ("T / B b", "three"), ("U", "four"),
    ]  # fmt: skip


def test_span_holds_the_body_without_heading_and_outer_blank_lines() -> None:
    text = "# T\n\n\n  one\n\ntwo  \n\n\n## B\nthree"
    sections, dropped = split_sections(Document("a", text, "md"))
    assert [text[slice(*section.span)] for section in sections] == ["  one\n\ntwo", "three"]
    assert dropped == []


@pytest.mark.parametrize("line_end", ["\r\n", "\r", "\n"])
def test_spans_are_right_for_every_line_end(line_end: str) -> None:
    text = line_end.join(["# T", "", "one \u2028 a", "b", "", "Under", "=====", "", "two", ""])
    sections, _ = split_sections(Document("a", text, "md"))
    assert [text[slice(*section.span)] for section in sections] == [f"one \u2028 a{line_end}b", "two"]
    assert [section.text for section in sections] == ["one a b", "two"]


@pytest.mark.parametrize(
    "body", ["```\n# no\n```", "~~~sh\n# no\n\nB\n---\n~~~", "    # no", "> # no", "- # no", "\\# no", "#no"]
)
def test_only_real_headings_cut(body: str) -> None:
    assert [title for title, _ in titles_and_texts(f"# T\n\n{body}\n")] == ["T"]


def test_long_paragraph_above_a_rule_is_no_heading() -> None:
    paragraph = "This is a sentence. " * 10
    assert titles_and_texts(f"# T\n\n{paragraph.strip()}\n---\n\nend") == [
        ("T", f"{paragraph.strip()}\n\nend")
    ]


def test_plain_text_file_is_one_section() -> None:
    text = "Top\n===\n\n# not a heading\nwrapped\tline\n- item *a*\n- item b\n"
    assert titles_and_texts(text, "txt") == [
        ("", "Top ===\n\n# not a heading wrapped line\n- item *a*\n- item b")
    ]


def test_pdf_text_is_plain_but_for_its_headings() -> None:
    text = "# Start\n\na_b *c* <d> [e](f)\n\n\\# 5 lost\n\n```\n\n## End\n\nx\n"
    assert titles_and_texts(text, "pdf") == [
        ("Start", "a_b *c* <d> [e](f)\n\n# 5 lost\n\n```"),
        ("Start / End", "x"),
    ]


def test_page_is_the_one_on_which_the_body_begins() -> None:
    text = "# A\n\none\n\n# B\n\ntwo\n"
    document = Document("a", text, "pdf", (0, text.index("# B"), text.index("two")))
    sections, _ = split_sections(document)
    assert [section.page for section in sections] == [1, 3]
    assert split_sections(Document("a", text, "md"))[0][0].page is None


def test_what_is_left_out_has_a_reason() -> None:
    text = (
        "---\ntitle: x\n---\n\n# T\n\n## Parent\n\n### Child\n\nx\n\n## Numbers\n\n| a |\n|---|\n| 1 |\n\n"
        "## Mixed\n\nx\n\n<table><tr><td>1</td></tr></table>\n\n## Image\n\n![alt](a.png) <!-- c -->\n"
    )
    sections, dropped = split_sections(Document("a.md", text, "md"))
    assert [section.title for section in sections] == ["Child", "Mixed"]
    assert [(drop.kind, drop.what, drop.reason) for drop in dropped] == [
        ("section", "a.md: front matter", "settings, not prose"),
        ("section", "a.md: T", "empty"),
        ("section", "a.md: T / Parent", "empty"),
        ("section", "a.md: T / Numbers", "holds only a table"),
        ("table", "a.md: T / Mixed", "1 table left out of the text"),
        ("section", "a.md: T / Image", "empty"),
    ]


# cleaning


@pytest.mark.parametrize(
    ("markdown", "text"),
    [
        ("**b** *i* _i_ ~~s~~ `c*d*`", "b i i s c*d*"),
        ("[text](http://u) [ref][r] <http://u>\n\n[r]: http://u", "text ref http://u"),
        ("a ![alt](x.png) b", "a b"),
        ("a[^1] b [^note].\n\n[^1]: The note.\n[^note]: http://u", "a b.\n\nThe note.\nhttp://u"),
        ("a[[3]](#n) b", "a b"),
        ("&lt;x&gt; &amp; caf&eacute; \\* 2\u00a0km", "<x> & café * 2 km"),
        ("a <!-- c --> b<br>c <span class='x'>d</span>", "a b\nc d"),
        ("10<sup>6</sup> H<sub>2</sub>O 1<sup>st</sup>", "10⁶ H₂O 1st"),
        ("wrapped\nline  \nhard\n\n\n\nnext", "wrapped line\nhard\n\nnext"),
        ("- a\n- b\n  - c\n\n3. d\n4. e\n   f", "- a\n- b\n  - c\n\n3. d\n4. e f"),
        ("> quoted *text*\n\n***\n\nend", "quoted text\n\nend"),
        ("```py\nx  =  1\n\n  # y\n```", "x  =  1\n\n  # y"),
        ("<div>\n<p>a &amp; <b>b</b></p>\n<script>x</script>\n</div>", "a & b"),
        ("<table>\n\n<tr><td>1</td></tr>\n\n</table>\n\nend", "end"),
        ("soft\u00adware 5 < 6 > 4", "software 5 < 6 > 4"),
    ],
)
def test_markdown_is_cleaned(markdown: str, text: str) -> None:
    assert cleaned(markdown) == text


# invariants

words = st.text(alphabet="abcdeäß 12.,", min_size=1, max_size=30).map(lambda text: f"w{text}w")
blocks = st.one_of(
    words,
    words.map(lambda text: f"- {text}"),
    words.map(lambda text: f"```\n# {text}\n\n{text}\n```"),
    words.map(lambda text: f"> {text}"),
    st.just(""),
)
heading_lines = st.builds(lambda level, text: f"{'#' * level} {text}", st.integers(1, 6), words)
pieces = st.lists(st.one_of(blocks, heading_lines), max_size=12)


@given(pieces, st.sampled_from(["\n", "\r\n"]))
def test_every_line_of_text_lies_in_exactly_one_section(parts: list[str], line_end: str) -> None:
    headings = {at for at, part in enumerate(parts) if part.startswith("#")}
    text = "".join(part.replace("\n", line_end) + line_end * 2 for part in parts)
    sections, _ = split_sections(Document("a", text, "md"))
    spans = [section.span for section in sections]
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
    at = 0
    for number, part in enumerate(parts):
        for line in part.split("\n"):
            holders = [span for span in spans if span[0] <= at and at + len(line) <= span[1]]
            if line.strip():
                assert len(holders) == (0 if number in headings else 1), line
            at += len(line) + len(line_end)
        at += len(line_end)


@given(
    st.text(alphabet="ab #-=`>*_[]()<!|\\&;~:^1.\n\r\t", max_size=80), st.sampled_from(["md", "txt", "pdf"])
)
def test_no_input_breaks_the_cutting(text: str, format_: str) -> None:
    document = Document("a", text, format_)  # pyright: ignore[reportArgumentType]
    sections, _ = split_sections(document)
    spans = [section.span for section in sections]
    assert all(
        text[start:end].strip() and section.text
        for section, (start, end) in zip(sections, spans, strict=True)
    )
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


# screening


def section(*path: str, text: str = "x", document: str = "a.md") -> Section:
    return Section(document, path, text, (0, 1))


SECTIONS = [section("T", "Overview"), section("T", "History", "Early years"), section("T", "References")]


@pytest.mark.parametrize(
    ("include", "exclude", "kept"),
    [
        ([], [], ["Overview", "Early years", "References"]),
        (["overview"], [], ["Overview"]),
        (["t / history / *"], [], ["Early years"]),
        (["History"], [], ["Early years"]),
        (["*"], ["REF*", "his*"], ["Overview"]),
    ],
)
def test_patterns_choose_sections(include: list[str], exclude: list[str], kept: list[str]) -> None:
    sections, dropped = screen_sections(SECTIONS, include=include, exclude=exclude)
    assert [section.title for section in sections] == kept
    assert len(sections) + len(dropped) == len(SECTIONS)


def test_screened_sections_have_a_reason() -> None:
    sections = [*SECTIONS, section("T", "Void", text=" "), section(text="y")]
    _, dropped = screen_sections(sections, include=["T", "Ref*"], exclude=["Ref*"])
    assert dropped == [
        Dropped("section", "a.md: T / References", "excluded by pattern 'Ref*'"),
        Dropped("section", "a.md: T / Void", "empty"),
        Dropped("section", "a.md", "matches no include pattern"),
    ]


def test_section_without_heading_is_matched_by_its_document() -> None:
    kept, _ = screen_sections([section(document="notes/b.txt"), *SECTIONS], include=["notes/*"])
    assert [section.title for section in kept] == ["notes/b.txt"]


def test_include_pattern_without_match_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"'Overveiw' matches none of the 3 sections.*'Overview', 'Early years'"
    ):
        screen_sections(SECTIONS, include=["References", "Overveiw"])


def test_patterns_that_leave_nothing_are_refused() -> None:
    with pytest.raises(DataError, match=r"none of the 3 sections is left \(excluded by pattern '\*'\)"):
        screen_sections(SECTIONS, exclude=["*"])


def test_no_sections_give_no_sections() -> None:
    assert screen_sections([], include=["x"]) == ([], [])
