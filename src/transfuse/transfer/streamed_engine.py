"""Sensitivity of a teacher of any size, read from disk layer by layer, twice, with at most one layer in memory.

Forward keeps each layer's input in a file; backward takes the layers again from the top, computes each once more with
gradients, and hands over its scores while it is there. A run that was killed goes on after its last finished layer.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig

from transfuse.io.precision import resolve_device
from transfuse.train.batches import TrainingRow
from transfuse.transfer.absolute_gradients import GradientRows, add_absolute_gradients
from transfuse.transfer.layer_weights import WeightFiles
from transfuse.transfer.samples import (
    FittedSamples,
    Sample,
    SamplePass,
    answer_batches,
    answer_labels,
    answer_losses,
    fit_samples,
    refuse_infinite_losses,
    sample_passes,
)
from transfuse.transfer.sensitivity import (
    GradientSums,
    LayerScores,
    ModelNames,
    OnLayer,
    OnProgress,
    SensitivitySummary,
    layer_linears,
    refuse_infinite,
    summary_of,
)
from transfuse.transfer.spill import Spill
from transfuse.transfer.streamed_teacher import LayerCall, StreamedTeacher, read_config

ENGINE_VERSION = 1
"""Raised where what is spilled changes meaning: then no older run is continued."""

_LOGITS_BYTES = 1 << 28
"""Of the logits of one pass through the head."""


@dataclass(frozen=True)
class _Run:
    teacher: StreamedTeacher
    spill: Spill
    passes: list[SamplePass]
    calls: list[list[LayerCall]]
    """Of every pass, what each layer is given beside its input."""
    on_layer: OnLayer
    on_progress: OnProgress | None
    device: torch.device

    @property
    def n_layers(self) -> int:
        return len(self.teacher.layers)

    def tell(self, n_done: int, what: str) -> None:
        if self.on_progress is not None:
            self.on_progress(n_done, 2 * self.n_layers + 2, what)


def streamed_sensitivity(
    folder: Path,
    rows: Sequence[TrainingRow],
    on_layer: OnLayer,
    *,
    names: ModelNames,
    work: Path,
    max_tokens_per_pass: int = 2048,
    max_length_tokens: int | None = None,
    compute_dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    device: str | None = "cpu",
    on_progress: OnProgress | None = None,
) -> SensitivitySummary:
    """Sensitivity of every matrix of a model on disk, summed over samples.

    Args:
        folder: a model folder with safetensors weights in one file or several.
        rows: seed samples; each one's loss is the mean over its answer's tokens.
        on_layer: given each layer from the top while it is in memory, then embedding and head. A layer may be given
            again, with the same scores, to a run that was killed meanwhile.
        names: where the layers, the embedding and the head are.
        work: folder of the files in between; the same folder, model, rows and settings continue a killed run.
        max_tokens_per_pass: rows x longest row that go through a layer together.
        max_length_tokens: longer samples are shortened; None is the model's own limit.
        compute_dtype: float32 or bfloat16; sums are float32 always.
        attention: transformers' name of an attention implementation (`sdpa`, `eager`); None leaves it to it.
        device: where to compute; None picks an accelerator where there is one.
        on_progress: told of every layer, forward and backward, of the head, and of embedding and head at the end.

    Returns:
        Counts, losses, bytes read and what was left out.

    Raises:
        DataError: no sample can be used, or one has tokens that the model does not know.
        ModelError: the folder holds no model that can be streamed, or its weights are missing or damaged.
        RunFolderError: the disk is too full for the layers' inputs.
        TrainingError: a loss or gradient is not finite; names the parameter and the sample.
    """
    started = time.perf_counter()
    config = read_config(folder)
    weights = WeightFiles(folder, names.aliases)
    text = config.get_text_config()
    limit = max_length_tokens or getattr(text, "max_position_embeddings", None)
    fitted = fit_samples(rows, limit, text.vocab_size)
    passes = sample_passes(fitted.samples, max_tokens_per_pass)
    on_device = resolve_device(device)
    key = _key(config, weights, fitted, [str(names), max_tokens_per_pass, str(compute_dtype), attention])
    shapes = [(*batch.input_ids.shape, text.hidden_size) for batch in passes]
    spill = Spill(work, key, shapes, compute_dtype)
    if spill.note("finished") is None:
        teacher = StreamedTeacher(
            config, weights, names, dtype=compute_dtype, attention=attention, device=on_device
        )
        _go(teacher, spill, passes, fitted.samples, on_layer, on_progress, on_device)
    spill.remove_groups()
    losses = {int(number): loss for number, loss in spill.note("losses").items()}
    return summary_of(fitted, losses, bytes_read=weights.bytes_read, seconds=time.perf_counter() - started)


def _go(
    teacher: StreamedTeacher,
    spill: Spill,
    passes: list[SamplePass],
    samples: list[Sample],
    on_layer: OnLayer,
    on_progress: OnProgress | None,
    device: torch.device,
) -> None:
    """All stages, from where an earlier run came to."""
    n_layers = len(teacher.layers)
    n_forward, lowest_gradient = _progress(spill, n_layers)
    if lowest_gradient is None:
        spill.check_room(n_layers - n_forward + 3)
    with torch.no_grad():
        embedded = [teacher.embedded(batch) for batch in passes]
    if lowest_gradient is None and not spill.has(_inputs(0)):
        with spill.writing(_inputs(0)) as files:
            for file, each in zip(files, embedded, strict=True):
                file.copy_(each.first_input)
    run = _Run(teacher, spill, passes, [each.calls for each in embedded], on_layer, on_progress, device)
    del embedded
    if lowest_gradient is None:
        for number in range(n_forward, n_layers):
            _layer_forward(run, number)
        _answer_gradients(run, samples)
        lowest_gradient = n_layers
    for number in reversed(range(lowest_gradient)):
        _layer_backward(run, number)
    teacher.let_go()
    _vocabulary(run, samples)
    spill.write_note("finished", True)
    run.tell(2 * n_layers + 2, "embedding and head")


def _progress(spill: Spill, n_layers: int) -> tuple[int, int | None]:
    """How many layers are done forward, and the lowest layer whose input's gradient is known."""
    known = next((n for n in range(n_layers + 1) if spill.has(_gradient(n))), None)
    if known is not None:
        needed = [_inputs(n) for n in (*range(known), n_layers)]
        if all(map(spill.has, needed)) and spill.note("losses") is not None:
            return n_layers, known
        spill.clear()
    there = next((n for n in range(n_layers + 1) if not spill.has(_inputs(n))), n_layers + 1)
    return max(0, there - 1), None


def _layer_forward(run: _Run, number: int) -> None:
    """A layer's outputs, which are the next one's inputs, on disk."""
    run.teacher.layer(number)
    with torch.no_grad(), run.spill.writing(_inputs(number + 1)) as files:
        for file, given, calls in zip(files, run.spill.read(_inputs(number)), run.calls, strict=True):
            file.copy_(run.teacher.run_layer(number, given.to(run.device), calls[number]))
    run.tell(number + 1, "forward")


def _answer_gradients(run: _Run, samples: list[Sample]) -> None:
    """Losses of all samples, and the gradient at the last layer's output, on disk."""
    teacher, n_layers = run.teacher, run.n_layers
    states = run.spill.read(_inputs(n_layers))
    place = _places(run.passes)
    weight = _head_weight(run)
    losses: dict[int, float] = {}
    with run.spill.writing(_gradient(n_layers)) as files:
        for batch in _head_batches(samples, len(weight)):
            leaf = _answer_states(batch, states, place).to(run.device).requires_grad_()
            found = answer_losses(teacher.logits(leaf, weight), answer_labels(batch).to(run.device))
            refuse_infinite_losses(batch, found.detach())
            found.sum().backward()
            assert leaf.grad is not None  # noqa: S101 - the loss depends on it
            for sample, gradient in zip(batch, leaf.grad, strict=True):
                n_pass, row = place[sample.number]
                files[n_pass][row, _predicting(sample)].copy_(gradient[: sample.n_answer])
            losses |= {each.number: loss for each, loss in zip(batch, found.tolist(), strict=True)}
        run.spill.write_note("losses", losses)
    run.tell(n_layers + 1, "head")


def _layer_backward(run: _Run, number: int) -> None:
    """A layer once more, with gradients: its scores handed over, the gradient at its input on disk."""
    layer = run.teacher.layer(number)
    prefix = f"{run.teacher.names.layers}.{number}."
    sums = GradientSums(layer_linears(layer), prefix)
    given, above = run.spill.read(_inputs(number)), run.spill.read(_gradient(number + 1))
    with run.spill.writing(_gradient(number)) as files:
        for file, batch, calls, part, gradient in zip(
            files, run.passes, run.calls, given, above, strict=True
        ):
            hidden = part.to(run.device).requires_grad_()
            with sums.watching(batch.samples):
                output = run.teacher.run_layer(number, hidden, calls[number])
                output.backward(gradient.to(run.device))
            assert hidden.grad is not None  # noqa: S101 - the output depends on it
            file.copy_(hidden.grad)
            del hidden, output
        weights = {name: linear.weight.detach() for name, linear in layer_linears(layer).items()}
        run.on_layer(LayerScores(number, weights, {name: sums.scores(name) for name in weights}))
    run.spill.remove(_gradient(number + 1), *([_inputs(number)] if number < run.n_layers else []))
    run.tell(2 * run.n_layers + 1 - number, "backward")


def _vocabulary(run: _Run, samples: list[Sample]) -> None:
    """Scores of embedding and head, together where they are one matrix; the head is applied once more."""
    teacher = run.teacher
    table = teacher.weights.read([teacher.embedding_weight], None, run.device)[teacher.embedding_weight]
    weight = table if teacher.is_tied else _head_weight(run)
    rows = _embedding_gradients(run, table)
    total = torch.zeros(weight.shape, device=run.device)
    head_name = teacher.names.embedding if teacher.is_tied else teacher.names.head
    states, place = run.spill.read(_inputs(run.n_layers)), _places(run.passes)
    for batch in _head_batches(samples, len(weight)):
        given, gradients = _head_use(run, batch, _answer_states(batch, states, place), weight)
        more = [rows[sample.number] for sample in batch] if teacher.is_tied else []
        refuse_infinite(head_name, batch, add_absolute_gradients(total, gradients, given, more))
    weights = {head_name: weight}
    scores = {head_name: total.mul_(weight.abs())}
    if not teacher.is_tied:
        own = _mostly_zeros(table)
        for each in rows.values():
            own.index_add_(0, each.rows, each.values.abs().float())
        weights = {teacher.names.embedding: table, **weights}
        known = torch.unique(torch.cat([each.rows for each in rows.values()]))
        own[known] *= table[known].abs()
        scores = {teacher.names.embedding: own, **scores}
    run.on_layer(LayerScores(None, weights, scores))


def _embedding_gradients(run: _Run, table: Tensor) -> dict[int, GradientRows]:
    """Each sample's gradient of the embedding, by sample number."""
    found: dict[int, GradientRows] = {}
    for batch, gradient in zip(run.passes, run.spill.read(_gradient(0)), strict=True):
        embedded = run.teacher.embedded(batch, table)
        (at_rows,) = torch.autograd.grad(
            embedded.first_input, embedded.rows.weight, grad_outputs=gradient.to(run.device)
        )
        for index, each in enumerate(embedded.rows.gradients(at_rows)):
            is_fine = bool(torch.isfinite(each.values).all())
            refuse_infinite(run.teacher.names.embedding, batch.samples, None if is_fine else index)
            found[batch.samples[index].number] = each
    return found


def _head_use(
    run: _Run, batch: list[Sample], states: Tensor, weight: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Of each sample, what the head is applied to, and the gradient at what it gives."""
    kept: list[Tensor] = []

    def cut_off(given: Tensor, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        kept.extend((given, leaf))
        return leaf

    with torch.no_grad():
        states = states.to(run.device)
    losses = answer_losses(run.teacher.logits(states, weight, cut_off), answer_labels(batch).to(run.device))
    given, leaf = kept
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    sizes = [sample.n_answer for sample in batch]
    return (
        [row[:size] for row, size in zip(given, sizes, strict=True)],
        [row[:size] for row, size in zip(gradient, sizes, strict=True)],
    )


def _mostly_zeros(like: Tensor) -> Tensor:
    """Float32 zeros; on a CPU those that are never written take no memory."""
    if like.device.type == "cpu":
        return torch.from_numpy(np.zeros(like.shape, np.float32))
    return torch.zeros(like.shape, device=like.device)


def _head_weight(run: _Run) -> Float[Tensor, "vocab hidden"]:
    name = run.teacher.head_weight
    return run.teacher.weights.read([name], None, run.device)[name]


def _head_batches(samples: list[Sample], n_vocab: int) -> list[list[Sample]]:
    return answer_batches(samples, max(1, _LOGITS_BYTES // (4 * n_vocab)))


def _answer_states(
    batch: list[Sample], states: list[Tensor], place: dict[int, tuple[int, int]]
) -> Float[Tensor, "batch answer hidden"]:
    """The last layer's outputs that predict answers, each sample's from the left."""
    longest = max(sample.n_answer for sample in batch)
    found = states[0].new_zeros(len(batch), longest, states[0].shape[-1])
    for index, sample in enumerate(batch):
        n_pass, row = place[sample.number]
        found[index, : sample.n_answer] = states[n_pass][row, _predicting(sample)]
    return found


def _places(passes: list[SamplePass]) -> dict[int, tuple[int, int]]:
    """Pass and row of each sample, by its number."""
    return {
        sample.number: (n_pass, row)
        for n_pass, batch in enumerate(passes)
        for row, sample in enumerate(batch.samples)
    }


def _predicting(sample: Sample) -> slice:
    return slice(sample.n_prompt - 1, len(sample.token_ids) - 1)


def _inputs(number: int) -> str:
    return f"inputs-{number:04d}"


def _gradient(number: int) -> str:
    return f"gradient-{number:04d}"


def _key(
    config: PreTrainedConfig, weights: WeightFiles, fitted: FittedSamples, settings: list[str | int | None]
) -> str:
    """A digest of all that the spilled tensors depend on."""
    rows = [[sample.number, sample.token_ids, sample.n_prompt] for sample in fitted.samples]
    told = [ENGINE_VERSION, weights.identity(), config.to_json_string(), rows, settings]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
