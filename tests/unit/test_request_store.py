"""Answers outlive processes, many of which write at once; a damaged file is said to be one."""

import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from transfuse.errors import DataError
from transfuse.evaluate.request_store import RequestStore, default_store_path, request_key


def test_answers_of_any_kind_come_back(tmp_path: Path):
    path = tmp_path / "deep" / "answers.sqlite"
    answers = {"a": [-0.1 + 0.2, True], "b": "España – 東京\n\0", "c": float("-inf")}
    with RequestStore(path) as store:
        store.put(answers)
        store.put({"c": "new"})
        store.put({})
    with RequestStore(path) as store:
        assert store.get(["a", "b", "c", "d"]) == {**answers, "c": "new"}
        assert len(store) == 3
        many = {str(n): n for n in range(1200)}
        store.put(many)
        assert store.get(list(many)) == many


def test_keys_tell_models_kinds_and_requests_apart():
    keys = {
        request_key(model, kind, parts)
        for model in ("one", "two")
        for kind in ("loglikelihood", "generate_until")
        for parts in ([[1, 2], [3]], [[1], [2, 3]], [[1, 2], [3], {"until": ["a"]}])
    }
    assert len(keys) == 12
    assert request_key("one", "loglikelihood", [(1, 2), (3,)]) in keys


def test_each_model_has_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path))
    assert default_store_path("ab12") == tmp_path / "evaluations" / "ab12.sqlite"
    other = default_store_path("a/b: c")
    assert other.parent == tmp_path / "evaluations"
    assert other != default_store_path("a/b: d")


def _write(path: Path, name: int, n: int) -> None:
    with RequestStore(path) as store:
        for number in range(n):
            store.put({f"{name}-{number}-{part}": [number] for part in range(3)})


def test_processes_write_at_once_and_a_killed_one_leaves_whole_batches(tmp_path: Path):
    path = tmp_path / "answers.sqlite"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(path, name, 20)) for name in range(3)]
    killed = context.Process(target=_write, args=(path, 9, 100_000))
    for process in (*writers, killed):
        process.start()
    for process in writers:
        process.join()
    with RequestStore(path) as store:
        deadline = time.monotonic() + 20
        while not store.get(["9-0-0"]) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert killed.pid is not None
        os.kill(killed.pid, signal.SIGKILL)
        killed.join()
        assert len(store) % 3 == 0
        assert len(store) > 180
        assert len(store.get([f"{name}-19-2" for name in range(3)])) == 3


def test_damaged_and_foreign_files_are_refused(tmp_path: Path):
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(
        DataError, match=r"answers\.sqlite: expected answers .* the file is damaged .*; move it away"
    ):
        RequestStore(path)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE t (x)")
    database.close()
    with pytest.raises(DataError, match=r"found another SQLite database \(version 0\); name another file"):
        RequestStore(other)
    with RequestStore(tmp_path / "good.sqlite") as store:
        store.put({"a": 1})
        store._database.execute("UPDATE answers SET answer = '{' WHERE key = 'a'")
        with pytest.raises(DataError, match="the file is damaged"):
            store.get(["a"])
