"""Replies outlive processes, many of which write at once; a damaged file is said to be one."""

import multiprocessing
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.errors import GenerationError, RunFolderError
from transfuse.generate.protocol import Reply, Request
from transfuse.generate.reply_cache import ReplyCache, default_cache_path, reply_key


def test_replies_are_kept_whole_and_failed_ones_are_not(tmp_path: Path):
    path = tmp_path / "deep" / "replies.sqlite"
    reply = Reply("España – 東京\n\0", is_cut=True, n_prompt_tokens=7, n_reply_tokens=3)
    with ReplyCache(path) as cache:
        cache.put("a", reply)
        cache.put("b", Reply("", error="no reply"))
        cache.put("c", Reply("old"))
        cache.put("c", Reply("new"))
    with ReplyCache(path) as cache:
        assert (cache.get("a"), cache.get("b"), cache.get("c")) == (reply, None, Reply("new"))
        assert len(cache) == 2


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplyCache]:
    with ReplyCache(tmp_path_factory.mktemp("cache") / "r.sqlite") as opened:
        yield opened


@settings(max_examples=15, deadline=None)
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=5))
def test_any_text_comes_back(cache, texts):
    for number, text in enumerate(texts):
        cache.put(str(number), Reply(text))
    assert [cache.get(str(number)) for number in range(len(texts))] == [Reply(text) for text in texts]


def test_keys_tell_requests_and_generators_apart():
    requests = [Request("a"), Request("b"), Request("a", seed=1), Request("a", system="")]
    keys = {reply_key(request, identity) for request in requests for identity in ("one", "two")}
    assert len(keys) == 8
    assert reply_key(Request("a"), "one") in keys


def _write(path: Path, name: int, n: int) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    with ReplyCache(path) as cache:
        for number in range(n):
            cache.put(f"{name}-{number}", Reply(str(number)))


def _write_and_die(path: Path) -> None:
    cache = ReplyCache(path)
    for number in range(20):
        cache.put(str(number), Reply(str(number)))
    os.kill(os.getpid(), signal.SIGKILL)


def test_many_processes_write_one_file_from_its_first_moment(tmp_path: Path):
    path = tmp_path / "r.sqlite"
    start = multiprocessing.get_context("fork").Process
    writers = [start(target=_write, args=(path, name, 25)) for name in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    with ReplyCache(path) as cache:
        assert len(cache) == 100


def test_a_killed_process_loses_no_reply(tmp_path: Path):
    writer = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(tmp_path / "r.sqlite",))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    with ReplyCache(tmp_path / "r.sqlite") as cache:
        assert len(cache) == 20


def test_a_damaged_file_is_to_be_moved_away(tmp_path: Path):
    path = tmp_path / "r.sqlite"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(GenerationError, match=rf"the file is damaged .*mv {path} {path}.damaged"):
        ReplyCache(path)
    path.unlink()
    with ReplyCache(path) as cache:
        for number in range(60):
            cache.put(f"{number:0100}", Reply("x" * 900))
    data = bytearray(path.read_bytes())
    data[4096:-4096] = b"\xff" * (len(data) - 8192)
    path.write_bytes(data)
    with pytest.raises(GenerationError, match="the file is damaged"), ReplyCache(path) as cache:
        cache.get("0" * 100)


def test_another_database_is_left_alone(tmp_path: Path):
    path = tmp_path / "other.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE mine (x)")
    other.close()
    before = path.stat().st_size
    with pytest.raises(GenerationError, match="found another SQLite database"):
        ReplyCache(path)
    assert path.stat().st_size == before


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path):
    with pytest.raises(GenerationError, match="unable to open database file"):
        ReplyCache(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="expected to write here"):
        ReplyCache(tmp_path / "file" / "r.sqlite")


def test_the_default_place_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path))
    assert default_cache_path() == tmp_path / "replies.sqlite"
