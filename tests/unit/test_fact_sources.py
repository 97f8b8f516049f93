"""A fact's source text: its sentences and their surroundings, within its section."""

from transfuse.inject.fact_sources import MARGIN_CHARACTERS, fact_sources
from transfuse.types import Document, Fact, Section

BEFORE, STATED, AFTER = "Filler words. " * 100, "The bell weighs 412 kg.", " More filler." * 100
TEXT = f"# Isle\n\n{BEFORE}{STATED}{AFTER}"
DOCUMENT = Document("isle.md", TEXT, "md")
SECTION = Section("isle.md", ("Isle",), TEXT[8:], (8, len(TEXT)))


def source(fact: Fact, *sections: Section) -> str:
    return fact_sources([fact], sections or [SECTION], [DOCUMENT])[fact.id]


def test_a_span_gives_its_sentences_with_a_margin_cut_between_words():
    start = TEXT.index(STATED)
    text = source(Fact("f1", "Isle", STATED, (start, start + len(STATED))))
    assert STATED in text
    assert len(STATED) + MARGIN_CHARACTERS < len(text) <= len(STATED) + 2 * MARGIN_CHARACTERS
    assert text.split()[0] in ("Filler", "words.")
    assert text.split()[-1] in ("More", "filler.")


def test_the_margin_ends_with_the_section():
    start = TEXT.index(STATED)
    section = Section("isle.md", ("Isle",), STATED, (start, start + len(STATED)))
    assert source(Fact("f1", "Isle", STATED, section.span), section) == STATED


def test_without_a_span_it_is_the_whole_section():
    assert source(Fact("f1", "Isle", STATED)) == SECTION.text


def test_a_span_of_another_section_is_not_read():
    assert source(Fact("f1", "Isle", STATED, (0, 3))) == SECTION.text


def test_a_fact_of_no_section_is_its_own_source():
    assert source(Fact("f1", "Elsewhere", STATED)) == STATED
