"""Text of any script as the words that it is searched by."""

import re
import unicodedata
from collections.abc import Iterator

_MAX_WORD_CHARS = 64
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_POSSESSIVE = re.compile(r"(?<=\w)['’]s(?!\w)")
_WORD = re.compile(
    r"[^\s.+#]+(?:(?<=\d)\.(?=\d)[^\s.+#]+)*"  # 3.5, v2.0.1
    r"(?:(?<=[^\W\d])\+\+(?![^\W\d])|(?<![^\s.+#].)(?<=[^\W\d])#(?![^\s.+#]))?"  # c++, c#
)
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1100-\u11ff\ua960-\ua97f\uac00-\ud7ff"  # Hangul: written with spaces, but with particles joined to the words
    "\u1780-\u17ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf"  # Tai Le, New Tai Lue, Tai Tham
    "\ua980-\ua9df"  # Javanese
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3040-\u30ff\u31f0-\u31ff\u3100-\u312f\u31a0-\u31bf"  # Kana, Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_RUN = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}]+")
_DELETED_MARKS = frozenset({"Cf", "Me"})  # soft hyphens, joiners, direction marks; rings around digits


class _Signs(dict[int, str]):
    """What each character becomes, looked up once: letters, marks and digits stay, others part words."""

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        category = unicodedata.category(sign)
        if category == "Nd":
            kept = str(unicodedata.decimal(sign))
        elif category[0] in "LN" or category in ("Mn", "Mc"):
            kept = (
                "" if 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF else sign
            )  # variation selectors
        elif category in _DELETED_MARKS and code != 0x200B:  # a zero-width space parts words
            kept = ""
        else:
            kept = sign if sign in ".+#" else " "
        self[code] = kept
        return kept


_SIGNS = _Signs()


def search_words(text: str) -> list[str]:
    """Words in the form in which they are compared: NFKC, case folded, digits of any script as 0-9.

    Letters, their marks and digits make words; `don't` is two, and a possessive 's is left out. A number is one
    word without its thousands separators (`1,000.5` is `1000.5`), a result such as `38-35` two; `C++` and `C#`
    keep their signs. Scripts that are written without spaces (Han, Kana, Thai, Khmer, ...), and Hangul, give every
    two neighbouring characters as a word, and a character that stands alone by itself.

    Args:
        text: of any length and script; the time it takes is proportional to its length.

    Returns:
        The words in order, repeated as often as they stand there; of one longer than 64 characters its parts.
    """
    folded = text.lower() if text.isascii() else _folded(text)
    if "," in folded:
        folded = _THOUSANDS.sub("", folded)
    if "'" in folded or "’" in folded:
        folded = _POSSESSIVE.sub(" ", folded)
    folded = folded.translate(_SIGNS)
    words: list[str] = _WORD.findall(folded)
    if folded.isascii() and all(len(word) <= _MAX_WORD_CHARS for word in words):
        return words  # the same, faster
    return [part for word in words for part in _parts(word)]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _parts(word: str) -> Iterator[str]:
    """What a word without spaces holds: bigrams and pieces of bounded length, but no marks by themselves."""
    for run in _RUN.findall(word) if _IS_UNSPACED.search(word) else [word]:
        if _IS_UNSPACED.match(run) and len(run) > 1:
            yield from (run[at : at + 2] for at in range(len(run) - 1))
        elif any(map(str.isalnum, run)):
            yield from (run[at : at + _MAX_WORD_CHARS] for at in range(0, len(run), _MAX_WORD_CHARS))
