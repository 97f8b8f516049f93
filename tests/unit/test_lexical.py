"""The index for search by words: what is found, what is kept on disk, what is refused."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("bm25s")
pytest.importorskip("Stemmer")

from transfuse.errors import DataError, IndexFolderError, MissingExtraError, RunFolderError
from transfuse.knowledge import lexical as module
from transfuse.knowledge.lexical import LexicalIndex
from transfuse.knowledge.records import LexicalSettings

SETTINGS = LexicalSettings()
TEXTS = ["The ferry sails at night.", "Night ferries, night boats.", "A harbour in Tessmar", "", "…"]


def found(index: LexicalIndex, query: str, top_n: int = 10) -> list[int]:
    return index.search(query, top_n)[0].tolist()


def test_texts_are_found_by_stems_the_rarer_and_more_frequent_first():
    index = LexicalIndex.build(TEXTS, SETTINGS)
    assert len(index) == 5
    assert found(index, "ferry") == [1, 0]  # row 1 is the shorter one
    assert found(index, "nights") == [1, 0]
    assert found(index, "the harbours of TESSMAR") == [2, 0]
    rows, scores = index.search("night", 1)
    assert (rows.dtype, scores.dtype, rows.tolist()) == (np.int64, np.float32, [1])


@pytest.mark.parametrize("query", ["", "?!", "zeppelin"])
def test_a_query_without_known_words_finds_nothing(query):
    assert found(LexicalIndex.build(TEXTS, SETTINGS), query) == []
    assert found(LexicalIndex.build([], SETTINGS), query) == []
    assert found(LexicalIndex.build(["", "!"], SETTINGS), query) == []


def test_equal_scores_come_in_order_of_rows_also_where_some_are_left_out():
    index = LexicalIndex.build(["b x", *["a y"] * 6, "a a"], SETTINGS)
    assert found(index, "a") == [7, 1, 2, 3, 4, 5, 6]
    assert found(index, "a", 3) == [7, 1, 2]
    assert found(index, "a", 7) == [7, 1, 2, 3, 4, 5, 6]
    assert found(index, "a", 0) == []


def test_word_order_does_not_matter_and_repetition_does():
    index = LexicalIndex.build(TEXTS, SETTINGS)
    one, other = index.search("night ferry sails", 9), index.search("sails ferry night", 9)
    assert one[1].tolist() == other[1].tolist()
    np.testing.assert_allclose(index.search("night night", 9)[1], 2 * index.search("night", 9)[1])


def test_what_was_saved_is_mapped_and_finds_the_same(tmp_path):
    for texts in (TEXTS, [*TEXTS, "Łódź 東京"], ["!"], []):
        index = LexicalIndex.build(texts, SETTINGS)
        index.save(tmp_path / "lexical")
        loaded = LexicalIndex.load(tmp_path / "lexical", SETTINGS)
        assert len(loaded) == len(texts)
        for query in ("night ferry", "łódź", "東京", "tessmar harbour"):
            for mine, theirs in zip(index.search(query, 3), loaded.search(query, 3), strict=True):
                assert mine.tolist() == theirs.tolist()
    for file in (tmp_path / "lexical").glob("*.npy"):
        np.load(file, allow_pickle=False)
    large = LexicalIndex.build(TEXTS, SETTINGS)
    large.save(tmp_path / "large")
    assert isinstance(LexicalIndex.load(tmp_path / "large", SETTINGS)._scores.base, np.memmap)


def test_damage_is_named(tmp_path):
    LexicalIndex.build(TEXTS, SETTINGS).save(tmp_path)
    scores = (tmp_path / "scores.npy").read_bytes()
    damages: list[tuple[str, bytes | None, str]] = [
        ("scores.npy", scores[:-4], "build the index again"),
        ("scores.npy", b"", "build the index again"),
        ("scores.npy", None, r"No such file.*build the index again"),
        ("rows.npy", scores, r"rows\.npy of float32.*expected int32"),
        ("lexical.json", b'{"format": 9}', "format 9, expected 1"),
        ("lexical.json", b"{", "build the index again"),
    ]
    for name, content, message in damages:
        LexicalIndex.build(TEXTS, SETTINGS).save(tmp_path)
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(IndexFolderError, match=message):
            LexicalIndex.load(tmp_path, SETTINGS)


def test_other_languages_have_their_stemmers_and_none_keeps_words_whole():
    german = LexicalIndex.build(["Die Häuser am Hafen"], LexicalSettings(stemmer="german"))
    assert found(german, "Haus") == [0]
    whole = LexicalIndex.build(["boats", "boat"], LexicalSettings(stemmer=None))
    assert found(whole, "boat") == [1]


def test_an_unknown_stemmer_lists_the_known_ones():
    with pytest.raises(DataError, match=r"one of arabic, .*, got 'englisch'\. Did you mean 'english'\?"):
        LexicalIndex.build(TEXTS, LexicalSettings(stemmer="englisch"))


@pytest.mark.parametrize(("missing", "name"), [("bm25s", "bm25s"), ("Stemmer", "PyStemmer")])
def test_a_missing_package_names_the_extra(monkeypatch, missing, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda asked: None if asked == missing else find(asked)
    )
    with pytest.raises(MissingExtraError, match=rf"needs {name}: pip install 'transfuse\[index\]'"):
        LexicalIndex.build(TEXTS, SETTINGS)


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="choose another folder"):
        LexicalIndex.build(TEXTS, SETTINGS).save(tmp_path / "file" / "lexical")
