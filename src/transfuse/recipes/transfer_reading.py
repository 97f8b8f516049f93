"""Reading a teacher's parameters again once it is known which parts are wanted."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from transfuse.io.configs import weights_folder
from transfuse.io.models import LoadedModel, load_model
from transfuse.io.references import resolve_model
from transfuse.recipes.transfer_schema import TransferRecipe
from transfuse.tensors.sub_matrices import Cut
from transfuse.tensors.sub_matrices import cut as cut_matrix
from transfuse.transfer.architecture import Architecture
from transfuse.transfer.assembly import ReadLayer
from transfuse.transfer.layer_weights import WeightFiles
from transfuse.transfer.sub_cloning import WeightSource


def parameter_reader(recipe: TransferRecipe, teacher: Architecture) -> WeightSource:
    """A way to read the teacher's parameters by name, whole or in part; from files where it is a folder of them.

    Args:
        recipe: names the teacher.
        teacher: tells under which names files may hold a parameter.

    Returns:
        The reader.

    Raises:
        ModelError: the teacher cannot be read.
    """
    assert recipe.teacher is not None  # noqa: S101 - the recipe checks it
    if resolve_model(recipe.teacher).kind in ("gguf", "bundled"):
        loaded = load_model(recipe.teacher, precision="float32", trust_remote_code=recipe.trust_remote_code)
        return model_reader(loaded)
    return file_reader(weights_folder(recipe.teacher), teacher)


def model_reader(loaded: LoadedModel) -> WeightSource:
    """Reads parameters of a model that is in memory."""
    weights = dict(loaded.model.named_parameters(remove_duplicate=False))

    def read(name: str, cut: Cut | None = None) -> Tensor:
        weight = weights[name].detach()
        return weight if cut is None else cut_matrix(weight, cut)

    return read


def file_reader(folder: Path, teacher: Architecture) -> WeightSource:
    """Reads parameters from safetensors files; of a contiguous part no more than that part is read.

    Args:
        folder: a checked model folder.
        teacher: tells under which names files may hold a parameter.

    Returns:
        The reader.

    Raises:
        ModelError: a file is missing or damaged.
    """
    files = WeightFiles(folder, teacher.aliases)

    def read(name: str, cut: Cut | None = None) -> Tensor:
        if cut is None:
            return files.read([name], None, torch.device("cpu"))[name]
        rows, columns = _bounds(cut.rows), _bounds(cut.columns)
        part = files.part(name, rows, columns)
        return cut_matrix(part, Cut(cut.rows - rows.start, cut.columns - columns.start))

    return read


def _bounds(indices: Tensor) -> slice:
    return slice(int(indices.min()), int(indices.max()) + 1)


def layer_reader(read: WeightSource, teacher: Architecture) -> ReadLayer:
    """Reads all matrices of a layer, or embedding and head, by their module names."""

    def read_layer(layer: int | None) -> Mapping[str, Tensor]:
        if layer is None:
            ends = (teacher.embedding,) if teacher.is_tied else (teacher.embedding, teacher.head)
            return {module.name: read(f"{module.name}.weight") for module in ends}
        return {
            module.name: read(f"{teacher.module_name(layer, module)}.weight") for module in teacher.modules
        }

    return read_layer
