"""Which of the teacher's tokens is each of the student's, where their vocabularies differ.

Tokens are compared by the bytes that they stand for: byte-level BPE writes a space as `Ġ`, SentencePiece as `▁` and
single bytes as `<0x0A>`, WordPiece marks what continues a word (`##ing`). Special tokens have no text: they are matched
by what they are for.
"""

import json
import re
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

SPECIAL_ROLES = ("bos", "eos", "unk", "pad")
"""In this order of precedence where one token has several."""

SPACE_MARK = "▁"

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class _Text(NamedTuple):
    """What a token stands for."""

    bytes: bytes
    is_fallback: bool = False
    """True for `<0x0A>`: the byte where no other token has it."""


class TokenMatch(NamedTuple):
    """The teacher's row of each of the student's tokens, and how many were found."""

    rows: Int[Tensor, " student_vocab"]
    """-1 where the teacher has no such token, and on the student's padded rows."""
    n_tokens: int
    """Tokens of the student that its tokenizer knows."""
    n_matched: int
    """Those that the teacher has, special ones included."""
    n_special: int
    """Special ones that were matched by their role."""
    is_identical: bool
    """True where both tokenizers have the same tokens at the same places."""


def token_rows(
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_tokenizer: PreTrainedTokenizerBase,
    n_teacher_rows: int | None = None,
    n_student_rows: int | None = None,
) -> Int[Tensor, " student_vocab"]:
    """The teacher's row of each of the student's tokens, -1 where there is none: `match_tokens` without the counts."""
    return match_tokens(teacher_tokenizer, student_tokenizer, n_teacher_rows, n_student_rows).rows


def match_tokens(
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_tokenizer: PreTrainedTokenizerBase,
    n_teacher_rows: int | None = None,
    n_student_rows: int | None = None,
) -> TokenMatch:
    """The teacher's row of each of the student's tokens.

    Args:
        teacher_tokenizer: any kind.
        student_tokenizer: any kind.
        n_teacher_rows: rows of the teacher's embedding, padded ones included; None takes the tokenizer's.
        n_student_rows: rows of the student's.

    Returns:
        The same rows for the same vocabulary, padded ones included; otherwise a token of the same bytes, and for
        begin, end, unknown and padding the teacher's token of that role.
    """
    teacher_ids, student_ids = teacher_tokenizer.get_vocab(), student_tokenizer.get_vocab()
    n_teacher = _n_rows(teacher_ids) if n_teacher_rows is None else n_teacher_rows
    n_student = _n_rows(student_ids) if n_student_rows is None else n_student_rows
    if teacher_ids == student_ids:
        rows = torch.arange(n_student)
        rows[n_teacher:] = -1
        n_matched = sum(number < min(n_teacher, n_student) for number in student_ids.values())
        return TokenMatch(rows, len(student_ids), n_matched, len(_special_ids(student_tokenizer)), True)
    rows = torch.full((n_student,), -1)
    by_role = _by_role(teacher_tokenizer, student_tokenizer)
    by_text = _teacher_rows(teacher_tokenizer, n_teacher)
    for number, text in _texts(student_tokenizer).items():
        if number < n_student:
            rows[number] = _row_of(text, by_text)
    for number, row in by_role.items():
        if number < n_student and row < n_teacher:
            rows[number] = row
    n_special = sum(number < n_student and row < n_teacher for number, row in by_role.items())
    return TokenMatch(rows, len(student_ids), int((rows >= 0).sum()), n_special, False)


def _n_rows(ids: dict[str, int]) -> int:
    return max(ids.values(), default=-1) + 1


def _row_of(text: _Text, by_text: dict[_Text, int]) -> int:
    """A token of the same kind first: `A` is `A` before it is `<0x41>`."""
    other = _Text(text.bytes, not text.is_fallback)
    return by_text.get(text, by_text.get(other, -1))


def _teacher_rows(tokenizer: PreTrainedTokenizerBase, n_rows: int) -> dict[_Text, int]:
    found: dict[_Text, int] = {}
    for number, text in sorted(_texts(tokenizer).items()):
        if number < n_rows:
            found.setdefault(text, number)
    return found


def _by_role(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> dict[int, int]:
    found: dict[int, int] = {}
    for role in SPECIAL_ROLES:
        ours, theirs = (getattr(each, f"{role}_token_id", None) for each in (teacher, student))
        if ours is not None and theirs is not None:
            found.setdefault(theirs, ours)
    return found


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    marked = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return marked | set(tokenizer.all_special_ids)


def _texts(tokenizer: PreTrainedTokenizerBase) -> dict[int, _Text]:
    """What each token stands for; special ones are left out, for they stand for nothing."""
    special = _special_ids(tokenizer)
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    read = _reader(tokenizer)
    return {
        number: _Text(added[number].encode()) if number in added else read(token)
        for token, number in tokenizer.get_vocab().items()
        if number not in special
    }


def _reader(tokenizer: PreTrainedTokenizerBase) -> Any:
    """How the tokenizer's own spelling is turned into bytes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return _read_marked  # slow tokenizers are SentencePiece's
    parts = {kind for part in (backend.decoder, backend.pre_tokenizer) for kind in _kinds(part)}
    if type(backend.model).__name__ == "WordPiece":
        prefix: str = backend.model.continuing_subword_prefix  # type: ignore[attr-defined]
        return lambda token: _read_pieces(token, prefix)
    return _read_bytes if "ByteLevel" in parts else _read_marked


def _kinds(part: Any) -> set[str]:
    """The types in a decoder or pre-tokenizer, also inside a sequence."""
    if part is None:
        return set()
    state = json.loads(part.__getstate__())
    inner = [*state.get("decoders", ()), *state.get("pretokenizers", ())]
    return {state["type"], *(each["type"] for each in inner)}


def _read_bytes(token: str) -> _Text:
    if all(character in _BYTE_OF for character in token):
        return _Text(bytes(_BYTE_OF[character] for character in token))
    return _Text(token.encode())


def _read_marked(token: str) -> _Text:
    byte = _BYTE_TOKEN.fullmatch(token)
    if byte:
        return _Text(bytes([int(byte[1], 16)]), is_fallback=True)
    return _Text(token.replace(SPACE_MARK, " ").encode())


def _read_pieces(token: str, prefix: str) -> _Text:
    """A piece that begins a word stands after a space; a punctuation mark stands where it is written."""
    if prefix and token.startswith(prefix) and token != prefix:
        return _Text(token.removeprefix(prefix).encode())
    is_mark = len(token) == 1 and not token.isalnum()
    return _Text((token if is_mark else f" {token}").encode())


def _byte_alphabet() -> dict[str, int]:
    """Which byte each character of byte-level BPE stands for: printable Latin-1 for itself, the others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
