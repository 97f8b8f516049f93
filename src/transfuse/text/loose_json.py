"""Finds the JSON values in a text that may be anything: prose around them, trailing commas, a broken end."""

import re
from typing import Any, NamedTuple

_MAX_DEPTH = 60
_START = re.compile(r"""\{(?=\s*(?:["'“}]|\w+\s*:))|\[(?=\s*(?:["'“{\[\]]|-?\d|(?:true|false|null)\b))""")
_BETWEEN = re.compile(r"[\s,]*")
_SPACE = re.compile(r"\s*")
_LITERAL = re.compile(r"(?:true|false|null|none|nan)\b", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?\d{1,400}(?:\.\d{1,400})?(?:[eE][-+]?\d{1,3})?(?![\w.])")
_BARE_KEY = re.compile(r"[\w-]+(?=\s*:)")
_JUNK_END = re.compile(r"""[,\]}{\["]|\n""")
_LITERALS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "none": None, "nan": None}
_QUOTES = {'"': '"', "'": "'", "“": "”"}
_AFTER_KEY = re.compile(r"\s*:")
_AFTER_VALUE = re.compile(
    r"""\s*(?:[}\]]|\Z)|[^\S\n]*\n|\s*,\s*(?:["'“{\[}\]\d-]|true|false|null|\w+\s*:|\Z)""", re.IGNORECASE
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", '"': '"', "'": "'", "/": "/", "\\": "\\"}


class FoundValue(NamedTuple):
    """One object or array in a text."""

    value: Any
    start: int
    end: int
    is_whole: bool
    """False where the text ended before the value did; its unfinished last item is left out."""
    n_unread: int
    """Pieces inside the value that were no JSON and were passed over."""


def find_values(text: str) -> list[FoundValue]:
    """Every outermost object and array of a text, in order, in time proportional to its length."""
    found: list[FoundValue] = []
    position = 0
    while start := _START.search(text, position):
        reader = _Reader(text, start.start())
        try:
            value = reader.value()
        except _DeepError:
            break  # no reply that means something is nested so deep
        found.append(FoundValue(value, start.start(), reader.position, reader.is_whole, reader.n_unread))
        position = max(reader.position, start.end())
    return found


def whole_characters(text: str) -> str:
    """The text with halves of surrogate pairs joined, and lone ones replaced: it can be written as UTF-8."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class _CutError(Exception):
    """The text has ended inside an item of an array."""


class _DeepError(Exception):
    """Nested too deep."""


class _Reader:
    """Reads one value; valid JSON gives what `json.loads` gives."""

    def __init__(self, text: str, position: int) -> None:
        self.text = text
        self.position = position
        self.is_whole = True
        self.n_unread = 0
        self._depth = 0
        self._n_open_arrays = 0

    def value(self) -> Any:
        """The value that begins here; raises ValueError, nothing consumed, where none does."""
        sign = self._sign()
        if sign in ("{", "["):
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise _DeepError
            value = self._object() if sign == "{" else self._array()
            self._depth -= 1
            return value
        if sign in _QUOTES:
            return self._string(_AFTER_VALUE)
        if found := _LITERAL.match(self.text, self.position):
            self.position = found.end()
            return _LITERALS[found[0].lower()]
        if found := _NUMBER.match(self.text, self.position):
            self.position = found.end()
            return float(found[0]) if re.search(r"[.eE]", found[0]) else int(found[0])
        raise ValueError("no value begins here")

    def _array(self) -> list[Any]:
        items: list[Any] = []
        self.position += 1
        while True:
            self._skip(_BETWEEN)
            sign = self._sign()
            if sign in ("]", "}"):  # a wrong brace is left to whom it belongs
                self.position += sign == "]"
                return items
            self._n_open_arrays += 1
            try:
                items.append(self.value() if sign else self._cut())
            except ValueError:
                self._pass_over()
            except _CutError:
                if self._n_open_arrays > 1:
                    raise
                self.is_whole = False
                return items
            finally:
                self._n_open_arrays -= 1

    def _object(self) -> dict[str, Any]:
        members: dict[str, Any] = {}
        self.position += 1
        while True:
            self._skip(_BETWEEN)
            sign = self._sign()
            if sign in ("}", "]", "{"):
                self.position += sign == "}"
                return members
            try:
                key = self._key() if sign else self._cut()
                self._skip(_SPACE)
                members[key] = self.value() if self._sign() else self._cut()
            except ValueError:
                self._pass_over()
            except _CutError:
                if self._n_open_arrays:
                    raise
                self.is_whole = False
                return members

    def _key(self) -> str:
        if self._sign() in _QUOTES:
            key = self._string(_AFTER_KEY)
        elif bare := _BARE_KEY.match(self.text, self.position):
            key = bare[0]
            self.position = bare.end()
        else:
            raise ValueError("no key begins here")
        self._skip(_SPACE)
        self.position += self._sign() == ":"
        return key

    def _string(self, after: re.Pattern[str]) -> str:
        """A quoted text; a quotation mark that nothing fitting follows belongs to the text."""
        closing = _QUOTES[self._sign()]
        pieces: list[str] = []
        at = self.position + 1
        plain = re.compile(rf"[^\\{closing}]+")
        while at < len(self.text):
            if run := plain.match(self.text, at):
                pieces.append(run[0])
                at = run.end()
            elif self.text[at] == "\\":
                piece, at = _unescaped(self.text, at)
                pieces.append(piece)
            elif after.match(self.text, at + 1):
                self.position = at + 1
                return whole_characters("".join(pieces))
            else:
                pieces.append(closing)
                at += 1
        return self._cut()

    def _cut(self) -> Any:
        self.position = len(self.text)
        raise _CutError

    def _sign(self) -> str:
        return self.text[self.position : self.position + 1]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        if found := pattern.match(self.text, self.position):
            self.position = found.end()

    def _pass_over(self) -> None:
        """Go to where the next item may begin, at least one sign on."""
        self.n_unread += 1
        found = _JUNK_END.search(self.text, self.position + (self._sign() not in ("]", "}")))
        self.position = found.start() if found else len(self.text)


def _unescaped(text: str, at: int) -> tuple[str, int]:
    """What the backslash at `at` stands for, and where the text goes on; an unknown escape stays as it is."""
    sign = text[at + 1 : at + 2]
    if sign == "u" and re.fullmatch(r"[0-9a-fA-F]{4}", digits := text[at + 2 : at + 6]):
        return chr(int(digits, 16)), at + 6
    return _ESCAPES.get(sign, "\\" + sign), at + 2
