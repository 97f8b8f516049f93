"""Cuts text into sentences, and finds stretches of cleaned text in the text they came from."""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from rapidfuzz.distance import LCSseq

from transfuse.text.wording import word_set

Span = tuple[int, int]
"""Start and end character offsets."""

_LINE = re.compile(r"[^\n\r\u2028\u2029]+")
_LIST_MARK = re.compile(r"\s*(?:[-–•◦▪‣*+]|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s+(?=\S)")
_END = re.compile(
    r"(?P<wide>[。．！？｡]+[”’」』】）〕》\"')\]]*)"
    r"|(?P<stop>[.!?…؟۔।॥։።፧።។៕᙮᠃᠉꓿]+)[\"'”’»›)\]」』*_]*(?=\s)"
)
_CODE = re.compile(
    r"[;{}]\s*$|^\s*(?:[$>#%]\s|</?\w|\w[\w.]*\(.*\)\s*$)|\s[+*/-]?=\s|[=!<>]=|=>|->|::|(?<!:)//"
)
_QUOTED = re.compile(
    r"“[^“”]*”|\"[^\"]*\"|«[^«»]*»|„[^„“]*“|「[^「」]*」|『[^『』]*』|\([^()]*\)|（[^（）]*）"
)
_HIRAGANA = re.compile(r"[\u3041-\u309f]")
_MAX_QUOTED_CHARS = 200
_NEXT = re.compile(r"[\s\"'“”‘’«»‹›„(\[「『*_¿¡—–-]*(\w+)?")


_NEVER_LAST = word_set(
    "mr mrs ms messrs dr prof rev fr hon gen col maj capt cmdr lt sgt cpl pvt adm gov sen rep pres st mt ft "
    "vs cf viz eg ie e.g i.e al resp approx ca est bzw vgl z.b d.h u.a sog mme mlle m.m sr sra srta dª"
)
"""Abbreviations after which the sentence goes on."""
_BEFORE_NUMBER = word_set(
    "no nos nr num vol vols p pp ch chap sec sect art fig figs eq eqs tab app para par v ver op bd s abs "
    "jan feb mar apr jun jul aug sep sept oct nov dec n núm pág"
)
"""Abbreviations after which the sentence goes on where a number follows."""
_MAYBE_LAST = word_set("inc ltd co corp llc bros jr sr esq etc dept univ ave blvd rd u.s u.k u.n a.m p.m")
"""Abbreviations after which the sentence ends where the next word is one that begins sentences."""
_BEGINNERS = word_set(
    "the a an it its he she they we i you his her their this that these those there in on at by for from "
    "after before during when while as if but and however although since with both several most some all each "
    "der die das er sie es ein eine le la les il elle el los las un une"
)
_GERMAN_MONTHS = word_set(
    "januar februar märz april mai juni juli august september oktober november dezember"
)


def split_sentences(text: str) -> list[Span]:
    """Where each sentence of a text begins and ends.

    A line break always ends a sentence: cleaned text has them only between paragraphs, list
    items and lines of code. A quotation or bracket of up to 200 characters is not cut.

    Args:
        text: cleaned text, of any script.

    Returns:
        Spans in order, disjoint, without white space at their ends; every other character than
        white space lies in one of them.
    """
    return [
        span
        for line in _LINE.finditer(text)
        for span in _sentences_of_line(text, *line.span())
        if text[slice(*span)]
    ]


def _sentences_of_line(text: str, start: int, end: int) -> Iterator[Span]:
    line = text[start:end]
    cut = 0
    if not _CODE.search(line):
        mark = _LIST_MARK.match(line)
        whole = [found.span() for found in _QUOTED.finditer(line) if len(found[0]) <= _MAX_QUOTED_CHARS]
        for found in _END.finditer(line, mark.end() if mark else 0):
            at = found.end()
            nearest = bisect_left(whole, (at, 0)) - 1
            if nearest >= 0 and at < whole[nearest][1]:
                continue
            if _ends_here(line, found):
                yield _stripped(text, start + cut, start + at)
                cut = at
    yield _stripped(text, start + cut, end)


def _ends_here(line: str, found: re.Match[str]) -> bool:
    """Whether the full stop (question mark, ...) ends a sentence."""
    if found["wide"]:
        return not (found["wide"][-1] in "”」』" and _HIRAGANA.match(line, found.end()))  # 「はい。」と
    match = _NEXT.match(line, found.end())
    following = match[1] if match else None
    if following is None:
        return True
    if following[0].islower():
        return False
    if found["stop"] != ".":
        return True
    before = line[: found.start()].rpartition(" ")[2].lstrip("\"'“‘«„([{*_")
    word = before.rpartition("-")[2].casefold()
    if word in _NEVER_LAST:
        return False
    if word in _BEFORE_NUMBER and following[0].isdigit():
        return False
    if re.fullmatch(r"\d{1,2}", word) and following.casefold() in _GERMAN_MONTHS:
        return False
    is_initial = len(word) == 1 and word.isalpha() and before[-1:].isupper()
    if is_initial or word in _MAYBE_LAST or re.fullmatch(r"(?:\w\.)+\w", word):
        return following.casefold() in _BEGINNERS
    return True


def _stripped(text: str, start: int, end: int) -> Span:
    piece = text[start:end]
    lead = len(piece) - len(piece.lstrip())
    return start + lead, max(start + lead, start + len(piece.rstrip()))


# from cleaned text back to its source

_GRAM = 16
_MAX_GAP_PAIRS = 200_000_000
"""Characters of one text times characters of the other that are aligned one by one."""


def locate(spans: Sequence[Span], cleaned: str, raw: str) -> list[Span]:
    """Where stretches of a cleaned text stand in the text that was cleaned.

    Both texts are aligned by their characters other than white space. Identical text is found
    exactly; where a stretch begins or ends with what the raw text does not have, its span goes on
    to the nearest characters that both have.

    Args:
        spans: in `cleaned`, each with at least one character other than white space.
        cleaned: what is left of `raw`: without marks, links, tables.
        raw: the source.

    Returns:
        A span in `raw` for each span, without white space at its ends.
    """
    cleaned_at = [at for at, sign in enumerate(cleaned) if not sign.isspace()]
    raw_at = [at for at, sign in enumerate(raw) if not sign.isspace()]
    partners = _aligned("".join(cleaned[at] for at in cleaned_at), "".join(raw[at] for at in raw_at))
    before = [-1]  # for each character: the last partner before it
    for partner in partners:
        before.append(partner if partner >= 0 else before[-1])
    after = [len(raw_at)]  # the other way round: the next partner from it on
    for partner in reversed(partners):
        after.append(partner if partner >= 0 else after[-1])
    after.reverse()
    located: list[Span] = []
    for start, end in spans:
        first, last = bisect_left(cleaned_at, start), bisect_left(cleaned_at, end) - 1
        if first > last or not raw_at:
            at = raw_at[min(after[first], len(raw_at) - 1)] if raw_at else 0
            located.append((at, at))
            continue
        begin = partners[first] if partners[first] >= 0 else before[first] + 1
        finish = partners[last] if partners[last] >= 0 else after[last + 1] - 1
        begin = min(begin, len(raw_at) - 1)
        located.append((raw_at[begin], raw_at[max(begin, finish)] + 1))
    return located


def _aligned(cleaned: str, raw: str) -> list[int]:
    """For each character of `cleaned` its place in `raw`, rising; -1 where it has none."""
    runs: list[tuple[int, int, int]] = []  # place in cleaned, place in raw, length
    done_cleaned = done_raw = 0
    for at, place in [*_anchors(cleaned, raw), (len(cleaned), len(raw))]:
        if (at - done_cleaned) * (place - done_raw) <= _MAX_GAP_PAIRS:
            pieces = LCSseq.opcodes(cleaned[done_cleaned:at], raw[done_raw:place])
            runs += [
                (done_cleaned + piece.src_start, done_raw + piece.dest_start, piece.src_end - piece.src_start)
                for piece in pieces
                if piece.tag == "equal"
            ]
        runs.append((at, place, min(_GRAM, len(cleaned) - at)))
        done_cleaned, done_raw = at + _GRAM, place + _GRAM
    _join(runs, cleaned, raw)
    partners = [-1] * len(cleaned)
    for at, place, length in runs:
        partners[at : at + length] = range(place, place + length)
    return partners


def _join(runs: list[tuple[int, int, int]], cleaned: str, raw: str) -> None:
    """Move a run to its neighbour where the same characters stand there as well: a mark belongs to its word."""
    for index in range(len(runs) - 2, -1, -1):
        (at, place, length), (next_at, next_place, _) = runs[index], runs[index + 1]
        moved = next_place - length
        if at + length == next_at and moved > place and cleaned[at:next_at] == raw[moved:next_place]:
            runs[index] = (at, moved, length)
    for index in range(1, len(runs)):
        (last_at, last_place, last_length), (at, place, length) = runs[index - 1], runs[index]
        moved = last_place + last_length
        if last_at + last_length == at and moved < place and raw.startswith(cleaned[at : at + length], moved):
            runs[index] = (at, moved, length)


def _anchors(cleaned: str, raw: str) -> list[Span]:
    """Places (in cleaned, in raw) of pieces that each text holds once, rising in both and disjoint."""
    places = _only_places(raw)
    own = _only_places(cleaned)
    pairs = [
        (at, places[gram])
        for at in range(0, len(cleaned) - _GRAM, _GRAM)
        if own[gram := cleaned[at : at + _GRAM]] >= 0 and places.get(gram, -1) >= 0
    ]
    # The longest rising run of places, by patience sorting.
    tails: list[int] = []
    tops: list[int] = []
    previous = [-1] * len(pairs)
    for index, (_, place) in enumerate(pairs):
        pile = bisect_left(tails, place)
        previous[index] = tops[pile - 1] if pile else -1
        tails[pile : pile + 1] = [place]
        tops[pile : pile + 1] = [index]
    rising: list[Span] = []
    index = tops[-1] if tops else -1
    while index >= 0:
        rising.append(pairs[index])
        index = previous[index]
    disjoint: list[Span] = []
    for at, place in reversed(rising):
        if not disjoint or place >= disjoint[-1][1] + _GRAM:
            disjoint.append((at, place))
    return disjoint


def _only_places(text: str) -> dict[str, int]:
    """Every piece of the text with its place; -1 where it stands in it more than once."""
    places: dict[str, int] = {}
    for at in range(len(text) - _GRAM + 1):
        gram = text[at : at + _GRAM]
        places[gram] = -1 if gram in places else at
    return places
