"""Weights of several models of one architecture become one model, tensor by tensor.

Methods are our own (`tensors/weight_merging.py`) and give mergekit's numbers where both follow the papers: they need no
further package, any architecture works, and small updates are not treated as none.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32
from safetensors.torch import save_file
from torch import Tensor

from transfuse.baselines.merging_settings import (
    WITHOUT_BASE,
    AnyMerge,
    DareLinearMerge,
    DareTiesMerge,
    LinearMerge,
    ModelStockMerge,
    SceMerge,
    SlerpMerge,
    TiesMerge,
)
from transfuse.baselines.merging_sources import (
    MergeSource,
    TensorReader,
    common_tensors,
    common_tokenizer,
    open_source,
)
from transfuse.errors import ModelError, RecipeError
from transfuse.io.files import atomic_folder, write_errors
from transfuse.io.quiet import quiet
from transfuse.io.references import WEIGHTS, WEIGHTS_INDEX
from transfuse.tensors import weight_merging as rules

MAX_SHARD_BYTES = 4 * 2**30

OnTensor = Callable[[int, int, str], None]
"""Called with the numbers of tensors done and to do, and a tensor's name."""


def merge_models(
    models: Sequence[Path | str],
    settings: AnyMerge,
    out: Path,
    *,
    base: Path | str | None = None,
    on_tensor: OnTensor | None = None,
) -> None:
    """Write an ordinary model folder with the merged weights; configuration and tokenizer are the first model's.

    Needs memory for one tensor of each model and for what is not yet written of 4 GiB.

    Args:
        models: references of two or more models of one architecture and vocabulary.
        settings: the method and what it asks for.
        out: the folder to write, whole or not at all; an earlier one is replaced.
        base: what the models started from; `linear` and `slerp` do not read it.
        on_tensor: told of progress.

    Raises:
        RecipeError: the settings do not fit the number of models, or a base is missing.
        ModelError: a model cannot be read, or the models do not fit together.
        RunFolderError: `out` cannot be written, or the disk is full.
    """
    references = [str(model) for model in models]
    shares = check_merge(references, settings, base)
    if base is not None and settings.method not in WITHOUT_BASE:
        references.append(str(base))
    with write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.sources.", dir=out.parent))
    try:
        sources = [open_source(reference, scratch) for reference in references]
        names = common_tensors(sources)
        tokenizer = common_tokenizer(sources)
        with atomic_folder(out) as folder, quiet():
            tensors = _merged(sources, names, settings, shares, on_tensor)
            _write_weights(tensors, _shards(sources[0], names, settings.dtype), folder)
            _write_settings(sources[0].folder, folder, settings.dtype)
            tokenizer.save_pretrained(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_merge(models: Sequence[str], settings: AnyMerge, base: Path | str | None) -> list[float]:
    """Refuse settings that cannot be followed, before anything is read.

    Args:
        models: references.
        settings: the method.
        base: what the models started from.

    Returns:
        What each model counts, summing to 1.

    Raises:
        RecipeError: too few or too many models, a base missing, or weights that do not fit.
    """
    method = settings.method
    if len(models) < 2:
        raise RecipeError(f"merge: expected two models or more, got {len(models)}.")
    if method == "slerp" and len(models) != 2:
        raise RecipeError(
            f"merge: slerp goes along the arc between two models, got {len(models)}; choose another method."
        )
    if base is None and method not in WITHOUT_BASE:
        raise RecipeError(
            f"merge: {method} merges what the models learned since a common base; name it with --base, or choose "
            f"{' or '.join(sorted(WITHOUT_BASE))}."
        )
    weights: list[float] | None = getattr(settings, "weights", None)
    if weights is None:
        return [1 / len(models)] * len(models)
    if len(weights) != len(models):
        raise RecipeError(
            f"merge: expected a weight for each of the {len(models)} models, got {len(weights)}: {weights}."
        )
    if sum(weights) <= 0:
        raise RecipeError("merge: expected weights with a positive sum, got only zeros.")
    return [weight / sum(weights) for weight in weights]


def _merged(
    sources: Sequence[MergeSource],
    names: Sequence[str],
    settings: AnyMerge,
    shares: list[float],
    on_tensor: OnTensor | None,
) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(getattr(settings, "seed", 0))
    dtype = getattr(torch, settings.dtype)
    with ExitStack() as stack:
        readers = [stack.enter_context(TensorReader(source)) for source in sources]
        for n_done, name in enumerate(names, start=1):
            tensors = [reader.read(name) for reader in readers]
            if all(source.is_float(name) for source in sources) and tensors[0].numel():
                base = tensors.pop() if settings.method not in WITHOUT_BASE else None
                merged = merged_tensor(torch.stack(tensors), base, settings, torch.tensor(shares), generator)
                if not torch.isfinite(merged).all():
                    raise ModelError(
                        f"{name}: the merged weights are not finite, so a model's are not; train it again."
                    )
                merged = merged.to(dtype)
            else:
                merged = tensors[0]
                if not all(torch.equal(merged, other) for other in tensors[1:]):
                    raise ModelError(
                        f"{name}: holds whole numbers ({sources[0].types[name]}) that differ between the models; they "
                        "have no mean."
                    )
            if on_tensor:
                on_tensor(n_done, len(names), name)
            yield name, merged


def merged_tensor(
    stack: Float32[Tensor, " models *shape"],
    base: Float32[Tensor, "*shape"] | None,
    settings: AnyMerge,
    shares: Float[Tensor, " models"],
    generator: torch.Generator,
) -> Float32[Tensor, "*shape"]:
    """One tensor by the method that the settings name.

    Args:
        stack: the models' tensors.
        base: None only where the method needs none.
        settings: the method.
        shares: what each model counts.
        generator: of what is drawn.

    Returns:
        The merged tensor.
    """
    match settings:
        case LinearMerge():
            return rules.linear(stack, shares)
        case SlerpMerge():
            return rules.slerp(stack[0], stack[1], float(shares[1]))
    assert base is not None  # noqa: S101 - check_merge
    match settings:
        case TiesMerge(density=density, scale=scale):
            return rules.ties(base, stack, shares, density, scale)
        case DareLinearMerge(density=density, scale=scale):
            return rules.dare_linear(base, stack, shares, density, generator, scale)
        case DareTiesMerge(density=density, scale=scale):
            return rules.dare_ties(base, stack, shares, density, generator, scale)
        case SceMerge(top_share=top_share):
            return rules.sce(base, stack, top_share)
        case ModelStockMerge():
            return rules.model_stock(base, stack)


def _shards(source: MergeSource, names: Sequence[str], dtype: str) -> list[list[str]]:
    """Names of each file's tensors."""
    shards: list[list[str]] = [[]]
    room = MAX_SHARD_BYTES
    for name in names:
        size = torch.Size(source.shapes[name]).numel() * (2 if dtype == "bfloat16" else 4)
        if shards[-1] and size > room:
            shards.append([])
            room = MAX_SHARD_BYTES
        shards[-1].append(name)
        room -= size
    return shards


def _write_weights(tensors: Iterator[tuple[str, Tensor]], shards: list[list[str]], folder: Path) -> None:
    """The files of a model folder; `tensors` come in the order of `shards`."""
    file_of: dict[str, str] = {}
    n_bytes = 0
    for number, names in enumerate(shards, start=1):
        file_name = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        content = dict(next(tensors) for _ in names)
        save_file(
            {name: tensor.contiguous() for name, tensor in content.items()},
            folder / file_name,
            metadata={"format": "pt"},
        )
        (folder / file_name).chmod(0o644)  # safetensors lets nobody else read what it writes
        n_bytes += sum(tensor.nbytes for tensor in content.values())
        file_of |= dict.fromkeys(names, file_name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": n_bytes}, "weight_map": file_of}
        (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _write_settings(source: Path, folder: Path, dtype: str) -> None:
    """A model's configuration with the new type of its weights, and how it generates."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps(_with_dtype(config, dtype), ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    generation = source / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, folder / generation.name)


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Also in the parts of a composite model's configuration."""
    changed = {
        key: _with_dtype(value, dtype)
        if isinstance(value, dict) and {"dtype", "torch_dtype"} & value.keys()
        else value
        for key, value in config.items()
        if key != "torch_dtype"
    }
    return changed | {"dtype": dtype}
