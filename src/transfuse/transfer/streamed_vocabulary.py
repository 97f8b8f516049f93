"""The streamed engine outside the layers: losses and their gradients at the top, scores of embedding and head."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from transfuse.transfer.absolute_gradients import GradientRows, add_absolute_gradients
from transfuse.transfer.samples import (
    Sample,
    SamplePass,
    answer_batches,
    answer_labels,
    answer_losses,
    refuse_infinite_losses,
)
from transfuse.transfer.sensitivity import LayerScores, refuse_infinite
from transfuse.transfer.streamed_run import StreamedRun, gradient_at, inputs_of

_LOGITS_BYTES = 1 << 28
"""Of the logits of one pass through the head."""


def answer_gradients(run: StreamedRun, samples: list[Sample]) -> None:
    """Losses of all samples, and the gradient at the last layer's output, into files.

    Args:
        run: its layers have all run forward.
        samples: in the order given.

    Raises:
        TrainingError: a loss is not finite; names the sample.
        RunFolderError: the disk is full.
    """
    teacher, n_layers = run.teacher, run.n_layers
    states = run.spill.read(inputs_of(n_layers))
    place = _places(run.passes)
    weight = _head_weight(run)
    losses: dict[int, float] = {}
    with run.spill.writing(gradient_at(n_layers)) as files:
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


def vocabulary_scores(run: StreamedRun, samples: list[Sample]) -> None:
    """Hand over embedding and head, as one matrix where they are; the head is applied once more for its gradient.

    Args:
        run: its layers have all run backward.
        samples: in the order given.

    Raises:
        TrainingError: a gradient is not finite; names the parameter and the sample.
    """
    teacher = run.teacher
    table = teacher.weights.read([teacher.embedding_weight], None, run.device)[teacher.embedding_weight]
    weight = table if teacher.is_tied else _head_weight(run)
    rows = _embedding_gradients(run, table)
    total = torch.zeros(weight.shape, device=run.device)
    head_name = teacher.names.embedding if teacher.is_tied else teacher.names.head
    states, place = run.spill.read(inputs_of(run.n_layers)), _places(run.passes)
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


def _embedding_gradients(run: StreamedRun, table: Tensor) -> dict[int, GradientRows]:
    """Each sample's gradient of the embedding, by sample number."""
    found: dict[int, GradientRows] = {}
    for batch, gradient in zip(run.passes, run.spill.read(gradient_at(0)), strict=True):
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
    run: StreamedRun, batch: list[Sample], states: Tensor, weight: Tensor
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


def _head_weight(run: StreamedRun) -> Float[Tensor, "vocab hidden"]:
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
