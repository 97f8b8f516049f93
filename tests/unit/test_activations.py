"""The same places of the same text in two models, whatever their tokenizers."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from transfuse.errors import ModelError
from transfuse.transfer.activations import PairedText, Tap, clean_ends, pair_texts, read_activations


def _byte_tokenizer(*merges: tuple[str, str], bos: bool = False) -> PreTrainedTokenizerFast:
    """Single bytes and the given merges; offsets are trimmed, as GPT-2's are."""
    pieces = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>" if bos else None)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval()


def test_a_token_that_ends_within_a_character_has_not_read_it():
    # " é" as space + first byte, then the second byte together with "x"; then an empty token, and "y".
    assert clean_ends([(0, 1), (1, 3), (2, 4), (4, 4), (4, 5)]) == {1: 0, 4: 2, 5: 4}
    assert clean_ends([]) == {}


def test_positions_are_paired_where_both_have_read_the_same_bytes():
    bytewise, merged = _byte_tokenizer(), _byte_tokenizer(("Ġ", "Ã"), ("Ġ", "b"))
    # One token a byte: a, space, 2 of é, space, b. Merged: a | space + first of é | second of é | space + b.
    paired = pair_texts(bytewise, merged, ["a é b"], 99)
    (text,) = paired.texts
    assert (len(text.teacher_ids), len(text.student_ids)) == (6, 4)
    assert (text.teacher_positions, text.student_positions) == ([3, 5], [2, 3])
    assert (paired.n_positions, paired.n_cut, paired.dropped) == (2, 0, [])


def test_a_token_that_reads_the_space_after_a_word_is_not_paired_with_the_word():
    paired = pair_texts(_byte_tokenizer(), _byte_tokenizer(("a", "Ġ")), ["xa bc"], 99)
    # x | a | space | b | c   against   x | "a " | b | c
    assert paired.texts[0][2:] == ([2, 3, 4], [1, 2, 3])


def test_special_tokens_before_the_text_are_read_and_move_the_positions():
    paired = pair_texts(_byte_tokenizer(bos=True), _byte_tokenizer(), ["abc"], 99)
    assert paired.texts[0].teacher_ids[0] == 0
    assert paired.texts[0][2:] == ([2, 3], [1, 2])  # the student's first token is nobody's partner


def test_equal_tokenizers_pair_every_position_but_the_first_even_within_characters():
    paired = pair_texts(_byte_tokenizer(), _byte_tokenizer(), ["aé"], 99)
    assert paired.texts[0] == PairedText(
        paired.texts[0].student_ids, paired.texts[0].student_ids, [1, 2], [1, 2]
    )


def test_long_texts_are_cut_and_texts_without_a_pair_are_dropped():
    paired = pair_texts(_byte_tokenizer(), _byte_tokenizer(("b", "c")), ["abcdef", "x"], 3)
    (text,) = paired.texts
    assert len(text.teacher_ids) == len(text.student_ids) == 3
    assert text[2:] == ([2], [1])  # "abc": the student has read one character more, unpaired
    assert paired.n_cut == 1
    assert [(gone.kind, gone.what) for gone in paired.dropped] == [("text", "x")]


def test_a_tokenizer_without_offsets_is_refused():
    slow = PreTrainedTokenizerBase.__new__(PreTrainedTokenizerBase)
    slow.name_or_path = "old-one"
    with pytest.raises(ModelError, match=r"tokenizer of the student \('old-one'\): expected a fast one"):
        pair_texts(_byte_tokenizer(), slow, ["a"], 9)


def test_taps_read_what_goes_into_and_comes_out_of_a_module(model):
    taps = [
        Tap("model.layers.1.mlp.up_proj", "input"),
        Tap("model.layers.1.mlp.up_proj", "output"),
        Tap("model.layers.0", "output"),
    ]
    read = read_activations(model, [5, 6, 7, 8], [3, 1], taps)
    weight = model.model.layers[1].mlp.up_proj.weight
    torch.testing.assert_close(read[taps[1]], read[taps[0]] @ weight.T)
    assert not model.model.layers[1].mlp.up_proj._forward_hooks  # nothing is left behind
    states = model(torch.tensor([[5, 6, 7, 8]]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(read[taps[2]], states[1][0, [3, 1]])


def test_a_module_that_is_not_there_is_refused_and_leaves_no_hook(model):
    taps = [Tap("model.norm", "output"), Tap("model.layers.0.mlp.gates", "output")]
    with pytest.raises(
        ModelError, match=r"expected a module 'model\.layers\.0\.mlp\.gates' in LlamaForCausalLM"
    ):
        read_activations(model, [5], [0], taps)
    assert not model.model.norm._forward_hooks
    with pytest.raises(ModelError, match="'lm_head': expected the model to run it"):
        read_activations(model, [5], [0], [Tap("lm_head", "output")])
