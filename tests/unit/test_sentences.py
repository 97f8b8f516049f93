import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.text.sections import split_sections
from transfuse.text.sentences import locate, split_sentences
from transfuse.types import Document


def sentences(text: str) -> list[str]:
    return [text[slice(*span)] for span in split_sentences(text)]


# splitting


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It is 1.5 kg. It left at 6:30 p.m. Eastern.", ["It is 1.5 kg.", "It left at 6:30 p.m. Eastern."]),
        ("To A. J. Brown. Dr. Who met the U.S. Army.", ["To A. J. Brown.", "Dr. Who met the U.S. Army."]),
        ("He left at 6 p.m. The bus had gone.", ["He left at 6 p.m.", "The bus had gone."]),
        ("They were No. 1 seeds. No. 2 lost, e.g. Lyon.", ["They were No. 1 seeds.", "No. 2 lost, e.g. Lyon."]),
        ("Am 3. Oktober war es. Nr. 5 fuhr z.B. nach Bonn.", ["Am 3. Oktober war es.", "Nr. 5 fuhr z.B. nach Bonn."]),
        ('"Stop. Now!" he said. "Why?" She left.', ['"Stop. Now!" he said.', '"Why?"', "She left."]),
        ("It ended (see p. 3. Then more). Next.", ["It ended (see p. 3. Then more).", "Next."]),
        ("東京は首都です。「はい。そう。」と言った。", ["東京は首都です。", "「はい。そう。」と言った。"]),
        ("यह है। वह है।", ["यह है।", "वह है।"]),
        ("- Ants\n1. One. Two.\n\nEnd", ["- Ants", "1. One.", "Two.", "End"]),
        ("int x = 3; // No. Yes.\nfoo.bar(1)", ["int x = 3; // No. Yes.", "foo.bar(1)"]),
        (" \n\t\n", []),
    ],
)  # fmt: skip
def test_sentences_end_where_a_reader_ends_them(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from(list("aB1.。!?\"'”“(）) \n\u2028\u00a0-—;=।")), max_size=60))
def test_spans_tile_the_text_but_for_white_space(text: str) -> None:
    spans = split_sentences(text)
    ends = [0, *(end for span in spans for end in span), len(text)]
    assert ends == sorted(ends)
    gaps = "".join(text[end:start] for end, start in zip(ends[::2], ends[1::2], strict=True))
    assert not gaps.strip()
    assert all(piece and piece == piece.strip() for piece in sentences(text))


# locating


def located(markdown: str) -> list[str]:
    (section,), _ = split_sections(Document("a", markdown, "md"))
    raw = markdown[slice(*section.span)]
    return [raw[slice(*span)] for span in locate(split_sentences(section.text), section.text, raw)]


def test_sentences_are_found_under_their_marks() -> None:
    markdown = (
        "The **big** [Orta](https://en.example.org/Orta.html) ferry[^1] runs. It has *300* seats &amp; 20 cars.\n"
        "> Quoted.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n- one `two`. Three.\n- last"
    )
    assert located(markdown) == [
        "The **big** [Orta](https://en.example.org/Orta.html) ferry[^1] runs.",
        "It has *300* seats &amp; 20 cars.",
        "Quoted.",
        "- one `two`.",
        "Three.",
        "- last",
    ]


def test_text_without_a_partner_reaches_to_its_neighbours() -> None:
    assert locate([(2, 3)], "a b c", "a xyz c") == [(2, 5)]
    assert locate([(0, 1)], "b", "xyz") == [(0, 3)]
    assert locate([(0, 1)], "b", "") == [(0, 0)]


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from(list("ab. \n")), min_size=1, max_size=80), st.randoms(use_true_random=False))
def test_identical_text_maps_exactly_and_marks_never_shift_a_span(text: str, random) -> None:
    spans = split_sentences(text)
    assert locate(spans, text, text) == spans
    marked = "".join(sign + "*" * random.randint(0, 2) for sign in text)
    found = [marked[slice(*span)].replace("*", "") for span in locate(spans, text, marked)]
    assert ["".join(piece.split()) for piece in found] == [
        "".join(text[slice(*span)].split()) for span in spans
    ]


def test_a_long_section_with_a_dropped_middle_keeps_its_places() -> None:
    text = " ".join(f"Sentence number {number} says {number * 7919 % 1000}." for number in range(400))
    spans = split_sentences(text)
    cut = spans[200][0]
    raw = text[:cut] + "| table " * 3000 + text[cut:]
    assert [raw[slice(*span)] for span in locate(spans, text, raw)] == sentences(text)
