"""Memory, disk traffic and time of a transfer, worked out from the configurations of the two models alone."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedConfig

from transfuse.transfer.architecture import Architecture, Module, Role
from transfuse.transfer.families import architecture_of, refuse_misfits

BYTES_A_WEIGHT = 10
"""Of the in-memory engine: the weight and its summed gradients in float32, and the weight as its file holds it."""
BYTES_UNKNOWN_ACTIVATIONS = 4
"""For each weight, where nobody says how much the samples of one pass leave in memory."""
FREE_SHARE = 0.8
"""Of the free memory that the in-memory engine may need for `auto` to take it."""
RUNTIME_BYTES = 600 * 2**20
"""Python and its libraries, before any weight is loaded."""
DISK_BYTES_PER_S = 500e6
"""A plain solid-state disk; told, not measured: a probe would read what the system holds in memory."""
PASSES_PER_SAMPLE, PASSES_TO_EXTRACT = 1, 8
"""How often a float32 matrix moves through memory: to add up one sample's |gradient|, tile by tile in the processor's
cache; to score, search and cut it."""
LOGITS_BYTES = 3 * 2**28
"""Logits of one pass through the head, streamed: themselves, their probabilities and their gradient."""
SVD_PRODUCTS = 6
"""Products with the block in a randomised decomposition."""
_FLOAT = 4
_ADAPTER_BYTES = 5 * _FLOAT
"""For each weight of the adapter: itself, its gradient, two moments, and the frozen copy of where it starts."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Parameters of one model."""

    layer: int
    outside: int
    """Embedding, head where it is not tied, and the norms after the last layer."""
    total: int
    multiplied: int
    """Those that a token is multiplied with: all matrices but the embedding; a tied head counts."""
    largest: int
    """Of one logical matrix of a layer."""
    vocabulary: int
    """Of the embedding; the head is of the same size."""


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast the machine is; figures of a plan are only as good as these."""

    flops_per_s: float
    memory_bytes_per_s: float
    disk_bytes_per_s: float = DISK_BYTES_PER_S


@dataclass(frozen=True, slots=True)
class PlanFigures:
    """What a transfer will take; everything in parameters, bytes, operations and seconds."""

    teacher: Counts
    student: Counts
    teacher_bytes: int
    """On disk."""
    student_bytes: int
    memory_peak_bytes: int
    """Of the in-memory engine."""
    stream_peak_bytes: int
    """Of the streamed engine."""
    engine: Literal["memory", "stream"]
    """The one that the other figures are of."""
    weights_read_bytes: int
    spill_bytes: int
    """Layer inputs and gradients of all samples that lie on disk at once; 0 in memory."""
    disk_bytes: int
    """All that is read and written: weights, and the spill both ways."""
    kept_bytes: int
    """Factors of every teacher layer, kept until the layers are chosen."""
    adapter_bytes: int
    """The starting factors."""
    extraction_flops: int
    extraction_s: float
    n_runs: int
    """Trainings of the student, over all arms, learning rates and seeds."""
    training_peak_bytes: int
    run_flops: int
    run_s: float

    @property
    def training_s(self) -> float:
        """Over all runs."""
        return self.n_runs * self.run_s


def parameter_counts(architecture: Architecture) -> Counts:
    """Every parameter of a model, from its architecture alone.

    Args:
        architecture: of any known family.

    Returns:
        Exact counts; tied matrices count once.
    """

    def entries(module: Module) -> int:
        rows, columns = architecture.module_shape(module)
        return rows * columns + (rows if module.bias else 0)

    layer = sum(map(entries, architecture.modules)) + sum(
        architecture.size(n.axis) for n in architecture.norms
    )
    embedding, head = entries(architecture.embedding), entries(architecture.head)
    outside = embedding + sum(architecture.size(norm.axis) for norm in architecture.final_norms)
    outside += 0 if architecture.is_tied else head
    inside = [architecture.shape(role) for module in architecture.modules for role in module.roles]
    return Counts(
        layer=layer,
        outside=outside,
        total=architecture.n_layers * layer + outside,
        multiplied=architecture.n_layers * sum(map(entries, architecture.modules)) + head,
        largest=max(rows * columns for rows, columns in inside),
        vocabulary=embedding,
    )


def transfer_plan(
    teacher_config: PreTrainedConfig,
    student_config: PreTrainedConfig,
    rates: Rates,
    *,
    rank: int = 16,
    n_samples: int = 32,
    sample_tokens: int = 256,
    n_train_tokens: int = 0,
    n_arms: int = 1,
    n_learning_rates: int = 1,
    n_seeds: int = 1,
    tokens_per_pass: int = 4096,
    train_tokens_per_pass: int = 4096,
    roles: Collection[Role] | None = None,
    engine: Literal["auto", "memory", "stream"] = "auto",
    free_bytes: int | None = None,
    disk_weight_bytes: int | None = None,
    compute_bytes: int = _FLOAT,
) -> PlanFigures:
    """Memory, traffic and time of a transfer.

    Args:
        teacher_config: configuration of the larger model.
        student_config: configuration of the smaller one.
        rates: of this machine.
        rank: of the factors.
        n_samples: seed samples.
        sample_tokens: their mean length.
        n_train_tokens: that one run trains on, over all its epochs; 0 leaves training out.
        n_arms: the method and its controls.
        n_learning_rates: that each arm tries with its first seed.
        n_seeds: runs of each arm with the rate chosen.
        tokens_per_pass: most tokens of one pass through the teacher.
        train_tokens_per_pass: most tokens of one pass through the student.
        roles: matrices that are carried; None means all that the student holds for itself.
        engine: `auto` takes memory where the teacher fits.
        free_bytes: memory that is free; None where it is unknown.
        disk_weight_bytes: of one weight of the teacher on disk; None goes by its configuration.
        compute_bytes: of one frozen weight of the student while it trains.

    Returns:
        The figures; parameters are exact, memory and time are estimates.

    Raises:
        ModelError: an unknown architecture, or a teacher that is smaller than the student.
    """
    teacher, student = architecture_of(teacher_config), architecture_of(student_config)
    counts, student_counts = parameter_counts(teacher), parameter_counts(student)
    weight_bytes = disk_weight_bytes or _weight_bytes(teacher_config)
    n_tokens = n_samples * sample_tokens
    in_a_pass = min(n_tokens, tokens_per_pass)
    memory_peak = RUNTIME_BYTES + counts.total * BYTES_A_WEIGHT + activation_bytes(teacher, in_a_pass)
    fitting = auto_engine(counts.total, free_bytes, activation_bytes(teacher, in_a_pass))
    chosen = fitting if engine == "auto" else engine
    is_streamed = chosen == "stream"
    weights_read, spill, spill_traffic = counts.total * weight_bytes, 0, 0
    if is_streamed:
        group = n_tokens * teacher.hidden * _FLOAT
        # Every layer's input and the last one's output, and two gradients; all written once and read once or twice.
        spill, spill_traffic = group * (teacher.n_layers + 3), group * 5 * (teacher.n_layers + 1)
        untied = 0 if teacher.is_tied else counts.vocabulary
        weights_read = weight_bytes * (2 * (teacher.n_layers * counts.layer + counts.vocabulary) + untied)
    in_layers, outside = _adapted(teacher, student, rank, roles)
    # Forward, gradients of inputs and of weights; streamed, every layer is computed a second time.
    flops = 2 * n_tokens * counts.multiplied * (4 if is_streamed else 3)
    layer_matrices = sum(rows * columns for rows, columns in map(student.module_shape, student.modules))
    flops += 2 * SVD_PRODUCTS * teacher.n_layers * layer_matrices * (rank + 10)
    moved = _FLOAT * counts.total * (PASSES_PER_SAMPLE * n_samples + PASSES_TO_EXTRACT)
    disk = weights_read + spill_traffic
    adapter = student.n_layers * in_layers + outside
    run_flops = n_train_tokens * (4 * student_counts.multiplied + 6 * adapter)
    return PlanFigures(
        teacher=counts,
        student=student_counts,
        teacher_bytes=counts.total * weight_bytes,
        student_bytes=student_counts.total * _weight_bytes(student_config),
        memory_peak_bytes=memory_peak,
        stream_peak_bytes=_stream_peak(teacher, counts, weight_bytes, in_a_pass),
        engine=chosen,
        weights_read_bytes=weights_read,
        spill_bytes=spill,
        disk_bytes=disk,
        kept_bytes=_FLOAT * (teacher.n_layers * in_layers + outside),
        adapter_bytes=_FLOAT * adapter,
        extraction_flops=flops,
        extraction_s=flops / rates.flops_per_s
        + moved / rates.memory_bytes_per_s
        + disk / rates.disk_bytes_per_s,
        n_runs=n_arms * (n_learning_rates + n_seeds - 1) if n_train_tokens else 0,
        training_peak_bytes=RUNTIME_BYTES
        + student_counts.total * compute_bytes
        + adapter * _ADAPTER_BYTES
        + activation_bytes(student, train_tokens_per_pass),
        run_flops=run_flops,
        run_s=run_flops / rates.flops_per_s,
    )


def auto_engine(
    n_parameters: int, free_bytes: int | None, activations: int | None = None
) -> Literal["memory", "stream"]:
    """The engine that `auto` takes.

    Args:
        n_parameters: of the teacher.
        free_bytes: memory that is free; None where it is unknown, and memory is taken.
        activations: bytes that the samples of one pass leave in memory (`activation_bytes`); None reckons with some
            for each parameter.

    Returns:
        `memory` where the teacher fits and some memory stays free.
    """
    if activations is None:
        activations = n_parameters * BYTES_UNKNOWN_ACTIVATIONS
    needed = n_parameters * BYTES_A_WEIGHT + activations
    return "memory" if free_bytes is None or needed < FREE_SHARE * free_bytes else "stream"


def activation_bytes(architecture: Architecture, pass_tokens: int) -> int:
    """What a pass of so many tokens leaves in memory for its way back, logits included, in float32."""
    a_token = architecture.n_layers * _activations(architecture) + 2 * _FLOAT * architecture.vocab
    return pass_tokens * a_token


def _weight_bytes(config: PreTrainedConfig) -> int:
    """Bytes of one weight on disk by the configuration's type; bfloat16 where it names none."""
    dtype = getattr(config, "dtype", None)
    return dtype.itemsize if isinstance(dtype, torch.dtype) else torch.bfloat16.itemsize


def _adapted(
    teacher: Architecture, student: Architecture, rank: int, given: Collection[Role] | None
) -> tuple[int, int]:
    """Weights of the factors of one student layer, and of its embedding and head; tied embeddings have none."""
    wanted: list[Role] = [role for role in student.roles if not (student.is_tied and role == "embedding")]
    roles = set(refuse_misfits(teacher, student, wanted if given is None else given).roles)

    def factors(*modules: Module) -> int:
        shapes = [student.module_shape(module) for module in modules if roles & set(module.roles)]
        return sum(min(rank, *shape) * sum(shape) for shape in shapes)

    return factors(*student.modules), factors(student.embedding, student.head)


def _activations(architecture: Architecture) -> int:
    """Bytes that one token leaves in one layer for the backward pass, in float32."""
    heads = architecture.size("heads") + architecture.size("kv")
    return _FLOAT * (8 * architecture.hidden + 3 * heads + 4 * architecture.n_neurons)


def _stream_peak(teacher: Architecture, counts: Counts, weight_bytes: int, pass_tokens: int) -> int:
    """A layer and its summed gradients, with one matrix cut; or embedding and head as stored, their sums, a copy."""
    layer = 2 * _FLOAT * (counts.layer + counts.largest) + pass_tokens * _activations(teacher)
    stored = weight_bytes * counts.vocabulary * (1 if teacher.is_tied else 2)
    ends = stored + 2 * _FLOAT * counts.vocabulary + LOGITS_BYTES
    return RUNTIME_BYTES + max(layer, ends)
