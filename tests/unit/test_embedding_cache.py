"""The embedding cache: nothing is embedded twice, nothing is mixed up, nothing of a kill is lost but one batch."""

import sqlite3
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from transfuse.errors import DataError, RunFolderError
from transfuse.knowledge import embedding_cache as module
from transfuse.knowledge.embedding_cache import CachedEmbedder
from transfuse.knowledge.embeddings import Embedder, RetrievalEmbedder, Role


class CountingEmbedder:
    """A text's vector holds its length and that of the identity; fails at a text `kill`."""

    n_dimensions = 2

    def __init__(self, identity: str = "one") -> None:
        self.identity = identity
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str], on_texts: object = None) -> np.ndarray:
        if "kill" in texts:
            raise KeyboardInterrupt
        self.asked += texts
        return np.array([[len(text), len(self.identity)] for text in texts], dtype=np.float32).reshape(-1, 2)


class RoleEmbedder:
    """A text's vector holds its length and its role."""

    n_dimensions = 2
    identity = "roles"
    max_tokens = 9

    def __init__(self, plain_roles: frozenset[Role] = frozenset()) -> None:
        self.plain_roles = plain_roles
        self.asked: list[tuple[str, int]] = []

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def embed(self, texts: Sequence[str], on_texts: object = None, role: int = 0) -> np.ndarray:
        self.asked += [(text, role) for text in texts]
        return np.array([[len(text), role] for text in texts], dtype=np.float32).reshape(-1, 2)

    def embed_passages(self, texts: Sequence[str], on_texts: object = None) -> np.ndarray:
        return self.embed(texts, role=1)

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self.embed(texts, role=2)


def embed_many(path: Path, start: int) -> None:
    """What another process does."""
    texts = [f"{n:0{n}}" for n in range(start, start + 40)]
    for at in range(0, 40, 4):
        CachedEmbedder(CountingEmbedder(), path).embed(texts[at : at + 4])


def test_a_text_is_embedded_once_and_comes_back_in_its_places(tmp_path):
    plain = CountingEmbedder()
    cached = CachedEmbedder(plain, tmp_path / "new" / "cache.sqlite")
    assert isinstance(cached, Embedder)
    assert (cached.identity, cached.n_dimensions) == ("one", 2)
    told: list[tuple[int, int]] = []
    assert cached.embed(["ccc", "a", "ccc"]).tolist() == [[3, 3], [1, 3], [3, 3]]
    rows = cached.embed(["bb", "ccc", "bb", "é"], lambda n, n_all: told.append((n, n_all)))
    assert rows.tolist() == [[2, 3], [3, 3], [2, 3], [1, 3]]
    assert plain.asked == ["a", "ccc", "é", "bb"]
    assert told == [(1, 3), (3, 3)]
    assert cached.embed([]).shape == (0, 2)


def test_roles_are_kept_apart_but_where_they_make_no_difference(tmp_path):
    own = RoleEmbedder()
    cached = CachedEmbedder(own, tmp_path / "cache.sqlite")
    assert isinstance(cached, RetrievalEmbedder)
    assert (cached.max_tokens, cached.count_tokens(["abc"])) == (9, [3])
    for _ in range(2):
        assert cached.embed(["a"]).tolist() == [[1, 0]]
        assert cached.embed_passages(["a", "bb"]).tolist() == [[1, 1], [2, 1]]
        assert cached.embed_queries(["a"]).tolist() == [[1, 2]]
    assert own.asked == [("a", 0), ("a", 1), ("bb", 1), ("a", 2)]
    plain = RoleEmbedder(frozenset({"passage"}))
    cached = CachedEmbedder(plain, tmp_path / "cache.sqlite")
    assert cached.embed_passages(["a", "ccc"]).tolist() == [[1, 0], [3, 0]]
    assert plain.asked == [("ccc", 0)]


def test_an_embedder_without_roles_stays_one_when_it_is_cached(tmp_path):
    cached = CachedEmbedder(CountingEmbedder(), tmp_path / "cache.sqlite")
    assert not isinstance(cached, RetrievalEmbedder)


def test_another_model_and_vectors_of_another_length_are_not_mixed_up(tmp_path):
    path = tmp_path / "cache.sqlite"
    CachedEmbedder(CountingEmbedder(), path).embed(["a"])
    other = CountingEmbedder("other")
    assert CachedEmbedder(other, path).embed(["a"]).tolist() == [[1, 5]]
    with sqlite3.connect(path) as database:
        database.execute("UPDATE embeddings SET vector = x'00'")
    database.close()
    assert CachedEmbedder(other, path).embed(["a"]).tolist() == [[1, 5]]
    assert other.asked == ["a", "a"]


def test_finished_batches_survive_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TEXTS_PER_COMMIT", 2)
    monkeypatch.setattr(module, "_KEYS_PER_QUERY", 2)
    path = tmp_path / "cache.sqlite"
    with pytest.raises(KeyboardInterrupt):
        CachedEmbedder(CountingEmbedder(), path).embed(["a", "bb", "ccc", "dd", "kill", "fffff"])
    after = CountingEmbedder()
    assert CachedEmbedder(after, path).embed(["fffff", "a", "dd", "ccc", "bb"])[:, 0].tolist() == [
        5,
        1,
        2,
        3,
        2,
    ]
    assert after.asked == ["fffff"]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of forking beside other threads
def test_several_processes_share_one_file(tmp_path):
    path = tmp_path / "cache.sqlite"
    fork = get_context("fork")
    workers = [fork.Process(target=embed_many, args=(path, start)) for start in (1, 21)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    after = CountingEmbedder()
    rows = CachedEmbedder(after, path).embed([f"{n:0{n}}" for n in range(1, 61)])
    assert after.asked == []
    assert rows[:, 0].tolist() == list(range(1, 61))


def test_a_file_of_another_kind_is_refused_and_kept(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("my notes " * 100)
    with pytest.raises(
        DataError, match=r"notes\.txt: expected an embedding cache, got 'file is not a database'"
    ):
        CachedEmbedder(CountingEmbedder(), path)
    assert path.read_text().startswith("my notes")


def test_a_place_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(RunFolderError, match="expected to write here, got 'unable to open database file'"):
        CachedEmbedder(CountingEmbedder(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="choose another folder"):
        CachedEmbedder(CountingEmbedder(), tmp_path / "file" / "cache.sqlite")


def test_a_file_that_another_process_holds_is_waited_for_and_then_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_WAIT_S", 0.01)
    path = tmp_path / "cache.sqlite"
    cached = CachedEmbedder(CountingEmbedder(), path)
    holder = sqlite3.connect(path)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RunFolderError, match="another process has held the file"):
        cached.embed(["a"])
    holder.close()
