"""Extracted layers on disk, one file each, as the sensitivity engines hand them over."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from transfuse.errors import RunFolderError
from transfuse.io.files import atomic_file, write_errors
from transfuse.tensors.low_rank import LowRank
from transfuse.transfer.coupled import Marginals, RoleSums
from transfuse.transfer.extraction import CutPart, Extracted, LayerExtraction, Variant, Wanted, extract_layer
from transfuse.transfer.sensitivity import LayerScores


@final
class Extractor:
    """Takes layers with their scores, and leaves one file of factors each."""

    def __init__(self, wanted: Wanted, folder: Path) -> None:
        self._wanted, self._folder = wanted, folder

    def __call__(self, given: LayerScores) -> None:
        """Extract and save one layer; a layer given again is written again.

        Args:
            given: weights and scores by the teacher's module names.

        Raises:
            RunFolderError: the file cannot be written.
        """
        save_extraction(extract_layer(given, self._wanted), self._folder)


def save_extraction(extraction: LayerExtraction, folder: Path) -> None:
    """Write one layer's extraction, whole or not at all.

    Args:
        extraction: of one layer.
        folder: where the file is written.

    Raises:
        RunFolderError: the file cannot be written, or the disk is full.
    """
    tensors: dict[str, Tensor] = {}
    told: dict[str, Any] = {"layer": extraction.layer, "scores": extraction.scores, "variants": {}}
    for name, variant in extraction.variants.items():
        told["variants"][name] = {
            "shares": {role: part.score_share for role, part in variant.parts.items()},
            "energies": {module: each.energy for module, each in variant.modules.items()},
            "errors": {module: each.factors.error for module, each in variant.modules.items()},
        }
        for role, part in variant.parts.items():
            tensors[f"{name}|rows|{role}"], tensors[f"{name}|columns|{role}"] = part.rows, part.columns
        for module, (factors, _) in variant.modules.items():
            for field in ("left", "values", "right"):
                tensors[f"{name}|{field}|{module}"] = getattr(factors, field).contiguous()
    for role, sums in (extraction.marginals or {}).items():
        tensors[f"marginals|rows|{role}"], tensors[f"marginals|columns|{role}"] = sums.rows, sums.columns
    path = folder / file_name(extraction.layer)
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}  # files share no storage
    with write_errors(path), atomic_file(path) as temporary:
        save_file(copies, temporary, metadata={"extraction": json.dumps(told)})


def load_extraction(folder: Path, layer: int | None, *, with_factors: bool = True) -> LayerExtraction:
    """Read one layer's extraction.

    Args:
        folder: where `save_extraction` wrote.
        layer: None for embedding and head.
        with_factors: false reads scores and cuts only.

    Returns:
        What was saved.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    path = folder / file_name(layer)
    try:
        with safe_open(path, framework="pt") as opened:
            told = json.loads((opened.metadata() or {})["extraction"])
            names = list(opened.keys())
            read: Callable[[str], Tensor] = opened.get_tensor
            variants = {
                name: _variant(name, about, names, read, with_factors=with_factors)
                for name, about in told["variants"].items()
            }
            marginals = _marginals(names, read)
    except Exception as err:  # safetensors has an error type of its own, and json another
        raise RunFolderError(f"{path}: expected an extracted layer, got: {err}; extract again.") from err
    return LayerExtraction(told["layer"], told["scores"], variants, marginals)


def file_name(layer: int | None) -> str:
    """Name of a layer's file."""
    return "outside.safetensors" if layer is None else f"layer-{layer:03d}.safetensors"


def _variant(
    name: str, about: dict[str, Any], names: list[str], read: Callable[[str], Tensor], *, with_factors: bool
) -> Variant:
    parts = {
        role: CutPart(role, read(f"{name}|rows|{role}"), read(f"{name}|columns|{role}"), share)  # type: ignore[arg-type]
        for role, share in about["shares"].items()
    }
    modules: dict[str, Extracted] = {}
    for module, energy in about["energies"].items():
        if with_factors:
            left, values, right = (read(f"{name}|{field}|{module}") for field in ("left", "values", "right"))
        else:
            left, values, right = torch.empty(0, 0), torch.empty(0), torch.empty(0, 0)
        modules[module] = Extracted(LowRank(left, values, right, about["errors"][module]), energy)
    return Variant(parts, modules)  # type: ignore[arg-type]


def _marginals(names: list[str], read: Callable[[str], Tensor]) -> Marginals | None:
    roles = [name.split("|")[2] for name in names if name.startswith("marginals|rows|")]
    found = {
        role: RoleSums(read(f"marginals|rows|{role}"), read(f"marginals|columns|{role}")) for role in roles
    }
    return found or None  # type: ignore[return-value]
