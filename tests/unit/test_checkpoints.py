"""Checkpoints: exact to the bit, whole or absent, never half of another."""

import json

import pytest
import torch
from torch import nn

from transfuse.errors import RunFolderError, TrainingError
from transfuse.train import checkpoints
from transfuse.train.checkpoints import load_checkpoint, save_checkpoint

PROGRESS = {"n_tokens": 12, "seconds": 0.1 + 0.2, "curve": [{"step": 1, "loss": 1 / 3}]}


def small_model(seed: int, width: int = 4) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
    model[0].bias.requires_grad_(False)
    return model


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)


def do_steps(model: nn.Module, optimizer: torch.optim.Optimizer, n_steps: int) -> None:
    for step in range(n_steps):
        model(torch.full((1, 3), float(step + 1))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.fixture
def trained(tmp_path):
    model = small_model(0)
    optimizer = optimizer_of(model)
    do_steps(model, optimizer, 3)
    save_checkpoint(tmp_path / "checkpoint", model, optimizer, PROGRESS)
    return tmp_path / "checkpoint", model, optimizer


def test_a_checkpoint_continues_to_the_same_bits(trained):
    folder, model, optimizer = trained
    again = small_model(0)
    optimizer_again = optimizer_of(again)
    assert load_checkpoint(folder, again, optimizer_again) == PROGRESS
    for state, expected in zip(optimizer_again.state.values(), optimizer.state.values(), strict=True):
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in state)
    do_steps(model, optimizer, 2)
    do_steps(again, optimizer_again, 2)
    assert all(torch.equal(weight, weights(model)[name]) for name, weight in weights(again).items())


def test_only_trained_weights_are_touched(trained):
    folder, model, _ = trained
    other = small_model(1)
    before = weights(other)
    load_checkpoint(folder, other, optimizer_of(other))
    assert torch.equal(other[0].bias, before["0.bias"])
    assert not torch.equal(other[0].weight, before["0.weight"])
    assert torch.equal(other[0].weight, model[0].weight)


def test_no_pickle_is_written(trained):
    folder, _, _ = trained
    assert sorted(file.name for file in folder.iterdir()) == [
        "optimizer.safetensors",
        "progress.json",
        "weights.safetensors",
    ]


def test_no_checkpoint_is_none(tmp_path):
    model = small_model(0)
    before = weights(model)
    assert load_checkpoint(tmp_path / "nowhere", model, optimizer_of(model)) is None
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "progress.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_a_damaged_file_is_named(trained, name, damage):
    folder, _, _ = trained
    file = folder / name
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "noise": b"\xff" * len(whole)}[damage])
    model = small_model(1)
    with pytest.raises(TrainingError, match=r"checkpoint is damaged.*delete the folder") as caught:
        load_checkpoint(folder, model, optimizer_of(model))
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
def test_a_missing_file_is_damage(trained, name):
    folder, _, _ = trained
    (folder / name).unlink()
    model = small_model(1)
    with pytest.raises(TrainingError, match="checkpoint is damaged"):
        load_checkpoint(folder, model, optimizer_of(model))


def test_a_checkpoint_of_another_model_is_refused(trained):
    folder, _, _ = trained
    wider = small_model(0, width=5)
    with pytest.raises(TrainingError, match="or of another model"):
        load_checkpoint(folder, wider, optimizer_of(wider))
    deeper = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2))
    with pytest.raises(TrainingError, match="or of another model"):
        load_checkpoint(folder, deeper, optimizer_of(deeper))


def test_a_later_checkpoint_replaces_the_earlier(trained):
    folder, model, optimizer = trained
    do_steps(model, optimizer, 1)
    save_checkpoint(folder, model, optimizer, {"n_tokens": 13})
    again = small_model(1)
    assert load_checkpoint(folder, again, optimizer_of(again)) == {"n_tokens": 13}
    assert torch.equal(again[1].weight, model[1].weight)
    assert [file.name for file in folder.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("n_written", [0, 1])
def test_an_interrupted_write_keeps_the_earlier_checkpoint(trained, monkeypatch, fault, n_written):
    folder, model, optimizer = trained
    earlier = weights(model)
    do_steps(model, optimizer, 1)
    real, calls = checkpoints.save_file, []

    def stops(tensors, path):
        calls.append(path)
        if len(calls) > n_written:
            raise fault
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", stops)
    with pytest.raises(RunFolderError if isinstance(fault, OSError) else KeyboardInterrupt):
        save_checkpoint(folder, model, optimizer, {"n_tokens": 13})
    again = small_model(1)
    assert load_checkpoint(folder, again, optimizer_of(again)) == PROGRESS
    assert torch.equal(again[1].weight, earlier["1.weight"])
    assert [file.name for file in folder.parent.iterdir()] == ["checkpoint"]


def test_progress_is_json(trained):
    folder, _, _ = trained
    assert json.loads((folder / "progress.json").read_text(encoding="utf-8")) == PROGRESS
