"""The first token of a text as a tokenizer cuts it in the middle of other text: no BOS, no space of its own before."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase

from transfuse.io.token_bytes import backend_parts, tokenizer_family

_TEXTS_AT_ONCE = 1 << 13


def first_tokens(
    texts: Sequence[bytes], tokenizer: PreTrainedTokenizerBase, id_of: Mapping[bytes, int]
) -> dict[bytes, int]:
    """The id of the first token of each text.

    Where the tokenizer cannot read a text (it is a piece of a character, or gives the unknown token), or where it
    begins within a word and the tokenizer marks such tokens (WordPiece), it is the longest token that the text
    begins with.

    Args:
        texts: bytes, valid UTF-8 or not; a space at the beginning is the one before a word.
        tokenizer: a fast one; it is not changed.
        id_of: the bytes of every token that may be an answer.

    Returns:
        An id for each text that has one.

    Raises:
        ModelError: the tokenizer has no fast backend.
    """
    marks_continuations = tokenizer_family(tokenizer) == "wordpiece"
    content = backend_parts(tokenizer)
    in_text = _backend(tokenizer, _without_prefix(content))
    # To a tokenizer that drops spaces its prefix tells where a word begins; to others it is one space more.
    drops_spaces = _has_part(content["pre_tokenizer"], "WhitespaceSplit")
    at_words = _backend(tokenizer, content) if drops_spaces else in_text

    usable = frozenset(id_of.values())
    readable = [text for text in texts if _is_utf8(text)]
    starting = [text for text in readable if text.startswith(b" ")]
    within = [] if marks_continuations else [text for text in readable if not text.startswith(b" ")]
    cut = _first_ids(at_words, starting) | _first_ids(in_text, within)
    found = {text: index for text, index in cut.items() if index in usable}
    for text in texts:
        if text not in found:
            written = _normalized(in_text, text) if marks_continuations else text
            beginnings = (written[:end] for end in range(len(written), 0, -1))
            longest = next((id_of[beginning] for beginning in beginnings if beginning in id_of), None)
            if longest is not None:
                found[text] = longest
    return found


def _first_ids(backend: Tokenizer, texts: Sequence[bytes]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        batch = texts[start : start + _TEXTS_AT_ONCE]
        cut = backend.encode_batch([text.decode() for text in batch], add_special_tokens=False)
        found |= {text: item.ids[0] for text, item in zip(batch, cut, strict=True) if item.ids}
    return found


def _backend(tokenizer: PreTrainedTokenizerBase, content: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer's model under other normalisers and pre-tokenizers; control tokens in a text are text to it."""
    whole: Any = tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    parts = {name: content[name] for name in ("normalizer", "pre_tokenizer")}
    blank = json.loads(Tokenizer(models.BPE()).to_str())
    made = Tokenizer.from_str(json.dumps({**blank, **parts}))
    backend = Tokenizer(whole.model)  # shared: vocabulary and merges are not copied
    for name in parts:
        if getattr(made, name) is not None:
            setattr(backend, name, getattr(made, name))
    added = sorted(whole.get_added_tokens_decoder().items())
    backend.add_tokens([token for _, token in added])  # in the order of ids, as a tokenizer.json is read
    backend.encode_special_tokens = True
    return backend


def _without_prefix(content: Mapping[str, Any]) -> dict[str, Any]:
    normalizer = _plain(content["normalizer"])
    return {**content, "normalizer": normalizer, "pre_tokenizer": _plain(content["pre_tokenizer"])}


def _plain(part: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A normaliser or pre-tokenizer that puts nothing before a text."""
    if part is None:
        return None
    match part["type"]:
        case "Prepend":
            return None
        case "Metaspace":
            return {**part, "prepend_scheme": "never"}
        case "ByteLevel" if "add_prefix_space" in part:
            return {**part, "add_prefix_space": False}
        case "Sequence":
            name = "normalizers" if "normalizers" in part else "pretokenizers"
            return {**part, name: [kept for item in part[name] if (kept := _plain(item)) is not None]}
    return dict(part)


def _has_part(part: Mapping[str, Any] | None, kind: str) -> bool:
    if part is None:
        return False
    return part["type"] == kind or any(_has_part(item, kind) for item in part.get("pretokenizers", ()))


def _normalized(backend: Tokenizer, text: bytes) -> bytes:
    if backend.normalizer is None or not _is_utf8(text):
        return text
    return backend.normalizer.normalize_str(text.decode()).encode()


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
