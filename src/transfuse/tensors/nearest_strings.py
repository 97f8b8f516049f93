"""For each string the one of least edit distance in a large list: exact, from candidates that prove the minimum."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

N_CLASSES = 3
"""Sets that the characters are divided into: more of them prune better, and make more and smaller groups."""
RARE_SHARE = 1 / 1000
"""A character is rare where fewer than this share of the targets contain it."""

_PLACE_BITS = 32
_CELLS_AT_ONCE = 1 << 24

OnStrings = Callable[[int, int], object]
"""Told how many distinct strings are done, and of how many."""


class NearestStrings(NamedTuple):
    """What each string's nearest one is, and how far."""

    places: Int[np.ndarray, " sources"]
    """int32, in the list of targets; of several equally near ones the first."""
    distances: Int[np.ndarray, " sources"]
    """int32, least number of characters put in, taken out or exchanged."""


def nearest_strings(
    sources: Sequence[str],
    targets: Sequence[str],
    *,
    n_threads: int = 1,
    on_strings: OnStrings | None = None,
) -> NearestStrings:
    """The target of least Levenshtein distance for each source; of several the first. Equal to comparing all pairs.

    Equal strings are found by look-up. The others are grouped by how many characters of each of some classes they
    have: the surplus between two groups' counts is a lower bound of every distance between them. A group of sources
    meets the groups of targets in the order of that bound, until none is below what has been found.

    Characters that no target has count as one that matches nothing, so that strings of one pattern are one string.
    To have many such, the few targets with rare characters are searched apart, after the others.

    Args:
        sources: any strings; equal ones are looked at once.
        targets: at least one.
        n_threads: cores to use; the answer is the same.
        on_strings: told of progress, from the calling thread.

    Returns:
        A place and a distance for each source.

    Raises:
        ValueError: there is no target.

    Source:
        The mapping of Wan et al. 2024, arXiv:2401.10491, section 3.3, which compares all pairs.
    """
    if not targets:
        raise ValueError("expected at least one target string, got none.")
    place_of: dict[str, int] = {}
    for place, target in enumerate(targets):
        place_of.setdefault(target, place)
    distinct = list(dict.fromkeys(sources))
    unequal = [source for source in distinct if source not in place_of]
    n_equal = len(distinct) - len(unequal)

    def tell(share: float) -> None:
        if on_strings:
            on_strings(n_equal + int(share * len(unequal)), len(distinct))

    tell(0.0)
    keys = {source: place_of[source] for source in distinct if source in place_of}  # at distance 0
    if unequal:
        keys |= zip(unequal, _least_keys(unequal, place_of, n_threads, tell).tolist(), strict=True)
        tell(1.0)
    found = np.fromiter((keys[source] for source in sources), dtype=np.int64, count=len(sources))
    distances, places = np.divmod(found, 1 << _PLACE_BITS)
    return NearestStrings(places.astype(np.int32), distances.astype(np.int32))


def _least_keys(
    sources: Sequence[str], place_of: Mapping[str, int], n_threads: int, tell: Callable[[float], None]
) -> Int[np.ndarray, " sources"]:
    """Each source's least key: distance and place in one number, so that the lesser key is the nearer, earlier one."""
    n_with = Counter(character for target in place_of for character in set(target))
    rare = {character for character, n in n_with.items() if n < RARE_SHARE * len(place_of)}
    parts = [
        [target for target in place_of if rare.isdisjoint(target)],
        [target for target in place_of if not rare.isdisjoint(target)],
    ]
    best = np.full(len(sources), np.iinfo(np.int64).max)
    for n_before, part in enumerate(parts):
        if part:
            places = np.array([place_of[target] for target in part])
            search = _Search(sources, best, part, places)
            best = search.run(n_threads, lambda share, n=n_before: tell((n + share) / len(parts)))
    return best


class _Groups(NamedTuple):
    """Strings that have equally many characters of every class are one group."""

    counts: Int[np.ndarray, "groups classes"]
    members: list[np.ndarray]
    """Places of each group's strings, ascending."""


class _Search:
    """The lesser of each source's bound and its least key over the targets."""

    def __init__(
        self, sources: Sequence[str], bounds: np.ndarray, targets: Sequence[str], places: np.ndarray
    ) -> None:
        n_of = Counter(character for target in targets for character in target)
        unmatched = next(chr(code) for code in range(0x110000) if chr(code) not in n_of)
        patterns = _with_one_unmatched(sources, n_of, unmatched)
        row_of = {pattern: row for row, pattern in enumerate(dict.fromkeys(patterns))}
        self._rows = np.array([row_of[pattern] for pattern in patterns])
        self._bounds = bounds
        self._best = np.full(len(row_of), -1)
        np.maximum.at(self._best, self._rows, bounds)  # a pattern's bound is that of its worst-off source

        class_of = _balanced_classes(n_of) | {unmatched: N_CLASSES}
        self._queries = np.array(list(row_of), dtype=object)
        self._query_groups = _groups(list(row_of), class_of)
        self._targets = np.array(targets, dtype=object)
        self._target_groups = _groups(targets, class_of)
        self._places = places
        longest = max(max(map(len, row_of)), max(map(len, targets)))
        self._dtype = np.uint8 if longest < 1 << 8 else np.uint16 if longest < 1 << 16 else np.int64

    def run(self, n_threads: int, tell: Callable[[float], None]) -> np.ndarray:
        n_done, n_all = 0, len(self._queries)
        with ThreadPoolExecutor(n_threads) as pool:
            for n_more in pool.map(self._search_group, range(len(self._query_groups.members))):
                n_done += n_more
                tell(n_done / n_all)
        return np.minimum(self._bounds, self._best[self._rows])

    def _search_group(self, group: int) -> int:
        rows = self._query_groups.members[group]
        surplus = self._query_groups.counts[group] - self._target_groups.counts
        bounds = np.maximum(surplus.clip(min=0).sum(1), (-surplus).clip(min=0).sum(1))
        order = np.argsort(bounds, kind="stable")
        starts = np.flatnonzero(np.diff(bounds[order], prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            least_distance = int(bounds[order[start]])
            open_rows = rows[self._best[rows] >= least_distance << _PLACE_BITS]
            if not len(open_rows):
                break
            near = np.sort(np.concatenate([self._target_groups.members[g] for g in order[start:end]]))
            self._meet(open_rows, near, least_distance)
        return len(rows)

    def _meet(self, rows: np.ndarray, near: np.ndarray, least_distance: int) -> None:
        """Let queries meet targets, none of which is nearer than the distance."""
        tied = self._best[rows] >> _PLACE_BITS == least_distance
        if tied.any():  # these can only gain by an earlier place
            last = int((self._best[rows[tied]] & ((1 << _PLACE_BITS) - 1)).max())
            self._compare(rows[tied], near[: np.searchsorted(self._places[near], last)])
        self._compare(rows[~tied], near)

    def _compare(self, rows: np.ndarray, near: np.ndarray) -> None:
        if not len(rows) or not len(near):
            return
        texts = self._targets[near].tolist()
        step = max(1, _CELLS_AT_ONCE // len(near))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            distances = cdist(
                self._queries[some].tolist(), texts, scorer=Levenshtein.distance, dtype=self._dtype
            )
            first = distances.argmin(axis=1)
            least = distances[np.arange(len(some)), first].astype(np.int64)
            keys = (least << _PLACE_BITS) + self._places[near[first]]
            self._best[some] = np.minimum(self._best[some], keys)


def _with_one_unmatched(sources: Sequence[str], known: Mapping[str, int], unmatched: str) -> list[str]:
    """The strings with every unknown character replaced by the same one."""
    unknown = {character for source in sources for character in source} - known.keys()
    table = str.maketrans(dict.fromkeys(unknown, unmatched))
    return [source.translate(table) for source in sources]


def _balanced_classes(n_of: Mapping[str, int]) -> dict[str, int]:
    """The class of each character, so that the classes occur about equally often."""
    load = [0] * N_CLASSES
    class_of: dict[str, int] = {}
    for character, n in sorted(n_of.items(), key=lambda item: (-item[1], item[0])):
        class_of[character] = load.index(min(load))
        load[class_of[character]] += n
    return class_of


def _groups(strings: Sequence[str], class_of: Mapping[str, int]) -> _Groups:
    codes = np.frombuffer("".join(strings).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    classes = np.zeros(max(map(ord, class_of)) + 1, dtype=np.int64)
    for character, number in class_of.items():
        classes[ord(character)] = number
    owner = np.repeat(np.arange(len(strings)), [len(string) for string in strings])
    n_classes = N_CLASSES + 1
    flat = np.bincount(owner * n_classes + classes[codes], minlength=len(strings) * n_classes)
    counts, group_of = np.unique(flat.reshape(-1, n_classes), axis=0, return_inverse=True)
    order = np.argsort(group_of.reshape(-1), kind="stable")
    cuts = np.cumsum(np.bincount(group_of.reshape(-1)))[:-1]
    return _Groups(counts, np.split(order, cuts))
