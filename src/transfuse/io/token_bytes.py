"""The bytes that every token of a vocabulary stands for, in one form for all families of tokenizers."""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase

from transfuse.errors import ModelError

TokenizerFamily = Literal["byte-level", "sentencepiece", "wordpiece", "other"]

_SPACE_MARK = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BPE_SETTINGS = ("byte_fallback", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
_SPLITS_PUNCTUATION = frozenset({"BertPreTokenizer", "Punctuation", "Whitespace"})


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """The bytes of text behind every id; tokens of two families are alike where their bytes are equal.

    A token that begins a word begins with a space: `Ġthe` of a byte-level BPE, `▁the` of SentencePiece and `the`
    of WordPiece are all b" the", `##the` is b"the". WordPiece tokens that stand between words without a space (one
    punctuation mark or CJK character, where the tokenizer cuts around these) have none. SentencePiece's `<0xE2>`
    is one byte. An end-of-word mark (`the</w>`) is a space behind the word. Added tokens stand for their own text.

    Args:
        tokenizer: a fast one; it is told from the parts of its backend, whatever its name.

    Returns:
        Item i for id i, at least `len(tokenizer)` items. None for control tokens (special ones, the unknown token)
        and for ids without a token. A piece of a UTF-8 character is its bytes, not valid UTF-8 by itself.

    Raises:
        ModelError: the tokenizer has no fast backend.
    """
    content = backend_parts(tokenizer)
    added = {item["id"]: item for item in content["added_tokens"]}
    vocabulary = tokenizer.get_vocab()
    control = _control_ids(tokenizer, content, vocabulary)
    read = _reader(content)
    result: list[bytes | None] = [None] * max(len(tokenizer), 1 + max(vocabulary.values(), default=-1))
    mark = _space_mark(content) if _family(content) == "sentencepiece" else None
    for token, index in vocabulary.items():
        if index in control:
            continue
        if index in added:
            result[index] = (token if mark is None else token.replace(mark, " ")).encode()
        else:
            result[index] = read(token)
    return result


def tokenizer_family(tokenizer: PreTrainedTokenizerBase) -> TokenizerFamily:
    """How a tokenizer writes spaces and bytes in its tokens, told from the parts of its backend.

    Args:
        tokenizer: a fast one.

    Returns:
        `byte-level`: every byte is a printable character (GPT-2 and after); `sentencepiece`: spaces are "▁", and
        unknown characters are spelled in byte tokens where there are such; `wordpiece`: word starts are plain and
        the rest of a word is marked; `other`: none of these (whole words, characters).

    Raises:
        ModelError: the tokenizer has no fast backend.
    """
    return _family(backend_parts(tokenizer))


def backend_parts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a tokenizer.json says of everything but vocabulary, merges and post-processor.

    Args:
        tokenizer: a fast one.

    Returns:
        `normalizer`, `pre_tokenizer`, `decoder`, `model` (its type and settings) and `added_tokens`, as in the file.

    Raises:
        ModelError: the tokenizer has no fast backend.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"tokenizer {type(tokenizer).__name__} of {tokenizer.name_or_path!r}: expected a fast tokenizer, got one "
            "written in Python; convert it to a tokenizer.json first (AutoTokenizer does, where it can)."
        )
    model = backend.model
    if not isinstance(model, models.BPE):
        return json.loads(backend.to_str())
    # Half a million merges take seconds to write and to read: a backend like this one, without them.
    settings = {name: getattr(model, name) for name in _BPE_SETTINGS if getattr(model, name) is not None}
    like = Tokenizer(models.BPE(**settings))
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        if getattr(backend, name) is not None:
            setattr(like, name, getattr(backend, name))
    added = backend.get_added_tokens_decoder().items()
    told = [{"id": index, "content": token.content, "special": token.special} for index, token in added]
    return {**json.loads(like.to_str()), "added_tokens": told}


def _parts(content: Mapping[str, Any], *places: str) -> Iterator[Mapping[str, Any]]:
    """Normalisers, pre-tokenizers and decoders, out of their sequences."""
    for place in places:
        waiting = [content.get(place)]
        while waiting:
            part = waiting.pop()
            if part:
                yield part
                for name in ("normalizers", "pretokenizers", "decoders"):
                    waiting += part.get(name, ())


def _family(content: Mapping[str, Any]) -> TokenizerFamily:
    parts = list(_parts(content, "normalizer", "pre_tokenizer", "decoder"))
    kinds = {part["type"] for part in parts}
    model = content["model"]
    if "ByteLevel" in kinds:
        return "byte-level"
    if model["type"] == "WordPiece":
        return "wordpiece"
    writes_marks = any(part["type"] == "Replace" and _SPACE_MARK in str(part) for part in parts)
    if "Metaspace" in kinds or "ByteFallback" in kinds or writes_marks or model.get("byte_fallback"):
        return "sentencepiece"
    return "other"


def _space_mark(content: Mapping[str, Any]) -> str:
    for part in _parts(content, "decoder", "pre_tokenizer"):
        if part["type"] == "Metaspace":
            return part["replacement"]
    return _SPACE_MARK


def _control_ids(
    tokenizer: PreTrainedTokenizerBase, content: Mapping[str, Any], vocabulary: Mapping[str, int]
) -> set[int]:
    special = {item["id"] for item in content["added_tokens"] if item["special"]}
    model = content["model"]
    unknown = model.get("unk_id")  # Unigram counts it, the others name it
    if unknown is None and model.get("unk_token") is not None:
        unknown = vocabulary.get(model["unk_token"])
    return special | set(tokenizer.all_special_ids) | ({unknown} if unknown is not None else set())


def _reader(content: Mapping[str, Any]) -> Callable[[str], bytes]:
    """What turns a token of the model's own vocabulary into bytes."""
    model = content["model"]
    suffix = model.get("end_of_word_suffix") or ""
    prefix = model.get("continuing_subword_prefix") or ""
    match _family(content):
        case "byte-level":
            return lambda token: _byte_level(token, suffix)
        case "sentencepiece":
            mark = _space_mark(content)
            has_byte_tokens = bool(model.get("byte_fallback")) or any(
                part["type"] == "ByteFallback" for part in _parts(content, "decoder")
            )
            return lambda token: _sentence_piece(token, mark, has_byte_tokens)
        case "wordpiece":
            kinds = {part["type"] for part in _parts(content, "pre_tokenizer")}
            cuts = not kinds.isdisjoint(_SPLITS_PUNCTUATION)
            splits_cjk = any(part.get("handle_chinese_chars") for part in _parts(content, "normalizer"))
            return lambda token: _word_piece(token, prefix, cuts, splits_cjk)
        case "other":
            return lambda token: _without(token.removeprefix(prefix), suffix).encode()


def _byte_level_alphabet() -> dict[str, int]:
    """The character of each byte: printable Latin-1 characters stand for themselves, the others come after U+0100."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in set(shown)]
    return {chr(byte): byte for byte in shown} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


_BYTE_OF = _byte_level_alphabet()


def _byte_level(token: str, suffix: str) -> bytes:
    word = token.removesuffix(suffix) if suffix else token
    space = b" " if len(word) < len(token) else b""
    if all(character in _BYTE_OF for character in word):
        return bytes(_BYTE_OF[character] for character in word) + space
    return word.encode() + space  # put in as text, outside the alphabet


def _sentence_piece(token: str, mark: str, has_byte_tokens: bool) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token) if has_byte_tokens else None
    return bytes([int(byte[1], 16)]) if byte else token.replace(mark, " ").encode()


def _word_piece(token: str, prefix: str, cuts_punctuation: bool, splits_cjk: bool) -> bytes:
    if prefix and token.startswith(prefix) and len(token) > len(prefix):
        return token.removeprefix(prefix).encode()
    if len(token) == 1 and ((cuts_punctuation and _is_punctuation(token)) or (splits_cjk and _is_cjk(token))):
        return token.encode()
    return b" " + token.encode()


def _without(token: str, suffix: str) -> str:
    return token.removesuffix(suffix) + " " if suffix and token.endswith(suffix) else token


def _is_punctuation(character: str) -> bool:
    # ASCII symbols count too, as in BERT.
    is_symbol = character.isascii() and not character.isalnum() and not character.isspace()
    return is_symbol or unicodedata.category(character).startswith("P")


def _is_cjk(character: str) -> bool:
    return unicodedata.name(character, "").startswith("CJK ")
