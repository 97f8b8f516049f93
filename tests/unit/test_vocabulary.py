from collections.abc import Callable

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from transfuse.transfer.vocabulary import match_tokens, token_rows


def byte_level(*tokens: str, **special: str) -> PreTrainedTokenizerFast:
    """As GPT-2 spells its tokens."""
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def unigram(*tokens: str, **special: str) -> PreTrainedTokenizerFast:
    """As SentencePiece spells its tokens."""
    tokenizer = Tokenizer(models.Unigram([(token, -float(i)) for i, token in enumerate(tokens)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def llama_bpe(*tokens: str, **special: str) -> PreTrainedTokenizerFast:
    """As Llama 2 spells its tokens: SentencePiece's spelling in a BPE, spaces marked by the normaliser."""
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def word_piece(*tokens: str, **special: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token=tokens[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


BYTES = byte_level("<|end|>", "Ġthe", "the", "ing", "Ċ", "Ã©", "Ã", ",", "A", "ĠĠ", eos_token="<|end|>")


def test_a_byte_level_vocabulary_read_by_sentence_piece_tokens() -> None:
    student = llama_bpe(
        "<unk>", "▁the", "the", "<0x0A>", "é", "<0xC3>", "▁▁", "▁zebra", "<0x41>", "A", unk_token="<unk>"
    )
    match = match_tokens(BYTES, student)
    assert match.rows.tolist() == [-1, 1, 2, 4, 5, 6, 9, -1, 8, 8]
    assert (match.n_tokens, match.n_matched, match.n_special, match.is_identical) == (10, 8, 0, False)


def test_a_sentence_piece_vocabulary_read_by_byte_level_tokens() -> None:
    teacher = unigram("<unk>", "▁the", "<0x41>", "A", "<0x0A>", "é", "</s>", eos_token="</s>")
    rows = token_rows(teacher, BYTES)
    #                        <|end|> Ġthe the ing Ċ é Ã , A ĠĠ: the letter A before its byte token
    assert rows.tolist() == [6, 1, -1, -1, 4, 5, -1, -1, 3, -1]


def test_word_pieces_begin_after_a_space_and_go_on_without() -> None:
    pieces = word_piece("[UNK]", "the", "##ing", "##the", ",", "##")
    assert token_rows(BYTES, pieces).tolist() == [-1, 1, 3, 2, 7, -1]
    assert token_rows(pieces, BYTES).tolist() == [-1, 1, 3, 2, -1, -1, -1, 4, -1, -1]


def test_special_tokens_match_by_role_only() -> None:
    teacher = byte_level(
        "<s>", "</s>", "<mask>", "<pad>", "a", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    student = byte_level(
        "a", "<end>", "<s>", "<mask>", "<begin>", bos_token="<begin>", eos_token="<end>", pad_token="<end>"
    )
    for tokenizer in (teacher, student):
        tokenizer.add_special_tokens({"additional_special_tokens": ["<mask>"]})
    match = match_tokens(teacher, student)
    # `<s>` is plain text to the student, `<end>` ends before it pads, `<mask>` has no role.
    assert match.rows.tolist() == [4, 1, -1, -1, 0]
    assert (match.n_matched, match.n_special) == (3, 2)


def test_added_tokens_stand_for_their_own_text() -> None:
    teacher = byte_level("x", "Ġ")
    teacher.add_tokens([AddedToken(" y", normalized=False)])
    assert token_rows(teacher, unigram("<unk>", "▁y", "▁")).tolist() == [-1, 2, 1]


def test_the_same_vocabulary_keeps_its_rows_with_the_padded_ones(make_tokenizer: Callable) -> None:
    tokenizer = make_tokenizer()
    n_tokens = len(tokenizer)
    match = match_tokens(tokenizer, make_tokenizer(), n_tokens + 5, n_tokens + 8)
    assert torch.equal(match.rows[: n_tokens + 5], torch.arange(n_tokens + 5))
    assert match.rows[n_tokens + 5 :].tolist() == [-1, -1, -1]
    assert (match.n_tokens, match.n_matched, match.is_identical) == (n_tokens, n_tokens, True)


def test_a_larger_vocabulary_of_the_same_kind_is_matched_token_by_token(make_tokenizer: Callable) -> None:
    teacher, student = make_tokenizer(vocab_size=400), make_tokenizer(chat_template=None, vocab_size=300)
    rows = token_rows(teacher, student, n_student_rows=303)
    assert rows[300:].tolist() == [-1, -1, -1]
    ours, theirs = teacher.get_vocab(), {number: token for token, number in student.get_vocab().items()}
    for number in range(2, 300):
        assert rows[number] == ours.get(theirs[number], -1)
    assert [rows[student.bos_token_id], rows[student.eos_token_id]] == [
        teacher.bos_token_id,
        teacher.eos_token_id,
    ]


@pytest.mark.parametrize(("n_teacher", "expected"), [(2, [-1, 1, -1]), (None, [-1, 1, 2])])
def test_tokens_beyond_the_teachers_embedding_have_no_row(n_teacher: int | None, expected: list[int]) -> None:
    assert token_rows(BYTES, unigram("<unk>", "▁the", "the"), n_teacher).tolist() == expected
