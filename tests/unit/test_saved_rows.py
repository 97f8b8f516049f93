"""Saved rows come back to the bit, or not at all."""

import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from transfuse.errors import TrainingError
from transfuse.train.batches import TrainingRow
from transfuse.train.saved_rows import load_rows, save_rows
from transfuse.train.soft_targets import ChunkTargets, SoftTargets
from transfuse.types import Dropped

DROPPED = [Dropped("pair", "Wer gewann „den Pokal“?", "the teacher's answer is empty")]


def soft(n_learned: int, seed: int, kept: int = 3, **settings: object) -> SoftTargets:
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(0, 60_000, (n_learned, kept), generator=generator, dtype=torch.int32)
    return SoftTargets(token_ids, torch.randn(n_learned, kept, generator=generator), **settings)


ROWS = [
    TrainingRow([5, 6, 70_000, 8], 2, soft=soft(2, 0)),
    TrainingRow([1, 2, 3, 4, 5], 1, 2, 0.1),
    TrainingRow([9, 9, 9], 1, 1, 1 / 3, soft(2, 1, temperature=1.3, hard_weight=0.7)),
]


UNTAUGHT = [
    TrainingRow([5, 6, 7, 8], 2, soft=soft(2, 0, divergence="jsd", jsd_beta=0.1)),
    TrainingRow([5, 6, 8], 1, soft=soft(2, 1, divergence="jsd", jsd_beta=0.1)),
]
UNTAUGHT[1] = UNTAUGHT[1]._replace(soft=UNTAUGHT[1].soft._replace(is_taught=torch.tensor([True, False])))


def same(one: TrainingRow, other: TrainingRow) -> bool:
    if one[:4] != other[:4] or (one.soft is None) != (other.soft is None):
        return False
    return one.soft is None or (
        one.soft[2:5] == other.soft[2:5]
        and one.soft.jsd_beta == other.soft.jsd_beta
        and torch.equal(taught_of(one.soft), taught_of(other.soft))
        and all(
            a.dtype == b.dtype and torch.equal(a, b)
            for a, b in zip(one.soft[:2], other.soft[:2], strict=True)
        )
    )


def taught_of(targets: SoftTargets) -> torch.Tensor:
    if targets.is_taught is None:
        return torch.ones(len(targets.log_probs), dtype=torch.bool)
    return targets.is_taught


@pytest.mark.parametrize(
    "rows", [ROWS, ROWS[1:2], [], UNTAUGHT], ids=["mixed", "plain", "none", "partly taught"]
)
def test_rows_come_back_to_the_bit(tmp_path, rows):
    save_rows(tmp_path / "teacher" / "rows.safetensors", rows, DROPPED)
    again, dropped = load_rows(tmp_path / "teacher" / "rows.safetensors")
    assert dropped == DROPPED
    assert len(again) == len(rows)
    assert all(map(same, again, rows))


def test_a_row_does_not_carry_the_targets_of_all(tmp_path):
    rows = [TrainingRow([1, 2], 1, soft=soft(1, n)) for n in range(200)]
    save_rows(tmp_path / "rows.safetensors", rows)
    (first, *_), _ = load_rows(tmp_path / "rows.safetensors")
    assert len(pickle.dumps(first)) < 2 * len(pickle.dumps(rows[0]))  # as it is sent to other processes


def test_rows_of_the_first_format_are_read(tmp_path):
    path = tmp_path / "rows.safetensors"
    save_rows(path, ROWS, DROPPED)
    with safe_open(path, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        header = opened.metadata()
    kept = {"format": "transfuse-rows-1", "dropped": header["dropped"]}
    save_file(tensors, path, metadata=kept)
    assert all(map(same, load_rows(path)[0], ROWS))


def test_targets_of_chunks_are_not_written(tmp_path):
    row = TrainingRow([1, 2, 3], 1, soft=ChunkTargets(*torch.tensor([[0], [2], [-1]]).unbind()))
    with pytest.raises(TrainingError, match="got those of chunks"):
        save_rows(tmp_path / "rows.safetensors", [row])


def test_uneven_targets_are_not_written(tmp_path):
    with pytest.raises(TrainingError, match="same top_k"):
        save_rows(tmp_path / "rows.safetensors", [ROWS[0], ROWS[2]._replace(soft=soft(2, 0, kept=4))])
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_rows_is_refused(tmp_path):
    path = tmp_path / "rows.safetensors"
    with pytest.raises(TrainingError, match=r"rows\.safetensors: expected rows.*delete the file"):
        load_rows(path)
    save_rows(path, ROWS)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(TrainingError, match=r"rows\.safetensors: expected rows"):
        load_rows(path)
    save_file({"weights": torch.zeros(2)}, path)
    with pytest.raises(TrainingError, match="its format is None"):
        load_rows(path)
