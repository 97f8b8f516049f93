"""`transfuse merge` with several models, from the command line."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from saved_cards import read_card

METHODS = ("linear", "slerp", "ties", "dare_linear", "dare_ties", "sce", "model_stock")


@pytest.fixture(scope="module")
def folders(make_model_folder: Callable) -> list[Path]:
    """Two models and their base."""
    return [make_model_folder(f"merge-{n}", seed=n) for n in range(3)]


@pytest.fixture(scope="module")
def pair(folders: list[Path]) -> list[object]:
    return ["merge", "--model", folders[0], "--model", folders[1]]


@pytest.mark.parametrize("method", METHODS)
def test_merge_writes_a_model_that_answers(
    method: str, pair: list[object], folders: list[Path], transfuse: Callable, tmp_path: Path
):
    out = tmp_path / "merged"
    base = [] if method in ("linear", "slerp") else ["--base", folders[2]]
    done = transfuse(*pair, "--method", method, *base, "--out", out)
    assert done.code == 0, done.err
    assert done.out == f"Model written to {out}\n"
    told, text = read_card(out, folders[0].parent)
    assert "merge" in told["tags"]
    assert "`merge-0` (local folder), `merge-1` (local folder)" in text
    answer = transfuse("ask", "--model", out, "--max-new-tokens", "4", "--precision", "float32", "Hi")
    assert answer.code == 0, answer.err


def test_weights_and_settings_of_the_method(
    pair: list[object], folders: list[Path], transfuse: Callable, tmp_path: Path
):
    weighted = transfuse(
        *pair, "--weight", "3", "--weight", "1", "--set", "dtype=bfloat16", "--out", tmp_path / "a"
    )
    assert weighted.code == 0, weighted.err
    merged, *models = (load_file(folder / "model.safetensors") for folder in (tmp_path / "a", *folders))
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (0.75 * models[0][name] + 0.25 * models[1][name]).bfloat16())
    ties = [*pair, "--method", "ties", "--base", folders[2]]
    for number, density in enumerate(("0.2", "1")):
        assert transfuse(*ties, "--set", f"density={density}", "--out", tmp_path / f"t{number}").code == 0
    sparse, dense = (load_file(tmp_path / f"t{n}/model.safetensors") for n in range(2))
    name = "model.layers.0.mlp.up_proj.weight"
    moved = [int((each[name] != models[2][name]).sum()) for each in (sparse, dense)]
    assert 0.2 * models[2][name].numel() <= moved[0] <= 0.4 * models[2][name].numel()
    assert moved[1] == models[2][name].numel()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--method", "tise"],
            "--method 'tise': expected one of linear, slerp, ties, dare_linear, dare_ties, sce, "
            "model_stock. Did you mean 'ties'?",
        ),
        (
            ["--method", "ties"],
            "merge: ties merges what the models learned since a common base; name it with --base, "
            "or choose linear or slerp.",
        ),
        (["--base", "x"], "--base: linear does not ask what the models started from; leave it out."),
        (
            ["--method", "sce", "--weight", "1", "--weight", "2"],
            "--weight: sce finds itself what each model counts; leave it out.",
        ),
        (["--weight", "1"], "merge: expected a weight for each of the 2 models, got 1: [1.0]."),
        (
            ["--weight", "-1", "--weight", "2"],
            "merge by linear: weights.0: Input should be greater than or equal to 0, got -1.0",
        ),
        (
            ["--set", "desity=0.5", "--method", "dare_ties", "--base", "x"],
            "merge by dare_ties: desity: unknown key; did you mean 'density'?",
        ),
        (
            ["--set", "density=0", "--method", "ties", "--base", "x"],
            "merge by ties: density: Input should be greater than 0, got 0",
        ),
        (["--set", "method=ties"], "merge by linear: method: Input should be 'linear', got 'ties'"),
        (
            ["--trust-remote-code"],
            "--trust-remote-code: merging several models runs no code of theirs; leave it out.",
        ),
        (["--model", "no/such/model"], "model 'no/such/model': expected a bundled name"),
        (
            ["--adapter", "somewhere"],
            "transfuse merge: expected one --model to fold --adapter into, got 2; fold each "
            "adapter into its model first, then merge the folders.",
        ),
    ],
)
def test_refusals(more: list[str], message: str, pair: list[object], transfuse: Callable, tmp_path: Path):
    done = transfuse(*pair, *more, "--out", tmp_path / "out")
    assert done.code == 1
    assert done.err.startswith(f"Error: {message}")
    assert not list(tmp_path.iterdir())


def test_one_model_is_folded_or_merged_with_another(folders: list[Path], transfuse: Callable, tmp_path: Path):
    alone = transfuse("merge", "--model", folders[0], "--out", tmp_path / "out")
    assert alone.code == 1
    assert alone.err == (
        "Error: transfuse merge: expected --adapter to fold into the model, or a second --model to merge it with.\n"
    )
    line = ["merge", "--model", folders[0], "--adapter", "somewhere", "--out", tmp_path / "out"]
    for more in (["--method", "linear"], ["--weight", "1"], ["--base", "x"], ["--set", "density=1"]):
        done = transfuse(*line, *more)
        assert done.code == 1
        assert done.err == (
            f"Error: {more[0]}: belongs to merging several models; leave it out beside --adapter.\n"
        )


def test_a_folder_that_is_there_is_replaced_only_when_told(
    pair: list[object], folders: list[Path], transfuse: Callable, tmp_path: Path
):
    out = Path(shutil.copytree(folders[2], tmp_path / "out"))
    before = (out / "model.safetensors").read_bytes()
    refused = transfuse(*pair, "--out", out)
    assert refused.err == f"Error: {out}: is there already; choose another --out, or give --overwrite.\n"
    assert (out / "model.safetensors").read_bytes() == before
    own = transfuse("merge", "--model", folders[0], "--model", out, "--out", out, "--overwrite")
    assert own.err == f"Error: {out}: is one of the models; choose another --out.\n"
    done = transfuse(*pair, "--out", out, "--overwrite")
    assert done.code == 0, done.err
    assert (out / "model.safetensors").read_bytes() != before
