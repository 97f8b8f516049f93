from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.errors import DataError
from transfuse.knowledge.graphs import MappedGraph, save_graph
from transfuse.knowledge.records import HnswSettings
from transfuse.knowledge.vectors import LEVELS, VECTORS_FILE, VectorIndex, unit_vectors


def rows_of(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def unit_rows(n_rows: int, n_dimensions: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n_rows, n_dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def with_graph(folder: Path, vectors: np.ndarray, **hnsw: object) -> VectorIndex:
    np.save(folder / VECTORS_FILE, vectors)
    save_graph(folder, vectors, HnswSettings.model_validate({"connectivity": 8, **hnsw}))
    return VectorIndex.load(folder, has_graph=True)


def test_nearest_first_and_ties_by_row() -> None:
    index = VectorIndex(rows_of((0, 1), (1, 0), (0.6, 0.8), (0, 1), (0, -1)))
    rows, cosines = index.search(rows_of((0, 5), (2, 0)), 3)
    assert rows.tolist() == [[0, 3, 2], [1, 2, 0]]
    np.testing.assert_allclose(cosines, [[1, 1, 0.8], [1, 0.6, 0]], atol=1e-6)


def test_more_hits_than_rows_gives_all_rows(tmp_path: Path) -> None:
    vectors = unit_rows(20)
    for index in (VectorIndex(vectors), with_graph(tmp_path, vectors)):
        rows, _ = index.search(vectors[:2], 50)
        assert [sorted(found) for found in rows.tolist()] == [list(range(20))] * 2
    assert VectorIndex(vectors[:0]).search(vectors[:2], 3)[0].shape == (2, 0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(-3, 3)] * 3).filter(any), min_size=1, max_size=30),
    st.integers(1, 8),
)
def test_exact_search_is_that_of_sorting_all(rows: list[tuple[int, ...]], top_n: int) -> None:
    vectors = unit_vectors(rows_of(*rows), 3)
    query = rows_of((1, 2, -1))
    found, cosines = VectorIndex(vectors).search(query, top_n)
    near = (unit_vectors(query, 3) @ vectors.T)[0]
    expected = sorted(range(len(rows)), key=lambda row: (-near[row], row))[:top_n]
    assert found[0].tolist() == expected
    np.testing.assert_array_equal(cosines[0], near[expected])


def test_many_queries_are_compared_in_parts_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries = VectorIndex(unit_rows(50)), unit_rows(9, seed=1)
    whole, _ = index.search(queries, 5)
    monkeypatch.setattr("transfuse.knowledge.vectors._SCORES_AT_ONCE", 120)
    np.testing.assert_array_equal(index.search(queries, 5)[0], whole)


@pytest.mark.parametrize("dtype", ["f32", "f16", "i8"])
def test_a_graph_finds_what_comparing_all_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(
        "transfuse.knowledge.graphs._n_cores", lambda: 1
    )  # more cores: another graph each time
    vectors, queries = unit_rows(800), unit_rows(30, seed=1)
    index = with_graph(tmp_path, vectors, dtype=dtype)
    exact, exact_cosines = index.search(queries, 10, exact=True)
    recalls = []
    for level in range(len(LEVELS)):
        rows, cosines = index.search(queries, 10, level)
        recalls.append(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact, strict=True)]))
        assert (np.diff(cosines, axis=1) <= 0).all()
        true = np.array([index.cosines(query, found) for query, found in zip(queries, rows, strict=True)])
        np.testing.assert_allclose(cosines, true, atol={"f32": 1e-5, "f16": 1e-3, "i8": 3e-2}[dtype])
    assert recalls[-1] >= {"f32": 0.99, "f16": 0.97, "i8": 0.9}[dtype]  # rounding swaps near neighbours
    assert recalls[0] <= recalls[-1] + 0.01
    np.testing.assert_allclose(index.cosines(queries[0], exact[0]), exact_cosines[0], atol=1e-6)


def test_where_the_graph_leads_to_too_few_rows_all_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = unit_rows(40)
    index = with_graph(tmp_path, vectors)
    expected = index.search(vectors[:3], 5, exact=True)[0]
    search = MappedGraph.search

    def lost(self: MappedGraph, queries: np.ndarray, n_hits: int, breadth: int) -> tuple:
        rows, cosines = search(self, queries, n_hits, breadth)
        rows[1, 2:], cosines[1, 2:] = -1, -np.inf
        return rows, cosines

    monkeypatch.setattr(MappedGraph, "search", lost)
    np.testing.assert_array_equal(index.search(vectors[:3], 5)[0], expected)


def test_threads_find_what_one_thread_finds(tmp_path: Path) -> None:
    vectors = unit_rows(600)
    index = with_graph(tmp_path, vectors)
    alone = [index.search(vectors[at : at + 1], 10, at % 5)[0].tolist() for at in range(200)]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda at: index.search(vectors[at : at + 1], 10, at % 5)[0].tolist(), range(200))
        assert list(together) == alone


def test_the_vectors_stay_on_disk(tmp_path: Path) -> None:
    index = with_graph(tmp_path, unit_rows(30))
    assert isinstance(index._vectors, np.memmap)
    assert not index._vectors.flags.writeable


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (rows_of((1, 0)), "expected 3 numbers each, as the index has, got 2"),
        (rows_of((1, 0, 0), (0, np.nan, 0)), "vector 1: expected finite numbers, got a number that is not"),
        (rows_of((np.inf, 0, 0)), "vector 0: expected finite numbers, got a number that is not"),
        (rows_of((1, 0, 0), (1, 0, 0), (0, 0, 0)), "vector 2: expected finite numbers, got only zeros"),
    ],
)
def test_vectors_without_a_direction_are_refused(vectors: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        VectorIndex(rows_of((1, 0, 0))).search(vectors, 1)


def test_the_length_of_a_vector_does_not_matter_however_great_or_small() -> None:
    rows = unit_vectors(rows_of((3e38, 3e38), (1e-40, 0)), 2)
    np.testing.assert_allclose(rows, [[0.5**0.5, 0.5**0.5], [1, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("top_n", "level", "message"),
    [
        (0, 3, "top_n: expected at least 1, got 0"),
        (1, 5, r"level: expected 0 .* to 4 .*, got 5"),
        (1, -1, "got -1"),
    ],
)
def test_wrong_numbers_are_refused(top_n: int, level: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        VectorIndex(rows_of((1, 0))).search(rows_of((1, 0)), top_n, level)
