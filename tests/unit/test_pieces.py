from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from transfuse.errors import DataError
from transfuse.fuse.pieces import Piece, cut_texts
from transfuse.io.token_spans import token_spans


@pytest.fixture
def tokenizer(make_tokenizer: Callable) -> PreTrainedTokenizerFast:
    return make_tokenizer()


def test_a_short_text_stays_whole(tokenizer: PreTrainedTokenizerFast):
    assert cut_texts(["a b", ""], [tokenizer], 64) == [Piece("a b", 0), Piece("", 1)]


def test_a_cut_falls_behind_a_line_and_before_a_blank(tokenizer: PreTrainedTokenizerFast):
    line = "the harbour of the island\n"
    n_tokens = len(token_spans(tokenizer, [line])[0].ends)
    pieces = cut_texts([line * 6], [tokenizer], 2 * n_tokens + 4)
    assert {piece.text for piece in pieces} == {line * 2}
    words = "island " * 40
    assert all(piece.text.startswith(" ") for piece in cut_texts([words.strip()], [tokenizer], 24)[1:])


@settings(deadline=None, max_examples=40)
@given(text=st.text(max_size=300), max_tokens=st.integers(8, 40))
def test_pieces_tile_the_text_and_fit_every_tokenizer(text: str, max_tokens: int):
    tokenizers = [byte_tokenizer(), byte_tokenizer(leads_with_bos=True)]
    pieces = cut_texts([text], tokenizers, max_tokens)
    assert "".join(piece.text for piece in pieces) == text
    for tokenizer in tokenizers:
        assert all(
            len(spans.ends) <= max_tokens for spans in token_spans(tokenizer, [p.text for p in pieces])
        )


def test_too_little_room_is_refused(tokenizer: PreTrainedTokenizerFast):
    with pytest.raises(DataError, match="expected at least 8 tokens a piece, got 4"):
        cut_texts(["a"], [tokenizer], 4)


def byte_tokenizer(*, leads_with_bos: bool = False) -> PreTrainedTokenizerFast:
    """Every byte a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0} | {character: n + 1 for n, character in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if leads_with_bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>")
