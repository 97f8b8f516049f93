"""Merges near-identical facts; two that differ in a number, a name or a denial are never merged."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from rapidfuzz import fuzz, process

from transfuse.inject.fact_words import n_negations, names_of, number_words, signs_of, words_of
from transfuse.text.wording import word_set
from transfuse.types import Dropped, Fact

Similar = Callable[[list[str]], Float[np.ndarray, "n n"]]
"""Likeness in meaning of every two texts, 1 for the same; of embeddings, their cosine."""

_LITTLE = word_set(
    "a an the is was were are be been being has have had that which who also in on at of and "
    "der die das den dem des ein eine le la les un une el los las una il lo"
)
"""Words that one of two statements may have more."""
_TELLING = word_set(
    "by to from into out before after above below over under between until since last former latter next "
    "previous more less fewer most least up down left right north south east west home away all both some any "
    "only almost nearly about around approximately may might could would should planned expected "
    "tried attempted failed allegedly reportedly possibly perhaps if unless won lost win lose old new high low "
    "higher lower larger smaller older younger better worse best worst early late earlier later opened closed "
    "increased decreased rose fell gained led trailed born died began ended started finished "
    "he she his her him male female husband wife son daughter father mother brother sister"
)
"""Words that change what is said: where only one of two statements has one, they say different things."""
_ENDINGS = ("s", "es", "d", "ed")


class Merge(NamedTuple):
    """One statement that gives way to another."""

    gone: int
    """Index of the statement that gives way."""
    kept: int
    """Index of the one that is kept for it."""
    reason: str


class _Features(NamedTuple):
    key: str
    """The words, with spaces."""
    names: tuple[str, ...]
    words: tuple[str, ...]
    unlike: tuple[object, ...]
    """Numbers, negations and signs: of two statements that differ here neither gives way."""


def near_identical(texts: Sequence[str], *, similarity: float, similar: Similar | None = None) -> list[Merge]:
    """Which statements say what another one says.

    Of two, the longer is kept, or the earlier where both are of one length. Every statement that
    gives way does so to one that is kept.

    Args:
        texts: statements.
        similarity: from which likeness on two wordings are near-identical, 0 to 1.
        similar: likeness in meaning, for statements whose wordings differ more.

    Returns:
        One entry for each statement that gives way, by its index.
    """
    features = [_features(text) for text in texts]
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for index, each in enumerate(features):
        groups[each.unlike].append(index)
    meaning = similar(list(texts)) if similar is not None and len(texts) > 1 else None
    merges: list[Merge] = []
    for group in groups.values():
        kept: list[int] = []
        for index in sorted(group, key=lambda each: (-len(texts[each]), each)):
            if merge := _merge(index, kept, features, similarity, meaning):
                merges.append(merge)
            else:
                kept.append(index)
    return sorted(merges)


def _features(text: str) -> _Features:
    words = tuple(words_of(text))
    unlike = (number_words(words), n_negations(text), signs_of(text))
    return _Features(" ".join(words), tuple(names_of(text)), words, unlike)


def _merge(
    index: int,
    kept: Sequence[int],
    features: Sequence[_Features],
    similarity: float,
    meaning: Float[np.ndarray, "n n"] | None,
) -> Merge | None:
    """To which kept statement one gives way, if any; the likest wording comes first."""
    own = features[index]
    keys = [features[other].key for other in kept]
    alike = process.extract(own.key, keys, scorer=fuzz.ratio, score_cutoff=100 * similarity, limit=None)
    for _, score, place in alike:
        other = features[kept[place]]
        if not _same_names(own, other):
            continue
        if own.words == other.words:
            return Merge(index, kept[place], "same wording")
        if _says_no_more(own.words, other.words):
            return Merge(index, kept[place], f"nearly the same wording ({score / 100:.2f})")
    for place in sorted(kept, key=lambda each: -meaning[index, each]) if meaning is not None else ():
        other = features[place]
        score = float(meaning[index, place])  # pyright: ignore[reportOptionalSubscript] - not None, see above
        if not score >= similarity:
            break
        if _same_names(own, other) and not (set(own.words) ^ set(other.words)) & _TELLING:
            return Merge(index, place, f"nearly the same meaning ({score:.2f})")
    return None


def _same_names(one: _Features, other: _Features) -> bool:
    """Whether both name the same in the same order; a word that the other has in lower case is no name."""
    names = [name for name in one.names if name in other.names or name not in other.words]
    others = [name for name in other.names if name in one.names or name not in one.words]
    return names == others


def _says_no_more(shorter: Sequence[str], longer: Sequence[str]) -> bool:
    """Whether every word of the shorter statement stands in the longer one, in the same order."""
    own = [word for word in shorter if word not in _LITTLE]
    others = [word for word in longer if word not in _LITTLE]
    if set(own).symmetric_difference(others) & _TELLING:
        return False
    rest = iter(others)
    return all(any(_same_word(word, other) for other in rest) for word in own)


def _same_word(one: str, other: str) -> bool:
    """Whether two words are the same but for the ending of a plural or a past."""
    short, long = sorted((one, other), key=len)
    return one == other or (len(short) > 2 and long in [short + ending for ending in _ENDINGS])


class MergedFacts(NamedTuple):
    """Facts after merging."""

    kept: list[Fact]
    dropped: list[Dropped]
    kept_ids: dict[str, str]
    """Id of each merged fact to the id of the one that is kept for it."""


def merge_facts(facts: Sequence[Fact], *, similarity: float, similar: Similar | None = None) -> MergedFacts:
    """Leave one of all facts that say the same.

    Args:
        facts: with unique ids; a kept fact keeps its id, section and span.
        similarity: from which likeness on two wordings are near-identical, 0 to 1.
        similar: likeness in meaning, for statements whose wordings differ more.

    Returns:
        The kept facts in order, and for each merged one the reason and the id it goes on under.
    """
    merges = {
        merge.gone: merge
        for merge in near_identical([fact.fact for fact in facts], similarity=similarity, similar=similar)
    }
    dropped = [
        Dropped("fact", f"{facts[index].id}: {facts[index].fact}", merge_reason(merge, facts[merge.kept]))
        for index, merge in merges.items()
    ]
    kept_ids = {facts[index].id: facts[merge.kept].id for index, merge in merges.items()}
    return MergedFacts([fact for index, fact in enumerate(facts) if index not in merges], dropped, kept_ids)


def merge_reason(merge: Merge, kept: Fact) -> str:
    """Why a fact was merged, for its `Dropped` record."""
    return f"merged into {kept.id}, {merge.reason}: {kept.fact}"
