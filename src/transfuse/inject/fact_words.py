"""The words of a statement that its truth hangs on: names, numbers, negations, content."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from transfuse.text.answers import answer_words
from transfuse.text.wording import word_set

_POSSESSIVE = re.compile(r"(?<=\w)['’]s\b|(?<=s)['’](?!\w)")
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"\d+(?:\.\d+)*")
_MINUS = re.compile(r"(?<![\w)])[-–](?=[\d.,]*\d)")
_SHORT_NAME = re.compile(r"\b[A-Z]{2,6}\b")
_LONG_NAME = re.compile(r"\b[A-Z]\w+(?:[\s-]+(?:(?:of|the|and|for)\s+){0,2}[A-Z]\w+)+")
_SPACELESS = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
"""Letters of scripts that are written without spaces between words."""


FUNCTION_WORDS = word_set(
    "a an the and or but nor so yet if than then as at by for from in into of off on onto out over to up upon "
    "with within without about after against along among around before behind below between beyond during "
    "since through throughout toward towards under until while via per is was were are be been being am has "
    "have had having do does did will would can could shall should may might must not no it its he him his she "
    "her they them their this that these those there here who whom whose which what when where why how all any "
    "both each every some such other another also only just more most very own same one i we you our my your "
    "der die das den dem des ein eine einen einem einer eines und oder im am zum zur von mit für auf bei nach aus "
    "ist war sind waren wurde wurden hat hatte jahr jahre jahren monat tag uhr le la les un une du et ou dans "
    "est sont était avec pour par sur el los las uno una y en de del es son fue con por il lo gli di e"
)
"""Words that may stand in a statement though the source does not have them."""

_NEGATIONS = word_set(
    "not no never none neither nor nobody nothing nowhere without cannot cant dont doesnt didnt isnt arent "
    "wasnt werent hasnt havent hadnt wont wouldnt couldnt shouldnt nicht kein keine keinen keiner keinem nie "
    "niemals ohne ne pas jamais sans aucun aucune nunca sin ningún ninguna non senza не нет никогда без"
)
_NUMBER_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
_ORDINALS = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
)
_ORDINAL_NAMES = word_set(_ORDINALS)
_TENS = ("thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NAMED_NUMBERS: dict[str, str] = {
    **{name: str(number) for number, name in enumerate(_NUMBER_NAMES.split())},
    **{name: str(number) for number, name in enumerate(_ORDINALS.split())},
    **{name: str(number * 10) for number, name in enumerate(_TENS, start=3)},
}
"""English number words and ordinals, as digits."""
_LOOSE_NUMBERS = word_set("zero zeroth one first second")
"""Words that are often no numbers."""


def words_of(text: str) -> list[str]:
    """Normalised words; a possessive is its noun."""
    return answer_words(_POSSESSIVE.sub("", text))


def numbers_of(text: str, *, is_strict: bool = True) -> list[str]:
    """The numbers of a text, in order, as digits.

    Args:
        text: `57th` gives 57; `6:30` gives 6 and 30; number words up to twenty, and tens, give theirs.
        is_strict: whether words such as `one` and `first`, often no numbers, count too.

    Returns:
        Digits.
    """
    numbers: list[str] = []
    for word in words_of(text):
        if word in NAMED_NUMBERS and (is_strict or word not in _LOOSE_NUMBERS):
            numbers.append(NAMED_NUMBERS[word])
        numbers += [number.lstrip("0") or "0" for number in _NUMBER.findall(word)]
    return numbers


def number_words(words: Sequence[str]) -> tuple[str, ...]:
    """The words that hold a number, in order; `three` is 3, `third` and `3rd` stay what they are."""
    return tuple(
        word if word in _ORDINAL_NAMES else NAMED_NUMBERS.get(word, word)
        for word in words
        if word in NAMED_NUMBERS or any(sign.isnumeric() for sign in word)
    )


def signs_of(text: str) -> tuple[str, ...]:
    """Signs that tell names and amounts apart: of `C++`, `C#`, `-5`, `5 %`, `$5`; sorted."""
    signs = [sign for sign in text if sign in "#&@%/" or unicodedata.category(sign) in ("Sm", "Sc", "So")]
    return tuple(sorted([*signs, *_MINUS.findall(text)]))


def names_of(text: str) -> list[str]:
    """Capitalised words that are no function words, in order, in lower case.

    A function word in capitals inside the text is a name as well: `Group A`, `the WHO`.
    """
    plain = unicodedata.normalize("NFKC", _POSSESSIVE.sub("", text))
    names: list[str] = []
    for place, found in enumerate(_WORD.finditer(plain)):
        word = found[0].casefold()
        is_named = found[0].isupper() and place > 0 and found[0] != "I"
        if any(sign.isupper() for sign in found[0]) and (is_named or word not in FUNCTION_WORDS):
            names.append(word)
    return names


def long_names(text: str) -> list[tuple[str, list[str]]]:
    """Every two to six neighbouring capitalised words: their first letters, and the words in lower case."""
    found: list[tuple[str, list[str]]] = []
    for run in _LONG_NAME.findall(text):
        words = [word for word in _WORD.findall(run) if word[0].isupper()]
        for start in range(len(words)):
            for end in range(start + 2, min(len(words), start + 6) + 1):
                part = words[start:end]
                found.append(("".join(word[0] for word in part), [word.casefold() for word in part]))
    return found


def n_negations(text: str) -> int:
    """How many words deny something."""
    return sum(word in _NEGATIONS for word in words_of(text))


def content_of(text: str) -> list[str]:
    """Words that carry meaning; of scripts without spaces, every two neighbouring letters."""
    units: list[str] = []
    for word in words_of(text):
        if _SPACELESS.search(word):
            units += [word[at : at + 2] for at in range(max(1, len(word) - 1))]
        elif word not in FUNCTION_WORDS and word != "%":
            units.append(word)
    return units


def same_stem(one: str, other: str, max_ending: int = 3) -> bool:
    """Whether two words differ at most in an ending of so many letters; numbers never do."""
    if one == other:
        return True
    longest = max(len(one), len(other))
    n_shared = max(4, longest - max_ending)
    return one[:n_shared] == other[:n_shared] and len(one) >= n_shared and not re.search(r"\d", one + other)


@lru_cache(maxsize=8192)
def _script(sign: str) -> str:
    name = unicodedata.name(sign, "UNKNOWN").partition(" ")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA") else name


def scripts_of(text: str) -> dict[str, float]:
    """Share of each script among the letters of a text; Japanese and Chinese are one."""
    counts = Counter(_script(sign) for sign in text if sign.isalpha())
    return {script: count / counts.total() for script, count in counts.items()}


@dataclass(frozen=True, slots=True)
class Ground:
    """What a source says, to be asked whether it holds a word."""

    words: frozenset[str]
    by_beginning: dict[str, tuple[str, ...]]
    numbers: frozenset[str]
    scripts: frozenset[str]
    short_names: frozenset[str]
    """Words in capitals, such as `NFL`."""
    initials: frozenset[str]
    """First letters of neighbouring capitalised words."""

    def holds(self, word: str, max_ending: int = 3) -> bool:
        """Whether the source has the word, be it with another ending."""
        if word in self.words:
            return True
        return any(same_stem(word, known, max_ending) for known in self.by_beginning.get(word[:4], ()))


def ground_of(texts: Iterable[str]) -> Ground:
    """The words, numbers and scripts of texts taken together."""
    words: set[str] = set()
    numbers: set[str] = set()
    scripts: set[str] = set()
    short_names: set[str] = set()
    initials: set[str] = set()
    for text in texts:
        short_names.update(_SHORT_NAME.findall(text))
        initials.update(letters for letters, _ in long_names(text))
        words.update(words_of(text), content_of(text), names_of(text))
        numbers.update(numbers_of(text))
        scripts.update(scripts_of(text))
    beginnings: defaultdict[str, list[str]] = defaultdict(list)
    for word in sorted(words):
        if len(word) >= 4:
            beginnings[word[:4]].append(word)
    by_beginning = {beginning: tuple(known) for beginning, known in beginnings.items()}
    return Ground(
        frozenset(words),
        by_beginning,
        frozenset(numbers),
        frozenset(scripts),
        frozenset(short_names),
        frozenset(initials),
    )
