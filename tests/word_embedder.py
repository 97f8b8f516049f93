"""A fast, deterministic stand-in for an embedding model: texts that share words lie near one another."""

import hashlib
import re
from collections.abc import Sequence
from typing import final

import numpy as np

from transfuse.knowledge.embeddings import OnTexts

_WORD = re.compile(r"\w+")


@final
class WordEmbedder:
    """Sums a fixed random vector per word, and scales to length 1; counts the texts that it is asked for."""

    def __init__(
        self, n_dimensions: int = 64, identity: str = "word-embedder", max_tokens: int = 512
    ) -> None:
        self._n_dimensions = n_dimensions
        self._identity = identity
        self._max_tokens = max_tokens
        self._words: dict[str, np.ndarray] = {}
        self.embedded: list[str] = []
        """Every passage that was embedded, in order of asking."""

    @property
    def identity(self) -> str:
        return self._identity

    @property
    def n_dimensions(self) -> int:
        return self._n_dimensions

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(_WORD.findall(text)) for text in texts]

    def embed(self, texts: Sequence[str], on_texts: OnTexts | None = None) -> np.ndarray:
        rows = np.zeros((len(texts), self._n_dimensions), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in _WORD.findall(text.casefold()) or [text]:
                row += self._vector(word)
        if on_texts and texts:
            on_texts(len(texts), len(texts))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed_passages(self, texts: Sequence[str], on_texts: OnTexts | None = None) -> np.ndarray:
        self.embedded += texts
        return self.embed(texts, on_texts)

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self.embed(texts)

    def _vector(self, word: str) -> np.ndarray:
        if word not in self._words:
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
            self._words[word] = np.random.default_rng(seed).standard_normal(self._n_dimensions).astype("f4")
        return self._words[word]
