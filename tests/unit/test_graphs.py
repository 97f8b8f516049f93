import errno
from pathlib import Path

import numpy as np
import pytest
from usearch.index import Index

from transfuse.errors import IndexFolderError, MissingExtraError, RunFolderError
from transfuse.knowledge import graphs
from transfuse.knowledge.graphs import Earlier, GraphState, MappedGraph, save_graph
from transfuse.knowledge.records import HnswSettings

SETTINGS = HnswSettings(connectivity=8, expansion_add=64)


def unit_rows(n_rows: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n_rows, 16))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def saved(folder: Path, vectors: np.ndarray, earlier: Earlier | None = None) -> Path:
    folder.mkdir()
    save_graph(folder, vectors, SETTINGS, earlier=earlier)
    return folder


def state_of(folder: Path) -> GraphState:
    return GraphState.model_validate_json((folder / "graph.json").read_bytes())


def recall(folder: Path, vectors: np.ndarray, queries: np.ndarray) -> float:
    rows, _ = MappedGraph.load(folder, n_rows=len(vectors)).search(queries, 10, 128)
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact, strict=True)]))


def test_after_many_changes_a_graph_still_finds_what_comparing_all_finds(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors, queries = unit_rows(500, 1), unit_rows(20, 2)
    folder = saved(tmp_path / "0", vectors)
    removed_counts = []
    for turn in range(1, 13):
        kept = random.permutation(len(vectors))[: int(len(vectors) * 0.9)]  # in another order, too
        fresh = unit_rows(
            [0, 90, 30][turn % 3], 10 + turn
        )  # now and then nothing takes the places of the removed
        vectors = np.concatenate([vectors[kept], fresh])
        rows = np.concatenate([kept, np.full(len(fresh), -1)])
        folder = saved(tmp_path / str(turn), vectors, Earlier(folder, rows))
        assert recall(folder, vectors, queries) >= 0.97
        removed_counts.append(state_of(folder).n_removed)
    assert 0 in removed_counts  # built anew when too many were gone, and only then
    assert max(removed_counts) > 60


def test_only_new_vectors_are_added_and_keys_are_not_given_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = unit_rows(100, 0)
    first = saved(tmp_path / "first", vectors[:90])
    added: list[int] = []
    add = Index.add
    monkeypatch.setattr(
        Index, "add", lambda self, keys, *a, **k: added.extend(keys) or add(self, keys, *a, **k)
    )
    kept = np.arange(0, 90)[10:]
    second = saved(
        tmp_path / "second",
        np.concatenate([vectors[10:90], vectors[90:]]),
        Earlier(first, np.concatenate([kept, np.full(10, -1)])),
    )
    assert added == list(range(90, 100))
    assert np.load(second / "keys.npy").tolist() == list(range(10, 100))
    assert state_of(second) == GraphState(next_key=100, n_removed=10)


@pytest.mark.parametrize(
    ("n_removed", "n_built"), [(23, 0), (24, 76)]
)  # 23 of 77 left are 29.9 %, 24 of 76 31.6 %
def test_a_graph_that_lost_too_many_nodes_is_built_anew(tmp_path: Path, n_removed: int, n_built: int) -> None:
    vectors = unit_rows(100, 0)
    first = saved(tmp_path / "first", vectors)
    kept = np.arange(n_removed, 100)
    told: list[tuple[int, int]] = []
    (tmp_path / "second").mkdir()
    save_graph(
        tmp_path / "second",
        vectors[kept],
        SETTINGS,
        earlier=Earlier(first, kept),
        on_vectors=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (n_built, n_built)
    assert state_of(tmp_path / "second").n_removed == (0 if n_built else n_removed)


def test_with_one_core_the_same_vectors_give_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_n_cores", lambda: 1)
    files = [saved(tmp_path / name, unit_rows(300, 0)) / "hnsw.usearch" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("hnsw.usearch", lambda data: data[: len(data) // 2], "corrupted"),
        ("hnsw.usearch", lambda data: b"x" * len(data), "Not a dense USearch index"),
        ("keys.npy", lambda data: data[:-8], "array"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, damage, message: str) -> None:
    folder = saved(tmp_path / "graph", unit_rows(50, 0))
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(ValueError, match=message):
        MappedGraph.load(folder, n_rows=50)
    (tmp_path / "next").mkdir()
    with pytest.raises(IndexFolderError, match=r"hnsw\.usearch: cannot be read .* build the index anew"):
        save_graph(tmp_path / "next", unit_rows(50, 0), SETTINGS, earlier=Earlier(folder, np.arange(50)))


def test_a_graph_of_another_number_of_rows_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "graph", unit_rows(50, 0))
    with pytest.raises(ValueError, match=r"keys\.npy is of shape \(50,\), expected \(49,\)"):
        MappedGraph.load(folder, n_rows=49)
    np.save(folder / "keys.npy", np.arange(49))
    with pytest.raises(ValueError, match=r"hnsw\.usearch holds 50 nodes, keys\.npy 49"):
        MappedGraph.load(folder, n_rows=49)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(self: Index, path: Path) -> None:
        raise RuntimeError("Failed to serialize into stream")

    monkeypatch.setattr(Index, "save", save)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 100}))
    with pytest.raises(RunFolderError, match="the disk is full") as caught:
        saved(tmp_path / "graph", unit_rows(50, 0))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert not (tmp_path / "graph" / "hnsw.usearch").exists()


def test_usearch_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'transfuse\[index\]'"):
        save_graph(tmp_path, unit_rows(5, 0), SETTINGS)
