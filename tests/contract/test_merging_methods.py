"""Merged weights equal the papers' definitions written out entry by entry, and mergekit's where it follows them."""

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from transfuse.baselines.merging import merge_models
from transfuse.baselines.merging_settings import (
    AnyMerge,
    DareLinearMerge,
    DareTiesMerge,
    LinearMerge,
    ModelStockMerge,
    SceMerge,
    SlerpMerge,
    TiesMerge,
)

Rows = list[list[float]]
SHARES = [0.5, 0.3, 0.2]


def entries(tensor: Tensor) -> list[float]:
    return tensor.double().flatten().tolist()


def elected_mean(updates: Rows, shares: list[float], voting: list[float]) -> list[float]:
    """Per entry the weighted mean over the updates that have the sign of the sum of the votes."""
    merged = []
    for column in zip(*updates, strict=True):
        votes = sum(vote * value for vote, value in zip(voting, column, strict=True))
        sign = 1 if votes >= 0 else -1
        agreeing = [(share, value) for share, value in zip(shares, column, strict=True) if value * sign > 0]
        total = sum(share for share, _ in agreeing)
        merged.append(sum(share * value for share, value in agreeing) / total if total else 0.0)
    return merged


def plain_ties(base: list[float], models: Rows, density: float) -> list[float]:
    """Yadav et al. 2023, algorithm 1, one tensor: trim, elect, disjoint mean."""
    updates = [[value - start for value, start in zip(model, base, strict=True)] for model in models]
    for update in updates:
        order = sorted(range(len(update)), key=lambda entry, update=update: -abs(update[entry]))
        for entry in order[max(1, int(density * len(update))) :]:
            update[entry] = 0.0
    return [start + moved for start, moved in zip(base, elected_mean(updates, SHARES, SHARES), strict=True)]


def plain_sce(base: list[float], models: Rows, top_share: float) -> list[float]:
    """Yang et al. 2024, section 3.3, one tensor: select, calculate, erase."""
    updates = [[value - start for value, start in zip(model, base, strict=True)] for model in models]
    variances = [float(np.var(column)) for column in zip(*updates, strict=True)]
    order = sorted(range(len(base)), key=lambda entry: -variances[entry])
    kept = set(order[: max(1, int(top_share * sum(variance > 0 for variance in variances)))])
    updates = [[value if n in kept else 0.0 for n, value in enumerate(update)] for update in updates]
    energies = [sum(value**2 for value in update) for update in updates]
    shares = [energy / sum(energies) for energy in energies]
    merged = elected_mean(updates, shares, [1.0] * len(updates))
    return [start + moved for start, moved in zip(base, merged, strict=True)]


def plain_model_stock(base: list[float], models: Rows) -> list[float]:
    """Jang et al. 2024, equation 5, with the mean cosine over all pairs."""
    updates = [np.array(model) - np.array(base) for model in models]
    cosines = [
        float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
        for one, other in itertools.combinations(updates, 2)
    ]
    cosine = max(0.0, sum(cosines) / len(cosines))
    t = len(models) * cosine / (1 + (len(models) - 1) * cosine)
    return list(t * np.mean(models, axis=0) + (1 - t) * np.array(base))


def plain_task_arithmetic(base: list[float], models: Rows) -> list[float]:
    """Ilharco et al. 2022: what DARE is at p = 0."""
    return [
        start + sum(share * (value - start) for share, value in zip(SHARES, column, strict=True))
        for start, *column in zip(base, *models, strict=True)
    ]


def plain_slerp(models: Rows) -> list[float]:
    first, second = (np.array(model) for model in models[:2])
    t = SHARES[1] / (SHARES[0] + SHARES[1])
    angle = math.acos(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))
    return list((math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle))


PLAIN: dict[str, tuple[AnyMerge, Callable[[list[float], Rows], list[float]]]] = {
    "linear": (
        LinearMerge(weights=SHARES),
        lambda _, models: [float(np.dot(SHARES, column)) for column in zip(*models, strict=True)],
    ),
    "slerp": (SlerpMerge(weights=SHARES[:2]), lambda _, models: plain_slerp(models)),
    "ties": (TiesMerge(weights=SHARES, density=0.3), lambda base, models: plain_ties(base, models, 0.3)),
    "dare_linear": (DareLinearMerge(weights=SHARES, density=1), plain_task_arithmetic),
    "dare_ties": (
        DareTiesMerge(weights=SHARES, density=1),
        lambda base, models: plain_ties(base, models, 1.0),
    ),
    "sce": (SceMerge(top_share=0.4), lambda base, models: plain_sce(base, models, 0.4)),
    "model_stock": (ModelStockMerge(), plain_model_stock),
}


@pytest.fixture(scope="module")
def family(make_model_folder: Callable) -> tuple[Path, list[Path]]:
    """A base and three models trained from it, so to say: they share a part of what moved, a thousandth of the size."""
    base = make_model_folder("base", seed=1, tie_word_embeddings=True)
    weights = load_file(base / "model.safetensors")
    draw = torch.Generator().manual_seed(7)
    common = {name: torch.randn(tensor.shape, generator=draw) for name, tensor in weights.items()}
    models = []
    for number in range(3):
        folder = make_model_folder(f"model-{number}", seed=1, tie_word_embeddings=True)
        moved = {
            name: tensor
            + 2e-3 * common[name]
            + 1e-3 * (number + 1) * torch.randn(tensor.shape, generator=draw)
            for name, tensor in weights.items()
        }
        save_file(moved, folder / "model.safetensors", {"format": "pt"})
        models.append(folder)
    return base, models


@pytest.mark.parametrize("method", PLAIN)
def test_every_tensor_equals_the_papers_definition(
    method: str, family: tuple[Path, list[Path]], tmp_path: Path
):
    base, models = family
    settings, plain = PLAIN[method]
    merge_models(models[:2] if method == "slerp" else models, settings, tmp_path / "out", base=base)
    merged = load_file(tmp_path / "out/model.safetensors")
    start = load_file(base / "model.safetensors")
    stored = [load_file(folder / "model.safetensors") for folder in models]
    assert merged.keys() == start.keys()
    for name, tensor in merged.items():
        expected = plain(entries(start[name]), [entries(weights[name]) for weights in stored])
        torch.testing.assert_close(
            tensor.double().flatten() - start[name].double().flatten(),
            torch.tensor(expected, dtype=torch.float64) - start[name].double().flatten(),
            rtol=1e-4,
            atol=2e-6,
        )


MERGEKIT = """
import json, sys
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
for out, tree in json.loads(sys.argv[1]).items():
    run_merge(MergeConfiguration.model_validate(tree), out, MergeOptions(quiet=True, write_model_card=False))
"""


def by_mergekit(base: Path, models: list[Path]) -> dict[str, dict]:
    """What mergekit calls the same merges. DARE is compared without draws, which are each program's own."""
    weighted = [
        {"model": str(folder), "parameters": {"weight": share, "density": 1.0}}
        for folder, share in zip(models, SHARES, strict=True)
    ]
    trimmed = [{**each, "parameters": {**each["parameters"], "density": 0.3}} for each in weighted]
    plain = [{"model": str(folder)} for folder in models]
    common = {"dtype": "float32", "base_model": str(base)}
    return {
        "linear": {"merge_method": "linear", "models": weighted, "dtype": "float32"},
        "ties": {"merge_method": "ties", "models": trimmed, **common},
        "dare_linear": {"merge_method": "dare_linear", "models": weighted, **common},
        "dare_ties": {
            "merge_method": "dare_ties",
            "models": weighted,
            "parameters": {"normalize": True},
            **common,
        },
        "sce": {"merge_method": "sce", "models": plain, "parameters": {"select_topk": 0.4}, **common},
        "model_stock": {"merge_method": "model_stock", "models": plain, **common},
        "slerp": {
            "merge_method": "slerp",
            "models": plain[:2],
            "parameters": {"t": SHARES[1] / (SHARES[0] + SHARES[1])},
            "dtype": "float32",
            "base_model": str(models[0]),
        },
    }


@pytest.fixture(scope="module")
def mergekit_folder(family: tuple[Path, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All methods by mergekit, in a process of its own: its imports warn."""
    pytest.importorskip("mergekit", reason="pip install mergekit, to compare with it")
    folder = tmp_path_factory.mktemp("mergekit")
    trees = {str(folder / method): tree for method, tree in by_mergekit(*family).items()}
    subprocess.run(
        [sys.executable, "-c", MERGEKIT, json.dumps(trees)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    return folder


@pytest.mark.parametrize("method", PLAIN)
def test_every_tensor_equals_mergekits(
    method: str, family: tuple[Path, list[Path]], mergekit_folder: Path, tmp_path: Path
):
    base, models = family
    settings, _ = PLAIN[method]
    merge_models(models[:2] if method == "slerp" else models, settings, tmp_path / "out", base=base)
    ours = load_file(tmp_path / "out/model.safetensors")
    theirs = load_file(mergekit_folder / method / "model.safetensors")
    start = load_file(base / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        # mergekit goes straight where the angle is under two degrees, and counts entries of no variance differently.
        torch.testing.assert_close(tensor - start[name], theirs[name] - start[name], rtol=1e-3, atol=2e-6)
