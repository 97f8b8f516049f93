"""Our scores equal BM25 written out, text by text."""

import math
import random

import numpy as np
import pytest

pytest.importorskip("bm25s")
pytest.importorskip("Stemmer")

from transfuse.knowledge.lexical import LexicalIndex
from transfuse.knowledge.records import LexicalSettings


def bm25(texts: list[list[str]], query: list[str], k1: float, b: float) -> list[float]:
    """Kamphuis et al. 2020, table 1, "Lucene (accurate)"."""
    mean_length = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for word in query:
            n_with = sum(word in other for other in texts)
            idf = math.log(1 + (len(texts) - n_with + 0.5) / (n_with + 0.5))
            tf = text.count(word)
            score += tf and idf * tf / (tf + k1 * (1 - b + b * len(text) / mean_length))
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (2.0, 0.0), (1.2, 1.0)])
def test_scores_equal_those_of_the_formula(k1, b):
    rng = random.Random(18)  # noqa: S311 - words, no secret
    words = [f"w{number}" for number in range(30)]
    weights = [1 / (1 + number) for number in range(30)]
    texts = [rng.choices(words, weights, k=rng.randint(0, 25)) for _ in range(60)]
    index = LexicalIndex.build([" ".join(text) for text in texts], LexicalSettings(k1=k1, b=b, stemmer=None))
    for _ in range(20):
        query = rng.choices([*words, "unknown"], k=rng.randint(1, 6))
        expected = np.array(bm25(texts, query, k1, b))
        rows, scores = index.search(" ".join(query), 100)
        assert sorted(rows.tolist()) == np.flatnonzero(expected).tolist()
        np.testing.assert_allclose(scores, expected[rows], rtol=1e-5)
        assert (np.diff(scores) <= 0).all()
