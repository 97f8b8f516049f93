"""Fused targets come back from disk as they were, one row at a time."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.errors import DataError, RunFolderError
from transfuse.fuse.fusion_settings import FusionSettings
from transfuse.fuse.target_files import HEADER_FILE, TargetRows, write_targets
from transfuse.fuse.targets import ChunkTargets, FusedPiece
from transfuse.tensors.fusion_rules import UNTAUGHT, FusedStates
from transfuse.train import soft_targets

HALF = 2.0**-11
"""Half-precision numbers are that close, relatively."""


def made_piece(rng: np.random.Generator, n: int, n_vocab: int, kept: int) -> FusedPiece:
    probs = -np.sort(-rng.dirichlet(np.full(kept + 1, 0.3), size=n), axis=1)[:, :kept]
    is_taught = rng.random(n) < 0.7
    is_taught[-1:] = False
    with np.errstate(divide="ignore"):
        nats = np.where(is_taught[:, None], np.log(probs), -np.inf).astype(np.float32)
    return FusedPiece(
        rng.integers(n_vocab, size=n).astype(np.int32),
        FusedStates(
            rng.integers(n_vocab, size=(n, kept)).astype(np.int32),
            nats,
            is_taught,
            np.where(is_taught, rng.integers(2, size=n), UNTAUGHT),
        ),
        None,
    )


def chunk_piece(starts: list[int], ends: list[int], nats: list[float], n: int) -> FusedPiece:
    silent = FusedStates(
        np.zeros((n, 1), dtype=np.int32),
        np.full((n, 1), -np.inf, dtype=np.float32),
        np.zeros(n, dtype=bool),
        np.full(n, UNTAUGHT),
    )
    chunks = ChunkTargets(np.array(starts), np.array(ends), np.array(nats, dtype=np.float32))
    return FusedPiece(np.arange(n, dtype=np.int32), silent, chunks)


@settings(deadline=None, max_examples=25)
@given(
    data=st.data(),
    lengths=st.lists(st.integers(0, 7), max_size=6),
    kept=st.integers(1, 5),
    n_kept=st.integers(1, 5),
    n_vocab=st.sampled_from([50, 1 << 16, (1 << 16) + 1, 262_144]),
)
def test_a_round_trip(
    data: st.DataObject,
    lengths: list[int],
    kept: int,
    n_kept: int,
    n_vocab: int,
    tmp_path_factory: pytest.TempPathFactory,
):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    pieces = [made_piece(rng, n, n_vocab, kept) for n in lengths]
    folder = tmp_path_factory.mktemp("targets") / "targets"
    how = FusionSettings(clm_weight=0.25, divergence="forward-kl")
    write_targets(folder, iter(pieces), how, n_vocab=n_vocab, n_kept=n_kept)
    rows = TargetRows(folder)
    learned = [piece for piece in pieces if len(piece.token_ids) > 1]
    assert len(rows) == len(learned)
    assert rows.lengths == [len(piece.token_ids) for piece in learned]
    width = min(kept, n_kept)
    for row, piece in zip(rows, learned, strict=True):
        assert row.token_ids == piece.token_ids.tolist()
        assert row.n_prompt == 1
        assert isinstance(row.soft, soft_targets.SoftTargets)
        assert (row.soft.hard_weight, row.soft.divergence, row.soft.temperature) == (0.25, "forward-kl", 1.0)
        # State i teaches token i + 1, so the last state has no row.
        nats = piece.states.log_probs[:-1, :width]
        assert row.soft.token_ids.shape == (len(piece.token_ids) - 1, n_kept)
        np.testing.assert_allclose(row.soft.log_probs[:, :width], nats, rtol=HALF, atol=2.0**-24)
        assert torch.all(row.soft.log_probs[:, width:] == -torch.inf)
        is_kept = nats > -np.inf
        np.testing.assert_array_equal(
            row.soft.token_ids[:, :width].numpy()[is_kept], piece.states.token_ids[:-1, :width][is_kept]
        )
        assert row.soft.is_taught is not None
        np.testing.assert_array_equal(row.soft.is_taught, piece.states.is_taught[:-1])
    counts = rows.counts(2)
    assert counts.n_tokens == sum(n - 1 for n in lengths if n)
    assert counts.n_tokens == sum(counts.by_source) + counts.n_untaught
    assert counts.by_source == [
        sum(int((piece.states.source[:-1] == n).sum()) for piece in pieces) for n in (0, 1)
    ]


def test_plain_rows_are_the_same_tokens_without_targets(tmp_path: Path):
    pieces = [made_piece(np.random.default_rng(n), 5, 50, 3) for n in range(3)]
    write_targets(tmp_path / "targets", pieces, FusionSettings(), n_vocab=50, n_kept=3)
    plain, full = TargetRows(tmp_path / "targets", is_plain=True), TargetRows(tmp_path / "targets")
    assert [row.token_ids for row in plain] == [row.token_ids for row in full]
    assert all(row.soft is None for row in plain)
    assert [len(row.token_ids) for row in plain[1:]] == [5, 5]


def test_counts_of_chosen_pieces(tmp_path: Path):
    pieces = [made_piece(np.random.default_rng(n), 4, 50, 2) for n in range(3)]
    write_targets(tmp_path / "targets", pieces, FusionSettings(), n_vocab=50, n_kept=2)
    rows = TargetRows(tmp_path / "targets")
    apart = [rows.counts(2, np.array([n])) for n in range(3)]
    assert [each.n_tokens for each in apart] == [3, 3, 3]
    assert rows.counts(2).by_source == [sum(each.by_source[n] for each in apart) for n in (0, 1)]
    assert rows.counts(2, np.array([], dtype=int)).n_tokens == 0


def test_chunks_come_back_counted_from_the_first_learned_token(tmp_path: Path):
    how = FusionSettings(divergence="chunk-likelihood", clm_weight=0.5, chunk_temperature=2.0)
    pieces = [
        chunk_piece([1, 3], [3, 4], [-1.5, 0.0], 4),
        chunk_piece([], [], [], 3),
        chunk_piece([2], [5], [-9.0], 5),
    ]
    write_targets(tmp_path / "targets", pieces, how, n_vocab=50, n_kept=1)
    rows = TargetRows(tmp_path / "targets")
    found = [row.soft for row in rows]
    assert all(isinstance(soft, soft_targets.ChunkTargets) for soft in found)
    assert [soft.starts.tolist() for soft in found] == [[0, 2], [], [1]]  # type: ignore[union-attr]
    assert [soft.ends.tolist() for soft in found] == [[2, 3], [], [4]]  # type: ignore[union-attr]
    assert [soft.log_probs.tolist() for soft in found] == [[-1.5, 0.0], [], [-9.0]]  # type: ignore[union-attr]
    assert {(soft.temperature, soft.hard_weight) for soft in found} == {(2.0, 0.5)}  # type: ignore[union-attr]
    assert rows.counts(1).by_source == [0]


def test_targets_are_mapped_from_disk_and_pieces_taken_one_at_a_time(tmp_path: Path):
    held: list[int] = []

    def pieces():
        for n in range(3):
            held.append(n)
            yield made_piece(np.random.default_rng(n), 5, 50, 2)

    write_targets(tmp_path / "targets", pieces(), FusionSettings(), n_vocab=50, n_kept=2)
    assert held == [0, 1, 2]
    rows = TargetRows(tmp_path / "targets")
    assert all(isinstance(array.base, np.memmap) for array in rows._arrays.values())
    # What is written afterwards is what a row reads: nothing was taken into memory.
    path = tmp_path / "targets" / "token_ids.bin"
    data = np.memmap(path, dtype=np.int32, mode="r+")
    data[0] = 49
    data.flush()
    assert rows[0].token_ids[0] == 49


@pytest.mark.parametrize("divergence", ["cross-entropy", "chunk-likelihood"])
def test_files_that_are_missing_cut_short_or_of_another_format_are_named(tmp_path: Path, divergence: str):
    folder = tmp_path / "targets"
    how = FusionSettings.model_validate({"divergence": divergence})
    piece = (
        made_piece(np.random.default_rng(0), 6, 50, 2)
        if divergence == "cross-entropy"
        else chunk_piece([1, 2], [2, 4], [-1.0, -2.0], 6)
    )
    write_targets(folder, [piece], how, n_vocab=50, n_kept=2)
    files = sorted(folder.glob("*.bin"))
    assert len(files) == 5
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(DataError, match=rf"{path.name}: expected {len(content)} bytes, got"):
            TargetRows(folder)
        path.unlink()
        with pytest.raises(DataError, match=rf"{path.name}: expected fused targets, got 'No such file"):
            TargetRows(folder)
        path.write_bytes(content)
    TargetRows(folder)
    header = json.loads((folder / HEADER_FILE).read_text())
    (folder / HEADER_FILE).write_text(json.dumps({**header, "format": 99}))
    with pytest.raises(DataError, match="expected fused targets of format 1, got 99"):
        TargetRows(folder)
    for content in ("{", "3"):
        (folder / HEADER_FILE).write_text(content)
        with pytest.raises(DataError, match=r"expected fused targets with targets\.json"):
            TargetRows(folder)


def test_half_written_targets_leave_nothing_and_an_earlier_set_stays(tmp_path: Path):
    folder = tmp_path / "targets"
    write_targets(
        folder,
        [made_piece(np.random.default_rng(0), 6, 50, 2)],
        FusionSettings(),
        n_vocab=50,
        n_kept=2,
    )

    def broken():
        yield made_piece(np.random.default_rng(1), 6, 50, 2)
        raise OSError(28, "No space left on device")

    with pytest.raises(RunFolderError, match="the disk is full"):
        write_targets(folder, broken(), FusionSettings(), n_vocab=50, n_kept=2)
    assert [path.name for path in tmp_path.iterdir()] == ["targets"]
    np.testing.assert_array_equal(
        TargetRows(folder)[0].token_ids, made_piece(np.random.default_rng(0), 6, 50, 2).token_ids
    )
