"""Writing a cache of distributions, shard by shard, so that a killed process loses at most the shard under way."""

import fcntl
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import final

import numpy as np

from transfuse.errors import CacheError, RunFolderError
from transfuse.io.distribution_cache import DistributionCache, TextDistributions
from transfuse.io.distribution_header import (
    HEADER_FILE,
    PLAN_FILE,
    TEXTS_FILE,
    CacheHeader,
    CachePlan,
    ShardInfo,
    again,
    codec_of,
    differences,
    read_json_model,
    shard_name,
    shard_state,
)
from transfuse.io.files import atomic_file, file_sha256, write_errors, write_json
from transfuse.io.jsonl import write_jsonl
from transfuse.tensors.packed_records import LONG, TokenRecords, encode_records

_N_SHOWN = 8
_RESERVE_BYTES = 1 << 20
"""For the small files beside the shards."""


def shard_ranges(n_tokens: Sequence[int], shard_tokens: int) -> list[range]:
    """Which texts go into which shard.

    Args:
        n_tokens: of each text.
        shard_tokens: a shard is full before it has more; a text longer than that has one for itself.

    Returns:
        Ranges that cover all texts in order.
    """
    bounds, held = [0], 0
    for number, n in enumerate(n_tokens):
        if held and held + n > shard_tokens:
            bounds.append(number)
            held = 0
        held += n
    if len(n_tokens):
        bounds.append(len(n_tokens))
    return [range(start, stop) for start, stop in pairwise(bounds)]


@contextmanager
def open_cache_writer(
    folder: Path, plan: CachePlan, n_tokens: Sequence[int], *, rebuild: bool = False
) -> Iterator["CacheWriter"]:
    """Begin a cache, or go on with it, and hold its folder until the block ends.

    Args:
        folder: a new or empty one, or one with a cache of the same plan.
        plan: what the cache is to be.
        n_tokens: of each text.
        rebuild: whether a cache of another plan may be replaced, and damaged shards of this one written anew; its
            whole shards are kept.

    Yields:
        The writer, which knows what is missing.

    Raises:
        CacheError: another cache is there, or a damaged one, and `rebuild` is false.
        RunFolderError: other files are there, another process writes there, the disk is too small, or the place
            cannot be written.
    """
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise RunFolderError(
                f"{folder}: another transfuse process is writing this cache; wait for it, or choose another folder."
            ) from err
        for left in folder.glob(".*.*"):  # half written by a killed process
            left.unlink(missing_ok=True)
        _settle_plan(folder, plan, rebuild=rebuild)
        writer = CacheWriter(folder, plan, n_tokens)
        writer.drop_damaged(rebuild=rebuild)
        writer.refuse_small_disk()
        yield writer


@final
class CacheWriter:
    """An unfinished cache; made by `open_cache_writer`."""

    def __init__(self, folder: Path, plan: CachePlan, n_tokens: Sequence[int]) -> None:
        self.folder, self.plan = folder, plan
        self.ranges = shard_ranges(n_tokens, plan.shard_tokens)
        """The texts of each shard."""
        self._n_tokens = [sum(n_tokens[n] for n in texts) for texts in self.ranges]
        self._done = {n: mark for n in range(len(self.ranges)) if (mark := self._mark(n)) is not None}

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards that are still to be written."""
        return [number for number in range(len(self.ranges)) if number not in self._done]

    @property
    def n_tokens_done(self) -> int:
        """Tokens in finished shards."""
        return sum(self._n_tokens[number] for number in self._done)

    def write_shard(self, number: int, texts: Sequence[TextDistributions], digests: Sequence[bytes]) -> None:
        """Write one shard, whole or not at all, and then the mark that it is done.

        Args:
            number: of the shard.
            texts: those of its range, in order.
            digests: SHA-256 of each of them.

        Raises:
            RunFolderError: the place cannot be written, or the disk is full.
        """
        data, n_long = _shard_bytes(self.plan, texts, digests)
        path = self.folder / shard_name(number)
        with atomic_file(path) as temporary:
            temporary.write_bytes(data)
        mark = ShardInfo(
            file=path.name,
            n_texts=len(texts),
            n_tokens=sum(len(text.token_ids) for text in texts),
            n_long=n_long,
            n_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        write_json(path.with_suffix(".json"), mark.model_dump())
        self._done[number] = mark

    def finish(self, texts: Sequence[str] | None = None) -> DistributionCache:
        """Write the header, after which the cache is complete.

        Args:
            texts: to keep a copy of; None keeps none, but leaves one that is there.

        Returns:
            The finished cache.

        Raises:
            RunFolderError: the place cannot be written, or the disk is full.
        """
        if texts is None and (self.folder / HEADER_FILE).is_file():
            return DistributionCache.open(self.folder)
        texts_sha256 = None
        if texts is not None:
            write_jsonl(self.folder / TEXTS_FILE, ({"text": text} for text in texts))
            texts_sha256 = file_sha256(self.folder / TEXTS_FILE)
        header = CacheHeader(
            **self.plan.model_dump(),
            codec=codec_of(self.plan.layout),
            shards=[self._done[number] for number in range(len(self.ranges))],
            texts_sha256=texts_sha256,
        )
        write_json(self.folder / HEADER_FILE, header.model_dump())
        return DistributionCache.open(self.folder)

    def drop_damaged(self, *, rebuild: bool) -> None:
        """Refuse shards that are not as their marks say, or remove them so that they are written anew."""
        states = {n: shard_state(self.folder, mark, verify=rebuild) for n, mark in self._done.items()}
        damaged = {number: state for number, state in states.items() if state != "whole"}
        if damaged and not rebuild:
            named = ", ".join(f"{shard_name(number)} is {state}" for number, state in damaged.items())
            raise CacheError(f"{self.folder}: {named}; {again()}")
        with write_errors(self.folder):
            if self.missing or damaged:
                (self.folder / HEADER_FILE).unlink(missing_ok=True)
            for number in damaged:
                path = self.folder / shard_name(number)
                path.with_suffix(".json").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                del self._done[number]

    def refuse_small_disk(self) -> None:
        """Say before hours of work that the shards will not fit."""
        size = self.plan.layout.record_bytes
        needed = sum(self._n_tokens[number] * size for number in self.missing)
        free = shutil.disk_usage(self.folder).free
        if needed and needed + _RESERVE_BYTES > free:
            raise RunFolderError(
                f"{self.folder}: expected {needed / 2**20:,.0f} MiB of free space for "
                f"{self.plan.n_tokens:,} tokens of {size} bytes, got {free / 2**20:,.0f}; free space, choose another "
                f"folder, or keep fewer tokens (k)."
            )

    def _mark(self, number: int) -> ShardInfo | None:
        """What is known of a finished shard; None where it is not finished."""
        path = self.folder / shard_name(number)
        mark: ShardInfo | None = read_json_model(path.with_suffix(".json"), ShardInfo)
        if mark is None or mark.file != path.name:
            return None
        counts = (len(self.ranges[number]), self._n_tokens[number])
        return mark if (mark.n_texts, mark.n_tokens) == counts else None


def _settle_plan(folder: Path, plan: CachePlan, *, rebuild: bool) -> None:
    """Make the folder one of this plan."""
    own = [HEADER_FILE, PLAN_FILE, TEXTS_FILE, *(path.name for path in folder.glob("shard-*.*"))]
    entries = {path.name for path in folder.iterdir()} - {".lock"}
    strangers = sorted(entries - set(own))
    if strangers or (entries and not entries & {HEADER_FILE, PLAN_FILE}):
        raise RunFolderError(
            f"{folder}: expected a new or empty folder, or a cache of distributions; found "
            f"{(strangers or sorted(entries))[:_N_SHOWN]}. Choose another folder."
        )
    there: CachePlan | None = read_json_model(folder / PLAN_FILE, CachePlan)
    if entries and not rebuild:
        if there is None:
            raise CacheError(
                f"{folder / PLAN_FILE}: cannot be read, so whose cache this is cannot be told; give --rebuild to "
                f"write it anew, or choose another folder."
            )
        differing = list(differences(there, plan))
        if differing:
            shown = "".join(f"\n  {line}" for line in differing)
            raise CacheError(
                f"{folder}: holds another cache:{shown}\nChoose another folder, or give --rebuild to replace it."
            )
    if there is None or any(differences(there, plan)):
        with write_errors(folder):
            for name in own:  # the header first: without it the rest is no finished cache
                (folder / name).unlink(missing_ok=True)
        write_json(folder / PLAN_FILE, plan.model_dump())


def _shard_bytes(
    plan: CachePlan, texts: Sequence[TextDistributions], digests: Sequence[bytes]
) -> tuple[bytes, int]:
    """A shard's contents, and how many of its tokens are long."""
    lengths = np.concatenate([np.diff(text.ends, prepend=0) for text in texts])
    joined = [np.concatenate(parts) for parts in zip(*texts, strict=True)]
    records = encode_records(plan.layout, TokenRecords(joined[0], lengths, *joined[2:]))
    long_rows = np.flatnonzero(lengths >= LONG)
    counts = np.array([len(text.token_ids) for text in texts])
    tables = np.concatenate([counts, long_rows, lengths[long_rows]]).astype("<u4")
    return records.tobytes() + b"".join(digests) + tables.tobytes(), len(long_rows)
