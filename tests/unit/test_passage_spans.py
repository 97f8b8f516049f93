"""Spans in long sources: the same as `locate` finds, whatever the cuts are."""

import random
import re
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.knowledge import passage_spans as module
from transfuse.knowledge.passage_spans import locate_all
from transfuse.text.sentences import locate

SOURCE = "**Ice** closed\n  the [pier](x).\n\n| a | b |\n\nIt *opened* again."
CLEANED = "Ice closed the pier.\n\nIt opened again."


def marked_text(n_words: int, share: float, seed: int = 0) -> tuple[str, str]:
    """Words, and the same with marks around a share of them."""
    rng = random.Random(seed)  # noqa: S311 - words, no secret
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(n_words)]
    return " ".join(words), "\n".join(f"**{word}**" if rng.random() < share else word for word in words)


def test_spans_worked_by_hand():
    spans = [(0, 20), (22, 38), (11, 14)]
    found = [SOURCE[slice(*span)] for span in locate_all(spans, CLEANED, SOURCE)]
    assert found == ["Ice** closed\n  the [pier](x).", "It *opened* again.", "the"]
    assert locate_all([], CLEANED, SOURCE) == []
    assert locate_all([(0, 3)], "Ice", "  ") == [(0, 0)]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 0.3), st.lists(st.tuples(st.integers(0, 899), st.integers(1, 90))))
def test_cuts_change_nothing(seed, share, places):
    cleaned, raw = marked_text(900, share, seed)
    words = [found.span() for found in re.finditer(r"\S+", cleaned)]
    spans = [(words[at][0], words[min(at + n, 900) - 1][1]) for at, n in places]
    assert locate_all(spans, cleaned, raw) == locate(spans, cleaned, raw)


def test_a_text_that_repeats_itself_is_followed_in_order(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 200)
    monkeypatch.setattr(module, "_SLACK", 400)
    cleaned, raw = marked_text(400, 0.1)
    raws, texts = "\n".join([raw] * 12), " ".join([cleaned] * 12)
    words = [found.span() for found in re.finditer(r"\S+", texts)]
    for (start, end), (first, last) in zip(words, locate_all(words, texts, raws), strict=True):
        assert raws[first:last].strip("*") == texts[start:end]


def test_long_texts_take_no_longer_than_their_length(monkeypatch):
    cleaned, raw = marked_text(30_000, 0)
    started = time.process_time()
    spans = [found.span() for found in re.finditer(r"\S+", cleaned)]
    found = locate_all(spans, cleaned, raw)
    assert time.process_time() - started < 2
    assert raw[slice(*found[-1])] == cleaned[slice(*spans[-1])]
    # Nothing in common: every search for a cut fails.
    started = time.process_time()
    assert len(locate_all([(0, 5)], "x" * 50_000, "y" * 50_000)) == 1
    assert time.process_time() - started < 4
