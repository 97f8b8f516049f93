"""A cache says what was put into it, and says so when it cannot."""

import json
from pathlib import Path

import numpy as np
import pytest

from transfuse.errors import CacheError, RunFolderError
from transfuse.io import distribution_writing as writing
from transfuse.io.distribution_cache import (
    DistributionCache,
    TextDistributions,
    refuse_other_texts,
    verify,
)
from transfuse.io.distribution_header import CachePlan, text_sha256, texts_digest
from transfuse.io.distribution_writing import open_cache_writer, shard_ranges
from transfuse.tensors.packed_records import rounding_nats, widest_value_bits

TEXTS = ["one " * 30, "two" * 200, "", "four  and a tail \n", "five " * 20]
LENGTHS = [[4] * 30, [3, 62, 63, 64, 408], [], [5, 12, 1, 0], [5] * 20]
"""Bytes of the tokens; some are too long for a record, and one text has none."""


def made_text(number: int, k: int) -> TextDistributions:
    generator = np.random.default_rng(number)
    n = len(LENGTHS[number])
    probs = -np.sort(-generator.dirichlet([0.3] * (k + 1), size=n), axis=1).astype(np.float32)
    observed = np.log(generator.random(n, dtype=np.float32))
    observed[-1:] = np.nan
    return TextDistributions(
        generator.integers(1000, size=n).astype(np.int32),
        np.cumsum(LENGTHS[number], dtype=np.int32),
        observed,
        generator.integers(1000, size=(n, k)).astype(np.int32),
        np.log(probs[:, :k]),
        np.log(probs[:, k]) if k else np.zeros(n, dtype=np.float32),
    )


def made_plan(**changes: object) -> CachePlan:
    plan = CachePlan(
        model="org/tiny",
        model_fingerprint="aa",
        tokenizer_fingerprint="bb",
        precision="float32",
        n_logits=1024,
        n_vocab=1000,
        k=10,
        selection="top-k",
        temperature=1.0,
        seed=None,
        value_bits=widest_value_bits(1000, 10),
        shard_tokens=40,
        n_texts=len(TEXTS),
        n_tokens=sum(map(len, LENGTHS)),
        text_digest=texts_digest([text_sha256(text) for text in TEXTS]),
    )
    return plan.model_copy(update=changes)


def write(folder: Path, *, rebuild: bool = False, keep: bool = False, **changes: object) -> DistributionCache:
    plan = made_plan(**changes)
    with open_cache_writer(folder, plan, [len(each) for each in LENGTHS], rebuild=rebuild) as writer:
        for number in writer.missing:
            inside = writer.ranges[number]
            digests = [text_sha256(TEXTS[n]) for n in inside]
            writer.write_shard(number, [made_text(n, plan.k) for n in inside], digests)
        return writer.finish(TEXTS if keep else None)


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}


def test_texts_go_to_shards_in_order_and_a_long_one_has_its_own():
    assert shard_ranges([3, 4, 3, 20, 1, 0, 9], 10) == [range(3), range(3, 4), range(4, 7)]
    assert shard_ranges([], 10) == []


def test_what_was_written_is_read(tmp_path):
    write(tmp_path / "cache")
    cache = DistributionCache.open(tmp_path / "cache")
    assert len(cache) == 5
    assert [shard.n_texts for shard in cache.header.shards] == [4, 1]
    assert [shard.n_long for shard in cache.header.shards] == [3, 0]
    assert cache.text_digests == [text_sha256(text) for text in TEXTS]
    for number in (3, 0, 1, 2, 4):  # in any order
        back, put = cache.text(number), made_text(number, 10)
        np.testing.assert_array_equal(back.token_ids, put.token_ids)
        np.testing.assert_array_equal(back.ends, put.ends)
        np.testing.assert_array_equal(back.top_ids, put.top_ids)
        bits = cache.header.layout.observed_bits
        seen = ~np.isnan(put.observed_log_probs)
        np.testing.assert_array_equal(np.isnan(back.observed_log_probs), ~seen)
        errors = np.abs(back.observed_log_probs - put.observed_log_probs)[seen]
        assert (errors <= rounding_nats(put.observed_log_probs[seen], bits) + 1e-5).all()
        total = np.exp(back.top_log_probs).sum(axis=1) + np.exp(back.tail_log_probs)
        np.testing.assert_allclose(total, 1, atol=2e-6)
        assert [part.dtype.str for part in back] == ["<i4", "<i4", "<f4", "<i4", "<f4", "<f4"]
    assert cache.text(1).ends[-1] == len(TEXTS[1])
    verify(cache)
    with pytest.raises(IndexError, match="expected text 0 to 4, got 5"):
        cache.text(5)


@pytest.mark.parametrize("changes", [{"k": 0, "value_bits": 16}, {"value_bits": 32}])
def test_other_layouts_are_read_too(tmp_path, changes):
    cache = write(tmp_path / "cache", **changes)
    put = made_text(0, cache.header.k)
    for number, (back, expected) in enumerate(zip(cache.text(0), put, strict=True)):
        np.testing.assert_allclose(
            back, expected, atol=0 if changes["value_bits"] == 32 else 1e-3, err_msg=str(number)
        )


def test_a_copy_of_the_texts_is_kept_on_request(tmp_path):
    assert write(tmp_path / "plain").texts() is None
    cache = write(tmp_path / "cache", keep=True)
    assert cache.texts() == TEXTS
    assert write(tmp_path / "cache").texts() == TEXTS  # a later call without it leaves it
    (tmp_path / "cache" / "texts.jsonl").write_text('{"text": "other"}\n')
    with pytest.raises(CacheError, match=r"texts\.jsonl: the copy of the texts is missing or altered"):
        cache.texts()


def test_an_unfinished_cache_is_named_and_gone_on_with(tmp_path, monkeypatch):
    whole = write(tmp_path / "whole")
    folder = tmp_path / "cache"
    calls = []

    def stop(self, number, *rest):
        if calls:
            raise KeyboardInterrupt
        calls.append(number)
        real(self, number, *rest)

    real = writing.CacheWriter.write_shard
    monkeypatch.setattr(writing.CacheWriter, "write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        write(folder)
    monkeypatch.undo()
    with pytest.raises(
        CacheError, match=r"the cache is unfinished \(shards done: 1\); run the command that began it again"
    ):
        DistributionCache.open(folder)
    (folder / ".shard-00001.bin.abc").write_bytes(b"half")
    before = times(folder)
    assert set(before) == {"shard-00000.bin", "shard-00000.json"}
    cache = write(folder)
    assert {name: time for name, time in times(folder).items() if name in before} == before
    assert cache.header == whole.header
    assert not list(folder.glob(".shard*"))
    after = times(folder)
    write(folder)  # finished: nothing is touched
    assert times(folder) == after


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "altered":
        path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    elif how == "truncated":
        path.write_bytes(data[:-1])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["altered", "truncated", "missing"])
def test_a_damaged_shard_is_named_refused_and_rebuilt_on_request(tmp_path, how):
    folder = tmp_path / "cache"
    written = write(folder).header
    before = times(folder)
    damage(folder / "shard-00001.bin", how)
    with pytest.raises(
        CacheError, match=rf"cache: shard-00001.bin is {how}; copy it again, or give --rebuild"
    ):
        verify(DistributionCache.open(folder))
    if how != "altered":
        with pytest.raises(CacheError, match=f"shard-00001.bin is {how}"):
            DistributionCache.open(folder)
        with pytest.raises(CacheError, match=f"shard-00001.bin is {how}"):
            write(folder)
    assert write(folder, rebuild=True).header == written
    verify(DistributionCache.open(folder))
    assert times(folder)["shard-00000.bin"] == before["shard-00000.bin"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokenizer_fingerprint": "cc"}, "tokenizer: another one there"),
        ({"model_fingerprint": "cc", "model": "org/other"}, "model: 'org/tiny' there, 'org/other' now"),
        ({"text_digest": "cc"}, "texts: others there"),
        ({"k": 5}, "k: 10 there, 5 now"),
        ({"temperature": 2.0}, r"temperature: 1\.0 there, 2\.0 now"),
    ],
)
def test_another_cache_is_refused_by_what_differs_and_replaced_on_request(tmp_path, changes, named):
    folder = tmp_path / "cache"
    before = write(folder).header
    with pytest.raises(CacheError, match=f"cache: holds another cache:\n  {named}"):
        write(folder, **changes)
    assert DistributionCache.open(folder).header == before
    after = write(folder, rebuild=True, **changes).header
    assert after != before
    verify(DistributionCache.open(folder))


def test_a_model_that_moved_is_the_same_model(tmp_path):
    write(tmp_path / "cache")
    before = times(tmp_path / "cache")
    write(tmp_path / "cache", model="/elsewhere/tiny")
    assert times(tmp_path / "cache") == before


def test_other_texts_are_named(tmp_path):
    cache = write(tmp_path / "cache")
    refuse_other_texts(cache, TEXTS, "train.jsonl")
    with pytest.raises(
        CacheError, match=r"text 3 is another one than that of train.jsonl, which begins 'fore"
    ):
        refuse_other_texts(cache, [*TEXTS[:3], "fore", TEXTS[4]], "train.jsonl")
    with pytest.raises(
        CacheError, match=r"expected the 6 texts of train.jsonl, found 5, of which the first 5 agree"
    ):
        refuse_other_texts(cache, [*TEXTS, "six"], "train.jsonl")
    with pytest.raises(CacheError, match="expected the 2 texts of"):
        refuse_other_texts(cache, TEXTS[:2], "train.jsonl")


def test_what_is_no_cache_is_said_to_be_none(tmp_path):
    with pytest.raises(CacheError, match=r"expected a cache of distributions, found nothing; make one with"):
        DistributionCache.open(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CacheError, match=r"found a folder without header\.json"):
        DistributionCache.open(tmp_path)
    with pytest.raises(RunFolderError, match=r"expected a new or empty folder, .* found \['notes.txt'\]"):
        write(tmp_path, rebuild=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(format=2), "expected format 1, found 2; use the version of transfuse"),
        (lambda tree: tree.pop("k"), r"header\.json: k: Field required"),
        (lambda tree: tree.update(k=9), "its numbers contradict each other, so it was altered"),
        (lambda tree: tree["shards"].pop(), "its numbers contradict each other"),
        (lambda tree: tree.update(value_bits=3), "expected 8 to 16 bits a value, or 32; got 3"),
    ],
)
def test_an_altered_header_is_refused(tmp_path, change, message):
    write(tmp_path / "cache")
    path = tmp_path / "cache" / "header.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(CacheError, match=message):
        DistributionCache.open(tmp_path / "cache")
    path.write_text("{")
    with pytest.raises(CacheError, match=r"header\.json: cannot be read"):
        DistributionCache.open(tmp_path / "cache")


def test_an_unreadable_plan_is_refused_and_replaced_on_request(tmp_path):
    folder = tmp_path / "cache"
    write(folder)
    (folder / "plan.json").write_text("{")
    with pytest.raises(
        CacheError, match=r"plan\.json: cannot be read, so whose cache this is cannot be told"
    ):
        write(folder)
    verify(write(folder, rebuild=True))


def test_a_disk_that_is_too_small_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(
        RunFolderError, match=r"expected 0 MiB of free space for 59 tokens of \d+ bytes, got 0; free"
    ):
        write(tmp_path / "cache")


def test_a_full_disk_leaves_no_half_shard(tmp_path, monkeypatch):
    def fail(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(RunFolderError, match="the disk is full; free space or choose another folder"):
        write(tmp_path / "cache")
    assert times(tmp_path / "cache") == {}


def test_two_writers_at_once_are_refused(tmp_path):
    with (
        open_cache_writer(tmp_path / "cache", made_plan(), [59]),
        pytest.raises(RunFolderError, match="another transfuse process is writing this cache"),
    ):
        write(tmp_path / "cache")
