"""Bytes of the tokens of every family of tokenizers."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import CanineTokenizer, PreTrainedTokenizerFast

from transfuse.errors import ModelError
from transfuse.io.token_bytes import token_bytes, tokenizer_family


def wrapped(backend: Tokenizer, **special: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def byte_level() -> PreTrainedTokenizerFast:
    """All bytes, one merge, an added run of spaces and a control token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "Ġa"])}
    backend = Tokenizer(models.BPE(vocabulary, [("Ġ", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken("   ", normalized=False), AddedToken("né", normalized=False)])
    return wrapped(backend, eos_token="<|end|>")


def sentence_piece() -> PreTrainedTokenizerFast:
    """Byte fallback, a few words, a tab put in as text."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "▁▁", "é"]
    vocabulary = {token: index for index, token in enumerate(pieces)}
    backend = Tokenizer(
        models.BPE(vocabulary, [("▁", "a"), ("▁", "▁")], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_tokens([AddedToken("\t\t", normalized=False)])
    return wrapped(backend, bos_token="<s>")


def word_piece() -> PreTrainedTokenizerFast:
    words = ["[UNK]", "[CLS]", "the", "##the", ",", "##,", "日", "##", "é"]
    backend = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return wrapped(backend, cls_token="[CLS]")


def unigram() -> PreTrainedTokenizerFast:
    pieces = [("<unk>", 0.0), ("_a", -1.0), ("b", -2.0), ("<0x41>", -3.0), ("_", -4.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="_", prepend_scheme="never")
    backend.decoder = decoders.Metaspace(replacement="_", prepend_scheme="never")
    return wrapped(backend)


FAMILIES = {
    "byte-level": byte_level,
    "sentencepiece": sentence_piece,
    "wordpiece": word_piece,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_is_told_from_the_backend(family: str) -> None:
    assert tokenizer_family(FAMILIES[family]()) == family


def test_byte_level_characters_become_their_bytes() -> None:
    tokenizer = byte_level()
    found = token_bytes(tokenizer)
    assert sorted(item for item in found[:256] if item is not None) == [bytes([n]) for n in range(256)]
    assert found[256:] == [b" a", b"   ", "né".encode(), None]


def test_sentence_piece_marks_are_spaces_and_byte_tokens_bytes() -> None:
    found = token_bytes(sentence_piece())
    assert found[:2] == [None, None]
    assert found[2:258] == [bytes([n]) for n in range(256)]
    assert found[258:] == [b" ", b"a", b" a", b"  ", "é".encode(), b"\t\t"]


def test_word_pieces_have_a_space_before_words_only() -> None:
    expected = [None, None, b" the", b"the", b",", b",", "日".encode(), b" ##", " é".encode()]
    assert token_bytes(word_piece()) == expected


def test_unigram_with_another_mark_and_without_byte_fallback() -> None:
    assert tokenizer_family(unigram()) == "sentencepiece"
    assert token_bytes(unigram()) == [None, b" a", b"b", b"<0x41>", b" "]


def test_an_end_of_word_mark_is_a_space_behind_the_word() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "b</w>": 1}, [], end_of_word_suffix="</w>"))
    assert tokenizer_family(wrapped(backend)) == "other"
    assert token_bytes(wrapped(backend)) == [b"a", b"b "]


def test_ids_without_a_token_are_none_and_counted() -> None:
    backend = Tokenizer(models.BPE({"a": 1, "b": 4}, []))
    assert token_bytes(wrapped(backend)) == [None, b"a", None, None, b"b"]


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=30))
@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_the_bytes_of_a_tokenized_text_are_the_text(make, text: str) -> None:
    tokenizer = make()
    found = token_bytes(tokenizer)
    text = text.replace("▁", "")  # SentencePiece cannot tell its mark from a space
    parts = [found[index] for index in tokenizer.encode(text, add_special_tokens=False)]
    assert b"".join(part or b"?" for part in parts) == text.encode()


def test_a_tokenizer_without_a_backend_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"CanineTokenizer .*: expected a fast tokenizer, got one written in"
    ):
        token_bytes(CanineTokenizer())
