import pytest

from transfuse.errors import DataError
from transfuse.inject.fact_windows import (
    Window,
    cut_windows,
    number_sentences,
    sentences_behind,
    stated_numbers,
)
from transfuse.text.sections import split_sections
from transfuse.types import Document

TEXT = "# T\n\nAnn *won*. Bob lost 3.\n\n## B\n\nEve left.\n"


def windows_of(n_sentences: int, max_sentences: int, max_chars: int = 100) -> list[list[int]]:
    text = " ".join("Ab cd ef." for _ in range(n_sentences))
    sections, _ = split_sections(Document("a", text, "txt"))
    (sentences,) = number_sentences(sections, {"a": text})
    windows = cut_windows(0, sentences, max_sentences, max_chars)
    return [[sentence.index for sentence in window.sentences] for window in windows]


def test_sentences_are_numbered_through_all_sections_with_their_source() -> None:
    sections, _ = split_sections(Document("a", TEXT, "md"))
    numbered = number_sentences(sections, {"a": TEXT})
    assert [[(s.index, TEXT[slice(*s.span)]) for s in each] for each in numbered] == [
        [(0, "Ann *won*."), (1, "Bob lost 3.")], [(2, "Eve left.")],
    ]  # fmt: skip


def test_an_unknown_document_is_refused() -> None:
    sections, _ = split_sections(Document("a", TEXT, "md"))
    with pytest.raises(DataError, match=r"expected the text of its document 'a', got only \['b'\]"):
        number_sentences(sections, {"b": ""})


def test_windows_are_even_and_hold_no_more_than_asked() -> None:
    assert windows_of(5, 4) == [[0, 1, 2], [3, 4]]
    assert windows_of(3, 12, max_chars=18) == [[0, 1], [2]]
    assert windows_of(2, 12, max_chars=1) == [[0], [1]]


def test_halves_show_what_stood_before() -> None:
    sections, _ = split_sections(Document("a", "One. Two. Three.", "txt"))
    (sentences,) = number_sentences(sections, {"a": "One. Two. Three."})
    first, second = Window(0, sentences, ()).halves()
    assert [s.text for s in first.sentences] == ["One."]
    assert [s.text for s in second.before] == ["One."]
    assert [s.text for s in second.sentences] == ["Two.", "Three."]


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        ([1, 2], [1, 2]),
        ("[3]", [3]),
        ("2-4", [2, 3, 4]),
        ([0, -1, 9, 99999], []),
        (None, []),
        ({"a": [1]}, [1]),
    ],
)
def test_sentence_numbers_are_those_that_exist(value: object, numbers: list[int]) -> None:
    assert stated_numbers(value, 4) == numbers


def test_a_fact_belongs_to_the_sentence_that_shares_its_words() -> None:
    sections, _ = split_sections(Document("a", TEXT, "md"))
    window = Window(0, number_sentences(sections, {"a": TEXT})[0], ())
    assert [s.index for s in sentences_behind("Bob lost.", [2], window)] == [1]
    assert [s.index for s in sentences_behind("Bob lost.", [1], window)] == [1]
    assert [s.index for s in sentences_behind("Bob lost.", [], window)] == [1]
    assert sentences_behind("Zoe slept.", [1], window) == ()
