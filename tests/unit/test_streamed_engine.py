"""The engine over files: continued where it was stopped, and clear about what stops it."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from transfuse.errors import DataError, ModelError, RunFolderError, TrainingError
from transfuse.train.batches import TrainingRow
from transfuse.transfer import streamed_vocabulary
from transfuse.transfer.sensitivity import LayerScores, ModelNames, SensitivitySummary
from transfuse.transfer.spill import Spill
from transfuse.transfer.streamed_engine import streamed_sensitivity

NAMES = ModelNames("model.layers", "model.embed_tokens", "lm_head")
ROWS = [TrainingRow([1, 2, 3, 4], 2), TrainingRow([5, 6, 7], 1), TrainingRow([9, 8, 7, 6, 5, 4], 4)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A random Llama of three layers. Shared: do not write into it."""
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(saved, tmp_path_factory):
    """Scores and summary of a run that nothing stopped."""
    kept = Kept()
    return kept.scores, run(saved, tmp_path_factory.mktemp("work"), kept)


class StopError(Exception):
    """What ends a run from outside."""


class Kept:
    """Keeps scores; ends the run at a layer, if given one."""

    def __init__(self, stop_at: int | str | None = "never") -> None:
        self.stop_at, self.scores, self.order = stop_at, {}, []

    def __call__(self, given: LayerScores) -> None:
        self.order.append(given.layer)
        if given.layer == self.stop_at:
            raise StopError
        self.scores |= {(given.layer, name): score.clone() for name, score in given.scores.items()}


def run(folder, work, kept=None, rows=ROWS, **settings) -> SensitivitySummary:
    return streamed_sensitivity(
        folder, rows, kept or Kept(), names=NAMES, work=work, max_tokens_per_pass=8, **settings
    )


@pytest.mark.parametrize("stop_at", [2, 0, None])
def test_a_run_stopped_at_a_layer_goes_on_from_there(saved, whole, tmp_path, stop_at):
    (scores, expected), first, rest = whole, Kept(stop_at), Kept()
    with pytest.raises(StopError):
        run(saved, tmp_path / "work", first)
    summary = run(saved, tmp_path / "work", rest)
    layers = [2, 1, 0, None]
    assert first.order == layers[: layers.index(stop_at) + 1]
    assert rest.order == layers[layers.index(stop_at) :]
    for name, score in (first.scores | rest.scores).items():
        torch.testing.assert_close(score, scores[name], rtol=0, atol=0)
    assert summary.losses == expected.losses
    assert not list((tmp_path / "work").glob("*.spill"))


def test_a_run_stopped_while_going_forward_goes_on_from_there(saved, tmp_path):
    told: list[tuple[int, int, str]] = []

    def stop(*numbers) -> None:
        told.append(numbers)
        if len(told) == 2:
            raise StopError

    with pytest.raises(StopError):
        run(saved, tmp_path, on_progress=stop)
    rest = Kept()
    run(saved, tmp_path, rest, on_progress=stop)
    assert told[:3] == [(1, 8, "forward"), (2, 8, "forward"), (3, 8, "forward")]
    assert told[3:] == [
        (4, 8, "head"),
        *((n, 8, "backward") for n in (5, 6, 7)),
        (8, 8, "embedding and head"),
    ]
    assert rest.order == [2, 1, 0, None]


def test_a_finished_run_is_not_done_again_but_other_settings_are(saved, tmp_path):
    first = run(saved, tmp_path)
    again = Kept()
    assert run(saved, tmp_path, again).losses == first.losses
    assert again.order == []
    for settings in ({"rows": ROWS[:2]}, {"key": "rank 8"}):
        other = Kept()
        run(saved, tmp_path, other, **settings)
        assert other.order == [2, 1, 0, None]


def test_a_lost_file_of_a_stopped_run_starts_it_afresh(saved, tmp_path):
    with pytest.raises(StopError):
        run(saved, tmp_path, Kept(1))
    (tmp_path / "inputs-0000.spill").unlink()
    rest = Kept()
    run(saved, tmp_path, rest)
    assert rest.order == [2, 1, 0, None]


def test_samples_with_long_answers_go_through_the_head_alone(saved, whole, tmp_path, monkeypatch):
    alone = Kept()
    monkeypatch.setattr(streamed_vocabulary, "_LOGITS_BYTES", 1)
    run(saved, tmp_path, alone)
    for name, score in whole[0].items():
        torch.testing.assert_close(alone.scores[name], score, rtol=1e-4, atol=1e-9)


def test_too_long_samples_are_cut_and_told(saved, tmp_path):
    rows = [*ROWS, TrainingRow(list(range(1, 11)), 7), TrainingRow(list(range(10)), 1)]
    summary = run(saved, tmp_path, rows=rows)
    assert (summary.n_samples, summary.n_cut, len(summary.losses)) == (4, 1, 4)
    assert [each.what for each in summary.dropped] == ["sample 5"]


def test_a_full_disk_is_told_before_anything_is_computed(saved, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    kept = Kept()
    with pytest.raises(RunFolderError, match=r"expected room for \d+ bytes .*got 100 bytes"):
        run(saved, tmp_path / "work", kept)
    assert kept.order == []


def test_weights_that_are_not_finite_name_the_sample(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.embed_tokens.weight"][6] = float("nan")
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match="sample 2: the teacher's loss is nan"):
        run(tmp_path / "model", tmp_path / "work", rows=ROWS[:2])


def test_an_infinite_gradient_names_parameter_and_sample(saved, tmp_path):
    with pytest.raises(StopError):
        run(saved, tmp_path, Kept(2))  # the gradient above the top layer is on disk
    spill = Spill(
        tmp_path,
        (tmp_path / "key.note.json").read_text().strip(' "\n'),
        [(2, 4, 8), (1, 6, 8)],
        torch.float32,
    )
    before = [part.clone() for part in spill.read("gradient-0003")]
    with spill.writing("gradient-0003") as parts:
        for part, value in zip(parts, before, strict=True):
            part.copy_(value)
        parts[1][0, 4, 0] = float("inf")
    with pytest.raises(TrainingError, match=r"model\.layers\.2\..*\.weight: the gradient of sample 3 is NaN"):
        run(saved, tmp_path)


def test_no_samples_and_no_model_are_refused(saved, tmp_path):
    with pytest.raises(DataError, match="at least one sample"):
        run(saved, tmp_path / "work", rows=[])
    with pytest.raises(ModelError, match=r"config\.json"):
        run(tmp_path, tmp_path / "work")
    assert not (tmp_path / "work").exists()
