"""A new small model out of a larger one of its family: the kept blocks, at full rank, are its first weights."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from transfuse.errors import ModelError
from transfuse.tensors.sub_matrices import Cut
from transfuse.transfer.architecture import Architecture, Module, Norm, Role
from transfuse.transfer.families import FAMILIES, architecture_of

PER_LAYER_LISTS = ("layer_types", "no_rope_layers")
"""Settings that have one entry a layer."""

LONG_ROPE_LISTS = ("short_factor", "long_factor")
"""Settings that have one entry for each rotated pair of a head."""


@runtime_checkable  # for the checks of the test suite
class WeightSource(Protocol):
    """Where the teacher's weights are read from."""

    def __call__(self, name: str, cut: Cut | None = None) -> Tensor:
        """A parameter by its full name (`model.layers.3.mlp.up_proj.weight`), or the cut rows and columns of it."""
        ...


def sub_clone(
    read: WeightSource,
    teacher: Architecture,
    student_config: PreTrainedConfig,
    layers: Sequence[int],
    cuts: Sequence[Mapping[Role, Cut]],
    outside: Mapping[Role, Cut],
) -> dict[str, Tensor]:
    """The weights of a small model, cut out of its teacher.

    Biases are cut on the rows of their matrix. Norms are cut on the indices that they normalise: on the columns of
    what reads them (query for the norm before attention, up for the one before the feed-forward part, head for the
    last), or the rows of what they come after (output, down). Where each matrix was cut on its own, the others that
    read the same norm (key, value, gate) chose other columns: only `coupled` cuts fit one another throughout. One
    norm for all heads (Qwen3, Gemma 3) is cut as the first head's rows.

    Nothing is rescaled: a norm's mean, the softmax's scale and the speeds of rotation are those of the student's
    widths, as in a model that was trained with them.

    Args:
        read: gives the teacher's parameters, a part at a time.
        teacher: its architecture.
        student_config: of the new model, for instance of `student_shape`.
        layers: the teacher's layer for each of the student's.
        cuts: a cut of every role for each of the student's layers.
        outside: of the embedding, and of the head unless it is tied. Rows are the teacher's for each token of the
            student; -1 gives the mean of the known rows.

    Returns:
        A contiguous copy of every parameter by its name in the new model; a tied head is not among them.

    Raises:
        ModelError: the new model is of another family, or the cuts are not of its shape.
    """
    student = architecture_of(student_config)
    _refuse_other_families(teacher, student, layers, cuts)
    head = "embedding" if student.is_tied else "head"
    weights = {
        f"{student.embedding.name}.weight": _vocabulary_rows(read, teacher, outside["embedding"], "embedding")
    }
    if not student.is_tied:
        weights[f"{student.head.name}.weight"] = _vocabulary_rows(read, teacher, outside["head"], "head")
    for new, old in zip(student.final_norms, teacher.final_norms, strict=True):
        weights[new.name] = read(old.name)[outside[head].columns].clone()
    for number, (layer, layer_cuts) in enumerate(zip(layers, cuts, strict=True)):
        for module in student.modules:
            name = student.module_name(number, module)
            source = teacher.module_name(layer, teacher.module_of(module.roles[0]))
            weights |= _matrix(read, teacher, student, module, source, name, layer_cuts)
        for norm in student.norms:
            vector = read(f"{teacher.layers}.{layer}.{norm.name}")
            weights[f"{student.layers}.{number}.{norm.name}"] = _norm(
                vector, norm, teacher, student, layer_cuts
            )
    return weights


def model_with(config: PreTrainedConfig, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """A new model that has the given weights.

    Args:
        config: of the model.
        weights: of `sub_clone`.

    Returns:
        The model in evaluation mode, in the type of the weights.

    Raises:
        ModelError: the weights are not those of such a model.
    """
    dtype = next(iter(weights.values())).dtype
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    given = {name: tuple(weight.shape) for name, weight in weights.items()}
    if shapes != given:
        wrong = sorted(name for name in shapes | given if shapes.get(name) != given.get(name))
        first = wrong[0]
        raise ModelError(
            f"{config.model_type}: {len(wrong)} weights are not those of the new model; {first} is expected as "
            f"{shapes.get(first)}, got {given.get(first)}. Cut them for this configuration."
        )
    model.load_state_dict(dict(weights), strict=False)  # a tied head is not given a second time
    return model.eval()


def student_shape(
    teacher_config: PreTrainedConfig,
    *,
    n_layers: int | None = None,
    hidden: int | None = None,
    n_heads: int | None = None,
    n_kv_heads: int | None = None,
    head_dim: int | None = None,
    n_neurons: int | None = None,
    layers: Sequence[int] | None = None,
) -> PreTrainedConfig:
    """The configuration of a smaller model of the same family; what is not named stays the teacher's.

    Args:
        teacher_config: of a known family.
        n_layers: number of layers.
        hidden: width of the residual stream.
        n_heads: query heads.
        n_kv_heads: key and value heads; None takes the teacher's where that number divides the query heads, and
            otherwise the teacher's ratio.
        head_dim: width of a head; None takes the teacher's, or hidden / n_heads where the family knows no other.
        n_neurons: width of the feed-forward part.
        layers: the teacher's layer for each of the student's, whose kinds of attention are taken over; None takes
            the first ones'.

    Returns:
        A new configuration; the teacher's is left as it is.

    Raises:
        ModelError: the architecture is unknown, something exceeds the teacher's, or the family allows no such shape.
    """
    teacher = architecture_of(teacher_config)
    text = teacher_config.get_text_config()
    n_heads = n_heads or teacher.n_heads
    if n_kv_heads is None and n_heads % teacher.n_kv_heads:
        n_kv_heads = n_heads * teacher.n_kv_heads // teacher.n_heads
    if head_dim is None and not FAMILIES[teacher.family].has_free_head_dim:
        head_dim = (hidden or teacher.hidden) // n_heads
    largest = {
        "num_hidden_layers": teacher.n_layers,
        "hidden_size": teacher.hidden,
        "num_attention_heads": teacher.n_heads,
        "num_key_value_heads": teacher.n_kv_heads,
        "head_dim": teacher.head_dim,
        "intermediate_size": teacher.n_neurons,
    }
    given = (n_layers, hidden, n_heads, n_kv_heads, head_dim, n_neurons)
    sizes = {name: new or old for (name, old), new in zip(largest.items(), given, strict=True)}
    larger = [f"{name} {sizes[name]} (teacher: {old})" for name, old in largest.items() if sizes[name] > old]
    if larger:
        raise ModelError(
            f"expected a student no larger than its teacher, got {', '.join(larger)}; make it smaller."
        )
    settings: dict[str, Any] = {**text.to_dict(), **_shape_settings(sizes, teacher)}
    chosen = range(sizes["num_hidden_layers"]) if layers is None else layers
    for name in PER_LAYER_LISTS:
        if settings.get(name) is not None:
            settings[name] = [settings[name][layer] for layer in chosen]
    # The teacher's own choice was to divide by its head's width.
    if settings.get("query_pre_attn_scalar") == teacher.head_dim:
        settings["query_pre_attn_scalar"] = sizes["head_dim"]
    settings["rope_parameters"] = _rope(settings.get("rope_parameters"), sizes["head_dim"] / teacher.head_dim)
    for name in ("architectures", "_name_or_path", "transformers_version", "dtype", "model_type"):
        settings.pop(name, None)
    settings["tie_word_embeddings"] = teacher.is_tied
    try:
        return type(text)(**settings)
    except (StrictDataclassError, ValueError) as err:
        reason = str(err).splitlines()[-1].strip()
        raise ModelError(f"{text.model_type} allows no such student ({sizes}): {reason}") from err


def _shape_settings(sizes: dict[str, int], teacher: Architecture) -> dict[str, int]:
    heads, kv_heads, width = (
        sizes[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    if heads % kv_heads:
        raise ModelError(
            f"expected a number of query heads that is a multiple of the key and value heads', got {heads} and "
            f"{kv_heads}; change one of them."
        )
    is_natural = sizes["hidden_size"] == heads * width
    if not FAMILIES[teacher.family].has_free_head_dim:
        if not is_natural or heads != kv_heads:
            raise ModelError(
                f"{teacher.family}: expected hidden = n_heads * head_dim and n_kv_heads = n_heads, got "
                f"hidden {sizes['hidden_size']}, {heads} heads of {width}, {kv_heads} key and value heads."
            )
        return {name: size for name, size in sizes.items() if name not in ("head_dim", "num_key_value_heads")}
    return sizes


def _rope(rope: Any, share: float) -> Any:
    """Lists of one factor a pair, shortened: each of the student's pairs takes that of like speed."""
    if not isinstance(rope, dict) or share == 1:
        return rope
    shortened = dict(rope)
    for name in LONG_ROPE_LISTS:
        if rope.get(name) is not None:
            n_pairs = int(len(rope[name]) * share)
            shortened[name] = [rope[name][int(i / share)] for i in range(n_pairs)]
    return shortened


def _refuse_other_families(
    teacher: Architecture, student: Architecture, layers: Sequence[int], cuts: Sequence[Mapping[Role, Cut]]
) -> None:
    same = (teacher.family, teacher.modules, teacher.is_tied) == (
        student.family,
        student.modules,
        student.is_tied,
    )
    if not same:
        raise ModelError(
            f"expected a student of the teacher's family ({teacher.family}, biases and tied embeddings alike), got "
            f"{student.family}; make its configuration of the teacher's (student_shape)."
        )
    if not len(layers) == len(cuts) == student.n_layers:
        raise ModelError(
            f"expected a layer and its cuts for each of the student's {student.n_layers} layers, "
            f"got {len(layers)} and {len(cuts)}."
        )


def _matrix(
    read: WeightSource,
    teacher: Architecture,
    student: Architecture,
    module: Module,
    source: str,
    name: str,
    cuts: Mapping[Role, Cut],
) -> dict[str, Tensor]:
    """A module's weight and bias, each role read for itself and put together in the student's layout."""
    parts: dict[Role, Tensor] = {}
    biases: dict[Role, Tensor] = {}
    for role in module.roles:
        cut = Cut(teacher.physical_rows(role)[cuts[role].rows], cuts[role].columns)
        parts[role] = read(f"{source}.weight", cut)
        if tuple(parts[role].shape) != student.shape(role):
            raise ModelError(
                f"{name}: expected a cut of {student.shape(role)} for {role}, got {tuple(parts[role].shape)}."
            )
        if module.bias:
            biases[role] = read(f"{source}.bias")[cut.rows]
    found = {f"{name}.weight": student.join(module, parts).contiguous()}
    if module.bias:
        found[f"{name}.bias"] = student.join(module, biases).contiguous()
    return found


def _norm(
    vector: Tensor, norm: Norm, teacher: Architecture, student: Architecture, cuts: Mapping[Role, Cut]
) -> Tensor:
    cut = cuts[norm.beside]
    indices = cut.rows if norm.side == "rows" else cut.columns
    if norm.axis == "head_dim":
        indices = indices[: student.head_dim] % teacher.head_dim
    return vector[indices].clone()


def _vocabulary_rows(read: WeightSource, teacher: Architecture, cut: Cut, role: Role) -> Tensor:
    name = f"{teacher.module_of(role).name}.weight"
    known = cut.rows >= 0
    if bool(known.all()):
        return read(name, cut).contiguous()
    rows = read(name, Cut(cut.rows[known], cut.columns))
    whole = rows.float().mean(0).to(rows.dtype).repeat(len(cut.rows), 1)
    whole[known] = rows
    return whole
