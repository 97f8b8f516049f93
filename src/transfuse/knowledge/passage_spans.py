"""Where stretches of a cleaned text stand in its source, for texts of any length."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64

from transfuse.text.sentences import Span, locate

_CHUNK = 2000
_GRAM = 32
_SLACK = 8000
"""How many characters more than the cleaned text its source may have up to the next cut."""
_SPACES = np.array([code for code in range(0x3001) if chr(code).isspace()], dtype=np.uint32)


def locate_all(spans: Sequence[Span], cleaned: str, raw: str) -> list[Span]:
    """What `locate` finds, in time and memory proportional to the texts.

    Both texts are cut where a piece of the one stands once in the neighbourhood of the same place in the other,
    and aligned between these cuts only where they differ.

    Args:
        spans: in `cleaned`, each with at least one character other than white space.
        cleaned: what is left of `raw`.
        raw: the source.

    Returns:
        A span in `raw` for each span, without white space at its ends.
    """
    if not spans or not raw.strip():
        return locate(spans, cleaned, raw)
    cleaned_at, raw_at = _solid(cleaned), _solid(raw)
    starts = np.searchsorted(cleaned_at, [start for start, _ in spans])
    lasts = np.maximum(np.searchsorted(cleaned_at, [end for _, end in spans]) - 1, starts)
    signs = np.unique(np.concatenate([starts, lasts]))
    begins, finishes = (
        np.empty_like(signs),
        np.empty_like(signs),
    )  # of each sign's span among the solid ones of `raw`
    one, other = "".join(cleaned.split()), "".join(raw.split())
    for of_one, of_other in _chunks(one, other):
        inside = slice(*np.searchsorted(signs, of_one))
        offset = of_other[0] - of_one[0]
        if one[slice(*of_one)] == other[slice(*of_other)]:
            begins[inside], finishes[inside] = signs[inside] + offset, signs[inside] + offset + 1
            continue
        single = [(int(sign), int(sign) + 1) for sign in signs[inside] - of_one[0]]
        found = locate(single, one[slice(*of_one)], other[slice(*of_other)])
        begins[inside] = [begin + of_other[0] for begin, _ in found]
        finishes[inside] = [finish + of_other[0] for _, finish in found]
    begin = np.minimum(begins[np.searchsorted(signs, starts)], len(raw_at) - 1)
    finish = np.clip(finishes[np.searchsorted(signs, lasts)], begin + 1, len(raw_at))
    return list(zip(raw_at[begin].tolist(), (raw_at[finish - 1] + 1).tolist(), strict=True))


def _solid(text: str) -> Int64[np.ndarray, " signs"]:
    """Places of the characters other than white space."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return np.flatnonzero(~np.isin(codes, _SPACES))


def _chunks(one: str, other: str) -> Iterator[tuple[Span, Span]]:
    """Stretches of both texts that belong together and tile them; one of them may be empty."""
    if one == other:
        yield (0, len(one)), (0, len(other))
        return
    start = place = 0
    while cut := _next_cut(one, other, start, place):
        yield (start, cut[0]), (place, cut[1])
        start, place = cut
    yield (start, len(one)), (place, len(other))


def _next_cut(one: str, other: str, start: int, place: int) -> Span | None:
    """The next place in both texts where the same piece begins, standing once in the neighbourhood."""
    at = start + _CHUNK
    while at + _GRAM <= len(one):
        gram = one[at : at + _GRAM]
        limit = place + (at - start) + _SLACK
        found = other.find(gram, place, limit)
        if (
            found >= 0
            and other.find(gram, found + 1, limit) < 0
            and one.find(gram, start, at + _SLACK) == at
            and one.find(gram, at + 1, at + _SLACK) < 0
        ):
            return at, found
        at += max(_GRAM // 2, (at - start) // 64)
    return None
