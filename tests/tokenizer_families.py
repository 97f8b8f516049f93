"""Small fast tokenizers of every family, trained in memory; imported by unit and contract tests."""

import json
from collections.abc import Callable

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = (
    "Which country won the cup in 2023? Spain won the cup for the first time, 1:0.",
    "def area(width, height):\n    return width * height\n\n\nprint(area(12, 345))\n",
    "東京都は日本の首都である。人口は約1400万人。",
    "The naïve café owner said “l’été” – and so on… ½ of 120 km² is 60 km².",
    "Привет, мир! שלום עולם، مرحبا بالعالم 👩‍👩‍👧 👍🏽",
)
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>"]


def byte_level(
    vocab_size: int = 420,
    *,
    composes: bool = False,
    adds_space: bool = False,
    trims_offsets: bool = False,
    splits_digits: bool = False,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE, as of GPT-2; with composition (NFC) as of Qwen; with a space in front as of RoBERTa."""
    tokenizer = Tokenizer(models.BPE())
    if composes:
        tokenizer.normalizer = normalizers.NFC()
    digits = [pre_tokenizers.Digits(individual_digits=True)] if splits_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*digits, pre_tokenizers.ByteLevel(add_prefix_space=adds_space)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trims_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, **_TRAINING))
    return _wrapped(tokenizer, knows_all=True)


def sentencepiece(vocab_size: int = 300, *, adds_space: bool = False) -> PreTrainedTokenizerFast:
    """A BPE over characters with byte tokens for unknown ones, as of Gemma; with a space in front as of Llama 2."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    # Only of the first two texts, so that characters of the others are spelled in bytes.
    _train(trained, trainers.BpeTrainer(vocab_size=vocab_size, **_TRAINING), CORPUS[:2])
    vocabulary = trained.get_vocab()
    merges = [tuple(merge) for merge in _model_of(trained)["merges"]]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    prepend = [normalizers.Prepend("▁")] if adds_space else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if adds_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return _wrapped(tokenizer, writes_bos=True)


def unigram(vocab_size: int = 200, *, normalises: bool = True) -> PreTrainedTokenizerFast:
    """A Unigram model under NFKC, as of T5."""
    tokenizer = Tokenizer(models.Unigram())
    if normalises:
        tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    _train(tokenizer, trainers.UnigramTrainer(vocab_size=vocab_size, unk_token="<unk>", **_TRAINING))
    return _wrapped(tokenizer)


def wordpiece(vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece that drops white space and accents, as of BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _train(tokenizer, trainers.WordPieceTrainer(vocab_size=vocab_size, **_TRAINING))
    return _wrapped(tokenizer)


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "byte-level, small": lambda: byte_level(270),
    "byte-level, composing": lambda: byte_level(composes=True),
    "byte-level, trimmed offsets": lambda: byte_level(composes=True, trims_offsets=True),
    "byte-level, space in front": lambda: byte_level(adds_space=True, splits_digits=True),
    "sentencepiece": sentencepiece,
    "sentencepiece, space in front": lambda: sentencepiece(adds_space=True),
    "unigram": unigram,
    "unigram, as it is": lambda: unigram(normalises=False),
    "wordpiece": wordpiece,
}

_TRAINING = {"special_tokens": SPECIAL, "show_progress": False}


def _train(tokenizer: Tokenizer, trainer: trainers.Trainer, corpus: tuple[str, ...] = CORPUS) -> None:
    tokenizer.train_from_iterator(corpus, trainer)


def _model_of(tokenizer: Tokenizer) -> dict:
    return json.loads(tokenizer.to_str())["model"]


def _wrapped(
    tokenizer: Tokenizer, *, writes_bos: bool = False, knows_all: bool = False
) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    if writes_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    unknown = {} if knows_all else {"unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **unknown)
