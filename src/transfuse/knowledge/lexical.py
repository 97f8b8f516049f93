"""Search by words: Okapi BM25 over texts, in plain files that are memory-mapped."""

import importlib.util
import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from transfuse.errors import DataError, IndexFolderError, MissingExtraError
from transfuse.io.files import write_errors, write_json
from transfuse.knowledge.records import LexicalSettings
from transfuse.text.words import search_words

_INSTALL = "pip install 'transfuse[index]'"
_ABOUT = "lexical.json"
_FORMAT = 1
_ARRAYS = {
    "scores": np.float32,  # of every word in every text that holds it, word after word
    "rows": np.int32,  # the texts, in the same order
    "word_starts": np.int64,  # where the scores of each word begin, and the last one's end
    "letters": np.uint8,  # the words in order of their UTF-8 bytes, end to end
    "letter_starts": np.int64,  # where each word begins, and the last one ends
}

_Stem = Callable[[list[str]], list[str]]


@final
class LexicalIndex:
    """What every word of the texts adds to the score of each text that holds it; read-only and safe between threads.

    The scores are BM25 as Lucene has it (Kamphuis et al. 2020, "Which BM25 do you mean?", "accurate"): its
    idf, log(1 + (N - df + 0.5) / (df + 0.5)), is above 0 for a word that all texts share, so that whatever shares
    a word with the query is found.
    """

    def __init__(self, n_texts: int, arrays: dict[str, np.ndarray], stem: _Stem) -> None:
        self._n_texts = n_texts
        self._arrays = arrays
        self._stem = stem
        self._scores: Float32[np.ndarray, " entries"] = arrays["scores"]
        self._rows: Int32[np.ndarray, " entries"] = arrays["rows"]
        self._word_starts: Int64[np.ndarray, " words+1"] = arrays["word_starts"]
        self._letters: UInt8[np.ndarray, " letters"] = arrays["letters"]
        self._letter_starts: Int64[np.ndarray, " words+1"] = arrays["letter_starts"]

    def __len__(self) -> int:
        """Number of texts."""
        return self._n_texts

    @classmethod
    def build(cls, texts: Sequence[str], settings: LexicalSettings) -> "LexicalIndex":
        """Index texts.

        Args:
            texts: row by row; one without words is never found.
            settings: of the scores, and how words are stemmed.

        Returns:
            The index, in memory.

        Raises:
            DataError: there is no such stemmer.
            MissingExtraError: bm25s or PyStemmer is not installed.
        """
        stem = _stemmer(settings.stemmer)
        ids_of_texts, words = _numbered(texts, stem)
        encoded = [word.encode() for word in words]
        return cls(
            len(texts),
            {
                **_scored(ids_of_texts, len(words), settings),
                "letters": np.frombuffer(b"".join(encoded), dtype=np.uint8),
                "letter_starts": np.cumsum([0, *map(len, encoded)], dtype=np.int64),
            },
            stem,
        )

    def save(self, folder: Path) -> None:
        """Write the index into a folder.

        Args:
            folder: made where it is not there; files of the same names are overwritten.

        Raises:
            RunFolderError: it cannot be written.
        """
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, array in self._arrays.items():
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
        lengths = {name: len(array) for name, array in self._arrays.items()}
        write_json(folder / _ABOUT, {"format": _FORMAT, "n_texts": self._n_texts, "lengths": lengths})

    @classmethod
    def load(cls, folder: Path, settings: LexicalSettings) -> "LexicalIndex":
        """Map the files of an index into memory; what a search needs of them is read when it is asked.

        Args:
            folder: as `save` wrote it.
            settings: those that it was built with; queries are stemmed alike.

        Returns:
            The index.

        Raises:
            DataError: there is no such stemmer.
            IndexFolderError: files are missing or damaged.
            MissingExtraError: PyStemmer is not installed.
        """
        stem = _stemmer(settings.stemmer)
        try:
            about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            if about["format"] != _FORMAT:
                raise ValueError(f"format {about['format']!r}, expected {_FORMAT}")
            arrays = {
                name: _mapped(folder / f"{name}.npy", dtype, about["lengths"][name])
                for name, dtype in _ARRAYS.items()
            }
            return cls(int(about["n_texts"]), arrays, stem)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as err:
            raise IndexFolderError(
                f"{folder}: expected the files of a search by words, got {err!r}; build the index again."
            ) from err

    def search(
        self, query: str, top_n: int
    ) -> tuple[Int64[np.ndarray, " hits"], Float32[np.ndarray, " hits"]]:
        """The texts that share words with the query.

        Args:
            query: any text; a word that it repeats counts as often.
            top_n: how many are wanted at most.

        Returns:
            Rows and BM25 scores, best first, equal scores by row; none for a query without a known word.
        """
        asked = Counter(self._stem(search_words(query)))
        known = sorted((found, n) for word, n in asked.items() if (found := self._find(word)) is not None)
        sums = np.zeros(self._n_texts, dtype=np.float32)
        for (
            word,
            n,
        ) in known:  # in order, so that the order of the query's words does not show in the last bit
            entries = slice(self._word_starts[word], self._word_starts[word + 1])
            sums[self._rows[entries]] += n * self._scores[entries]
        least = np.partition(sums, -top_n)[-top_n] if 0 < top_n < len(sums) else np.float32(0)
        rows = np.flatnonzero(sums > least)
        if least > 0 and len(rows) < top_n:
            rows = np.concatenate([rows, np.flatnonzero(sums == least)[: top_n - len(rows)]])
        best_first = rows[np.lexsort((rows, -sums[rows]))][: max(top_n, 0)]
        return best_first.astype(np.int64), sums[best_first]

    def _find(self, word: str) -> int | None:
        """The number of a word, by bisection: a dictionary of all words would be what takes time to load."""
        wanted = word.encode()
        n_words = len(self._letter_starts) - 1
        at = bisect_left(range(n_words), wanted, key=self._word)
        return at if at < n_words and self._word(at) == wanted else None

    def _word(self, number: int) -> bytes:
        return self._letters[self._letter_starts[number] : self._letter_starts[number + 1]].tobytes()


def _numbered(texts: Sequence[str], stem: _Stem) -> tuple[list[list[int]], list[str]]:
    """The words of each text as numbers, and the words in the order of these; equal stems share a number."""
    number_of: defaultdict[str, int] = defaultdict(count().__next__)
    numbers = [[number_of[word] for word in search_words(text)] for text in texts]
    stems = stem(list(number_of))
    words = sorted(set(stems))  # by code point, which is also the order of the UTF-8 bytes
    place_of = {word: place for place, word in enumerate(words)}
    places = [place_of[word] for word in stems]
    return [[places[number] for number in of_text] for of_text in numbers], words


def _scored(ids_of_texts: list[list[int]], n_words: int, settings: LexicalSettings) -> dict[str, np.ndarray]:
    """The score of each word in each text that holds it."""
    if not n_words:
        empty = {name: np.zeros(0, dtype=_ARRAYS[name]) for name in ("scores", "rows")}
        return {**empty, "word_starts": np.zeros(1, dtype=np.int64)}
    if importlib.util.find_spec("bm25s") is None:
        raise MissingExtraError(f"search by words needs bm25s: {_INSTALL}")
    import bm25s

    model = bm25s.BM25(k1=settings.k1, b=settings.b, method="lucene", backend="numpy", csc_backend="numpy")
    matrix = model.build_index_from_ids(list(range(n_words)), ids_of_texts, show_progress=False)
    return {
        "scores": np.asarray(matrix["data"], dtype=np.float32),
        "rows": np.asarray(matrix["indices"], dtype=np.int32),
        "word_starts": np.asarray(matrix["indptr"], dtype=np.int64),
    }


def _stemmer(name: str | None) -> _Stem:
    if name is None:
        return list
    if importlib.util.find_spec("Stemmer") is None:
        raise MissingExtraError(
            f"search by words needs PyStemmer: {_INSTALL}; or set lexical.stemmer to null"
        )
    import Stemmer

    known = Stemmer.algorithms()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"lexical.stemmer: expected null or one of {', '.join(known)}, got {name!r}.{hint}")
    return lambda words: Stemmer.Stemmer(name).stemWords(words)  # one for each call: they are not thread-safe


def _mapped(path: Path, dtype: type, length: int) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype != dtype or array.shape != (length,):
        raise ValueError(
            f"{path.name} of {array.dtype} {array.shape}, expected {np.dtype(dtype)} ({length},)"
        )
    return array.view(np.ndarray)
