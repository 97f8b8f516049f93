"""Our scores equal those of sentence-transformers' CrossEncoder; what it would load wrongly is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

sentence_transformers = pytest.importorskip("sentence_transformers")

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors  # noqa: E402
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast  # noqa: E402

from transfuse.errors import ModelError  # noqa: E402
from transfuse.knowledge.reranking import load_reranker  # noqa: E402

WORDS = [
    "the",
    "ferry",
    "sails",
    "at",
    "night",
    "ice",
    "closed",
    "pier",
    "passengers",
    "board",
    "how",
    "many",
]
TEXTS = [
    "The ferry sails at night",
    "ice",
    "How many passengers board the ferry at the pier at night",
    "",
    "ice",
]


def saved(folder: Path, n_labels: int) -> Path:
    """A random 2-layer cross-encoder."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(18)
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=32,
                initializer_range=0.5,
                num_labels=n_labels,
            )
        )
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


def test_scores_equal_those_of_predict(tmp_path, capfd):
    folder = saved(tmp_path / "one", 1)
    capfd.readouterr()
    reranker = load_reranker(str(folder), device="cpu")
    texts = [*TEXTS, *(f"{text} pier" * n for n in range(1, 8) for text in TEXTS)]
    scores = reranker("How many passengers", texts)
    assert "".join(capfd.readouterr()) == ""
    plain = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    one_by_one = [
        plain.predict([("How many passengers", text)], show_progress_bar=False)[0] for text in texts
    ]
    np.testing.assert_allclose(scores, one_by_one, atol=1e-5)
    assert np.ptp(scores) > 0.01
    assert scores[1] == pytest.approx(scores[4], abs=1e-6)


def test_a_copy_that_sentence_transformers_wrote_gives_the_same_scores(tmp_path):
    folder = saved(tmp_path / "one", 1)
    sentence_transformers.CrossEncoder(str(folder), device="cpu").save_pretrained(str(tmp_path / "copy"))
    copy = load_reranker(str(tmp_path / "copy"), device="cpu")
    np.testing.assert_allclose(copy("ice", TEXTS), load_reranker(str(folder), device="cpu")("ice", TEXTS))


def test_a_model_with_several_labels_and_a_damaged_one_are_refused(tmp_path):
    folder = saved(tmp_path / "three", 3)
    with pytest.raises(
        ModelError, match="one score for a pair, got one with 3 labels; choose one trained to rank"
    ):
        load_reranker(str(folder), device="cpu")
    (folder / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_reranker(str(folder), device="cpu")
