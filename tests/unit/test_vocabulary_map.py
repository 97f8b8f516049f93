"""Images of tokens between families of tokenizers, and their cache."""

from pathlib import Path

import numpy as np
import pytest
from rapidfuzz.distance import Levenshtein
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from transfuse.fuse.token_images import as_text, ids_by_bytes, token_images
from transfuse.fuse.vocabulary_map import map_summary, map_vocabulary
from transfuse.io.token_bytes import token_bytes


def byte_level(
    words: tuple[str, ...] = ("Ġa", "ab"), add_prefix_space: bool = False
) -> PreTrainedTokenizerFast:
    """`<s>` 0 and `</s>` 1 (padding too), the 256 bytes, words of two characters."""
    pieces = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *words]
    merges = [(word[0], word[1]) for word in words]
    backend = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def sentence_piece(*words: str, prepends: bool = True) -> PreTrainedTokenizerFast:
    """As Llama 2's: unknown 0, `<s>` 1, `</s>` 2, byte tokens from 3 on, then words."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", *words]
    merges = [(word[:-1], word[-1]) for word in words]
    backend = Tokenizer(
        models.BPE(
            {piece: n for n, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True
        )
    )
    marks = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marks]) if prepends else marks
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens([AddedToken("<unk>"), AddedToken("<s>"), AddedToken("</s>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def word_piece(*words: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: n for n, word in enumerate(["[UNK]", *words])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def image_of(token: bytes, target: PreTrainedTokenizerFast, kind: str) -> tuple[bytes | None, int]:
    """The bytes of a token's image, and the distance."""
    images = token_images([token], target, kind)  # type: ignore[arg-type]
    index = int(images.ids[0])
    return (token_bytes(target)[index] if index >= 0 else None), int(images.distances[0])


def test_a_piece_comes_before_the_byte_token_of_the_same_byte() -> None:
    target = sentence_piece("ab")
    id_of = ids_by_bytes(target)
    assert target.convert_ids_to_tokens(id_of[b"a"]) == "a"
    assert target.convert_ids_to_tokens(id_of[b"z"]) == "<0x7A>"
    assert b"" not in id_of


def test_exact_leaves_the_others_without_an_image() -> None:
    images = token_images([b" a", b"abc", None, b"", b"\xff"], sentence_piece("▁a"), "exact")
    assert images.distances.tolist() == [0, -1, -1, -1, 0]
    assert (images.ids < 0).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize(
    "make_target", [byte_level, lambda: sentence_piece("▁a", "▁ab"), lambda: word_piece("ab", "##b")]
)
def test_least_edits_are_those_of_all_pairs_ties_to_the_lowest_id(make_target) -> None:
    target = make_target()
    tokens = [b" ab", b"abab", b"the", "é".encode(), b"\xc3", b"\xe2\x80", "日本".encode(), b"  a", b"<s>"]
    id_of = ids_by_bytes(target)
    images = token_images(tokens, target, "min-edit")
    for token, index, distance in zip(tokens, images.ids.tolist(), images.distances.tolist(), strict=True):
        pairs = ((Levenshtein.distance(as_text(token), as_text(other)), n) for other, n in id_of.items())
        assert (distance, index) == min(pairs)


def test_retokenizing_takes_the_first_token_and_no_space_of_the_tokenizers_own() -> None:
    llama = sentence_piece("▁a", "▁ab")
    assert image_of(b"abba", llama, "retokenize") == (b"a", 3)
    assert image_of(b" abba", llama, "retokenize") == (b" ab", 2)
    assert image_of(b"</s>", llama, "retokenize") == (b"<", 3)  # in a text no control token
    roberta = byte_level(add_prefix_space=True)
    assert image_of(b"aa", roberta, "retokenize") == (b"a", 1)
    assert image_of(b" aa", roberta, "retokenize") == (b" a", 1)


def test_retokenizing_with_a_tokenizer_that_drops_spaces() -> None:
    pieces = [("<unk>", 0.0), ("▁a", -1.0), ("a", -1.5), ("b", -2.0), ("▁", -3.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    parts = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
    backend.decoder = decoders.Metaspace()
    target = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert image_of(b" ab", target, "retokenize") == (b" a", 1)
    assert image_of(b"ab", target, "retokenize") == (b"a", 1)


def test_retokenizing_with_word_pieces_keeps_within_a_word() -> None:
    target = word_piece("the", "##the", "##th", ",")
    assert image_of(b"then", target, "retokenize") == (b"the", 1)
    assert image_of(b"Then", target, "retokenize") == (b"the", 2)
    assert image_of(b" thethe", target, "retokenize") == (b" the", 3)
    assert image_of(b",x", target, "retokenize") == (b",", 1)
    assert image_of("ß".encode(), target, "retokenize") == (None, -1)


def test_retokenizing_knows_added_tokens_by_their_ids() -> None:
    target = byte_level()
    target.add_special_tokens({"additional_special_tokens": ["<call>"]})
    target.add_tokens(["qq"])
    assert image_of(b"qqx", target, "retokenize") == (b"qq", 1)
    assert image_of(b"<call>", target, "retokenize") == (b"<", 5)


def test_pieces_of_characters_are_retokenized_to_their_first_byte() -> None:
    target = sentence_piece()
    assert image_of(b"\xe2\x80", target, "retokenize") == (b"\xe2", 1)
    assert image_of("é".encode(), target, "retokenize") == (b"\xc3", 1)
    assert image_of(b"\xff", word_piece("a"), "retokenize") == (None, -1)


def test_special_tokens_are_mapped_by_role(tmp_path: Path) -> None:
    source, target = byte_level(), sentence_piece()
    there = map_vocabulary(source, target, "min-edit", folder=tmp_path)
    assert there.target_ids[:2].tolist() == [
        1,
        2,
    ]  # </s> is the source's padding too, and the target has none
    assert there.distances[:2].tolist() == [0, 0]
    back = map_vocabulary(target, source, "min-edit", folder=tmp_path)
    assert back.target_ids[:3].tolist() == [-1, 0, 1]
    assert back.distances[:3].tolist() == [255, 0, 0]


def test_a_vocabulary_is_mapped_onto_itself(tmp_path: Path) -> None:
    tokenizer = byte_level()
    for kind in ("exact", "min-edit", "retokenize"):
        mapped = map_vocabulary(tokenizer, tokenizer, kind, folder=tmp_path)
        assert mapped.target_ids.tolist() == list(range(len(tokenizer)))
        assert not mapped.distances.any()


def test_rows_beyond_the_tokenizer_have_no_image(tmp_path: Path) -> None:
    source, target = byte_level(), sentence_piece()
    plain = map_vocabulary(source, target, "exact", folder=tmp_path)
    padded = map_vocabulary(source, target, "exact", n_source_rows=len(source) + 3, folder=tmp_path)
    assert padded.target_ids.tolist() == [*plain.target_ids.tolist(), -1, -1, -1]
    assert padded.distances[-3:].tolist() == [255, 255, 255]
    cut = map_vocabulary(source, target, "exact", n_source_rows=5, folder=tmp_path)
    assert cut.target_ids.tolist() == plain.target_ids[:5].tolist()


def test_maps_are_read_from_the_cache_and_damaged_ones_made_again(tmp_path: Path) -> None:
    source, target = byte_level(), sentence_piece("▁a")
    told: list[int] = []

    def mapped() -> tuple[list[int], list[int]]:
        told.clear()
        found = map_vocabulary(
            source, target, "min-edit", folder=tmp_path, on_strings=lambda n_done, n_all: told.append(n_done)
        )
        return found.target_ids.tolist(), found.distances.tolist()

    first = mapped()
    assert told
    assert mapped() == first
    assert not told
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[-5] ^= 1
    for damaged in (whole[:-40], bytes(changed), b"", b"not a tensor file"):
        path.write_bytes(damaged)
        assert mapped() == first
        assert told
        assert path.read_bytes() == whole


def test_another_kind_or_tokenizer_is_another_file(tmp_path: Path) -> None:
    source, target = byte_level(), sentence_piece("▁a")
    map_vocabulary(source, target, "exact", folder=tmp_path)
    map_vocabulary(source, target, "min-edit", folder=tmp_path)
    map_vocabulary(source, sentence_piece("ab"), "exact", folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_summary_counts_and_shows(tmp_path: Path) -> None:
    source, target = word_piece("ab", "abab", "12", "##1"), sentence_piece("▁a", "▁ab")
    mapped = map_vocabulary(source, target, "min-edit", folder=tmp_path)
    told = map_summary(mapped, token_bytes(source), token_bytes(target))
    # " ab" and "1" are there; " abab" is two characters from " ab", " 12" two from "1" and from a blank.
    assert (told.n_source, told.n_exact, told.n_unmapped) == (4, 2, 0)
    assert told.n_by_distance == {2: 2}
    assert (told.n_digits, told.n_digits_exact) == (2, 1)
    assert told.exact_share == 2 / 261
    assert (" abab", " ab", 2) in told.examples
    exact = map_vocabulary(source, target, "exact", folder=tmp_path)
    assert map_summary(exact, token_bytes(source), token_bytes(target)).n_unmapped == 2
    assert np.array_equal(exact.target_ids >= 0, exact.distances < 255)


def test_pieces_of_characters_can_be_shown(tmp_path: Path) -> None:
    source, target = byte_level(), word_piece("é")
    mapped = map_vocabulary(source, target, "min-edit", folder=tmp_path)
    told = map_summary(mapped, token_bytes(source), token_bytes(target), n_examples=1000)
    assert ("\\xff", " é", 2) in told.examples
    assert all(text.encode() for example in told.examples for text in example[:2])
