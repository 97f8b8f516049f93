"""Passages: within the limit, in order, whole sentences, nothing lost, spans and pages that are true."""

import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.errors import DataError
from transfuse.knowledge.passages import cut_passages, searched_text
from transfuse.knowledge.records import Passage, PassageSettings
from transfuse.text.sections import split_sections
from transfuse.text.sentences import split_sentences
from transfuse.types import Document, Section


def count_words(texts: Sequence[str]) -> list[int]:
    """A word is a token."""
    return [len(text.split()) for text in texts]


def count_characters(texts: Sequence[str]) -> list[int]:
    """A character other than white space is a token."""
    return [sum(not sign.isspace() for sign in text) for text in texts]


def count_joined(texts: Sequence[str]) -> list[int]:
    """Not additive: a line break costs three tokens more than the same text without it."""
    return [len(text.split()) + 3 * text.count("\n") for text in texts]


def passages_of(text: str, *, count=count_words, format_: str = "md", **limits) -> list[Passage]:
    document = Document("d.md", text, format_)  # pyright: ignore[reportArgumentType]
    return cut_passages(document, split_sections(document)[0], PassageSettings(**limits), count)


def sentence(name: str, n_words: int) -> str:
    return " ".join(f"{name}{number}" for number in range(n_words)).capitalize() + "."


def test_sentences_are_packed_and_the_last_ones_repeated():
    a, b, c, d = (sentence(name, n) for name, n in (("a", 6), ("b", 4), ("c", 5), ("d", 8)))
    text = f"# Top\n\n## Ferry\n\n{a} {b}\n\n{c} {d}"
    found = passages_of(text, max_tokens=16, overlap_tokens=5)
    # "Top > Ferry" takes 3 of 16; 6 + 4 fit, 5 more do not; b is repeated before c; before d there is room for c.
    assert [passage.text for passage in found] == [f"{a} {b}", f"{b}\n\n{c}", f"{c} {d}"]
    assert {passage.heading_path for passage in found} == {("Top", "Ferry")}
    assert [text[slice(*passage.span)] for passage in found] == [f"{a} {b}", f"{b}\n\n{c}", f"{c} {d}"]
    assert searched_text(found[0], headings=True) == f"Top > Ferry\n{a} {b}"
    assert searched_text(found[0], headings=False) == f"{a} {b}"
    alone = passages_of(text, max_tokens=16, overlap_tokens=0, headings=False)
    assert [passage.text for passage in alone] == [f"{a} {b}\n\n{c}", d]


def test_the_repeat_gives_way_to_the_next_sentence():
    a, b, c = (sentence(name, n) for name, n in (("a", 10), ("b", 4), ("c", 14)))
    found = passages_of(f"{a} {b} {c}", max_tokens=16, overlap_tokens=8)
    assert [passage.text for passage in found] == [f"{a} {b}", c]


def test_a_long_sentence_is_cut_at_white_space_and_a_long_word_anywhere():
    long = sentence("w", 40)
    found = passages_of(f"{long} Short end.", max_tokens=16, overlap_tokens=8)
    assert [len(passage.text.split()) for passage in found] == [16, 16, 10]
    assert " ".join(passage.text for passage in found) == f"{long} Short end."
    chinese = "知识" * 25
    found = passages_of(chinese, count=count_characters, max_tokens=16, overlap_tokens=8)
    assert "".join(passage.text for passage in found) == chinese
    assert max(len(passage.text) for passage in found) <= 16
    assert len(found) == 4


def test_one_unknown_token_does_not_swallow_a_book():
    found = passages_of("x" * 4000, max_tokens=16, overlap_tokens=0)  # one word: one token
    assert "".join(passage.text for passage in found) == "x" * 4000
    assert max(len(passage.text) for passage in found) <= 16 * 33


def test_of_headings_beyond_half_of_the_limit_the_nearest_are_kept():
    parts = f"# {sentence('t', 6)}\n\n## {sentence('s', 4)}\n\n### Near one\n\nSome text."
    assert passages_of(parts, max_tokens=16, overlap_tokens=0)[-1].heading_path == (
        sentence("s", 4),
        "Near one",
    )
    long = passages_of(f"# {sentence('h', 30)}\n\nSome text.", max_tokens=16, overlap_tokens=0)
    assert long[0].heading_path == ("H0 h1 h2 h3 h4 h5 h6",)
    whole = passages_of(
        f"# {sentence('h', 30)}\n\nSome text.", max_tokens=16, overlap_tokens=0, headings=False
    )
    assert whole[0].heading_path == (sentence("h", 30),)


def test_the_limit_holds_where_tokens_do_not_add_up():
    text = "\n\n".join(sentence(f"p{number}", 4) for number in range(9))
    found = passages_of(text, count=count_joined, max_tokens=20, overlap_tokens=0)
    assert max(count_joined([passage.text for passage in found])) <= 20
    assert "\n\n".join(passage.text for passage in found) == text


def test_ids_stay_where_text_and_headings_stay_and_repeats_have_their_own():
    text = "# A\n\nSame words here.\n\n# B\n\nSame words here.\n\n# A\n\nSame words here."
    one = passages_of(text)
    assert len({passage.id for passage in one}) == 3
    more = passages_of("# New\n\nFirst.\n\n" + text)
    assert [passage.id for passage in more[1:]] == [passage.id for passage in one]
    renamed = cut_passages(
        Document("e.md", text, "md"),
        [Section("e.md", ("A",), "Same words here.", (5, 21))],
        PassageSettings(),
        count_words,
    )
    assert renamed[0].id not in {passage.id for passage in one}


def test_pages_are_those_on_which_a_passage_begins():
    document = Document("d.pdf", "One two. Three four. Five six.", "pdf", page_starts=(0, 9))
    section = Section("d.pdf", (), document.text, (0, 30), 1)
    settings_ = PassageSettings(max_tokens=16, overlap_tokens=0)
    found = cut_passages(document, [section], settings_, lambda texts: [len(text) for text in texts])
    assert [(passage.text, passage.page) for passage in found] == [
        ("One two.", 1),
        ("Three four.", 2),
        ("Five six.", 2),
    ]


def test_few_calls_count_everything():
    calls: list[int] = []

    def count(texts: Sequence[str]) -> list[int]:
        calls.append(len(texts))
        return count_words(texts)

    text = "\n\n".join(f"# S{part}\n\n{' '.join(sentence('w', 9) for _ in range(20))}" for part in range(30))
    assert len(passages_of(text, count=count, max_tokens=64, overlap_tokens=16)) > 100
    assert len(calls) <= 4
    assert passages_of("", count=count) == []


def test_sections_of_another_document_are_refused():
    section = Section("other.md", ("Ferry",), "Text.", (0, 5))
    with pytest.raises(
        DataError, match=r"section 'Ferry': expected one of document 'd\.md', got one of 'other"
    ):
        cut_passages(Document("d.md", "Text.", "md"), [section], PassageSettings(), count_words)


WORDS = st.lists(
    st.sampled_from(["ice", "Pier", "x" * 20, "港口关闭", "38-35", "é"]), min_size=1, max_size=30
)
SENTENCES = st.lists(st.tuples(WORDS, st.sampled_from([". ", "! ", "\n\n", "。"])), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(
    SENTENCES,
    st.sampled_from(["", "# Top\n\n", "# A very long title of ten words and more still\n\n## B\n\n"]),
    st.sampled_from([count_words, count_characters, count_joined]),
    st.integers(16, 60),
    st.integers(0, 8),
)
def test_limit_order_coverage_ids_and_spans_hold(parts, headings, count, max_tokens, overlap):
    text = headings + "".join(" ".join(words) + end for words, end in parts)
    document = Document("d.md", text, "md")
    sections, _ = split_sections(document)
    limits = PassageSettings(max_tokens=max_tokens, overlap_tokens=overlap)
    found = cut_passages(document, sections, limits, count)
    assert len({passage.id for passage in found}) == len(found)
    assert all(n <= max_tokens for n in count([searched_text(one, headings=True) for one in found]))
    for passage in found:
        assert "".join(text[slice(*passage.span)].split()) == "".join(passage.text.split())
        assert passage.text == passage.text.strip() != ""
    for section in sections:
        mine = [one for one in found if section.span[0] <= one.span[0] < section.span[1]]
        covered = {at for one in mine for at in range(*one.span)}
        solid = {at for at in range(*section.span) if not text[at].isspace()}
        assert solid <= covered
        for before, after in pairwise(mine):
            assert before.span[0] < after.span[0]
            assert before.span[1] < after.span[1]
        for start, end in split_sentences(section.text):
            whole = section.text[start:end]
            fits = count([whole])[0] < max_tokens // 2 - 4  # the headings take half at most
            assert not fits or any(whole in one.text for one in mine)


def test_a_long_text_takes_time_in_proportion():
    text = "\n\n".join(" ".join(sentence(f"s{at}x{number}", 12) for number in range(8)) for at in range(300))
    started = time.process_time()
    found = passages_of(text, format_="txt", max_tokens=64, overlap_tokens=16)
    assert time.process_time() - started < 3
    assert len(found) > 500
    started = time.process_time()
    assert len(passages_of("漢" * 20_000, count=count_characters, max_tokens=64)) > 300
    assert time.process_time() - started < 3
