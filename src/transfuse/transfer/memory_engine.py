"""Sensitivity of a teacher that is in memory, with the scores of all its layers."""

import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from transfuse.train.batches import TrainingRow
from transfuse.transfer.absolute_gradients import GradientRows, add_absolute_gradients
from transfuse.transfer.embedding_rows import rows_per_sample
from transfuse.transfer.samples import (
    Sample,
    SamplePass,
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
    refuse_unscored_matrices,
    submodule,
    summary_of,
)
from transfuse.types import IGNORE_INDEX


def memory_sensitivity(
    model: PreTrainedModel,
    rows: Sequence[TrainingRow],
    on_layer: OnLayer,
    *,
    names: ModelNames,
    max_tokens_per_pass: int = 2048,
    max_length_tokens: int | None = None,
    on_progress: OnProgress | None = None,
) -> SensitivitySummary:
    """Sensitivity of every matrix of a loaded model, summed over samples.

    Args:
        model: computes on its own device in its own type; left as found.
        rows: seed samples; each one's loss is the mean over its answer's tokens.
        on_layer: given each layer from the top, then embedding and head; the scores are freed afterwards.
        names: where the layers, the embedding and the head are.
        max_tokens_per_pass: rows x longest row of one forward and backward pass.
        max_length_tokens: longer samples are shortened; None is the model's own limit.
        on_progress: told of every pass.

    Returns:
        Counts, losses and what was left out.

    Raises:
        DataError: no sample can be used, or one has tokens that the model does not know.
        ModelError: the model has matrices that are not scored.
        TrainingError: a loss or gradient is not finite; names the parameter and the sample.
    """
    started = time.perf_counter()
    refuse_unscored_matrices(model, names)
    layers = submodule(model, names.layers, nn.ModuleList)
    embedding = submodule(model, names.embedding, nn.Embedding)
    head = submodule(model, names.head, nn.Linear)
    context = max_length_tokens or getattr(model.config.get_text_config(), "max_position_embeddings", None)
    fitted = fit_samples(rows, context, embedding.num_embeddings)
    by_layer = [GradientSums(layer_linears(layer), f"{names.layers}.{n}.") for n, layer in enumerate(layers)]
    outside = _Vocabulary(embedding, head, names)
    losses: dict[int, float] = {}
    passes = sample_passes(fitted.samples, max_tokens_per_pass)
    with _frozen(model):
        for n_done, batch in enumerate(passes, start=1):
            found = _run_pass(model, batch, by_layer, outside)
            losses |= {sample.number: loss for sample, loss in zip(batch.samples, found, strict=True)}
            if on_progress is not None:
                on_progress(n_done, len(passes), "passes")
    for n_layer in reversed(range(len(layers))):
        sums = by_layer.pop()
        linears = layer_linears(layers[n_layer])
        weights = {name: linear.weight.detach() for name, linear in linears.items()}
        with torch.no_grad():
            scores = {name: sums.scores(name) for name in linears}
        on_layer(LayerScores(n_layer, weights, scores))
        del scores
    on_layer(outside.scores())
    return summary_of(fitted, losses, bytes_read=0, seconds=time.perf_counter() - started)


@final
class _Vocabulary:
    """Sums of embedding and head; of both uses together where they are one matrix."""

    def __init__(self, embedding: nn.Embedding, head: nn.Linear, names: ModelNames) -> None:
        self.embedding, self.head, self._names = embedding, head, names
        self._is_tied = head.weight is embedding.weight
        modules = [embedding] if self._is_tied else [embedding, head]
        self._totals = [torch.zeros(module.weight.shape, device=module.weight.device) for module in modules]

    def add(
        self, samples: list[Sample], given: list[Tensor], gradients: list[Tensor], rows: list[GradientRows]
    ) -> None:
        """Add one pass: of each sample the head's inputs and output gradients, and the embedding's gradient."""
        for index, each in enumerate(rows):
            is_fine = bool(torch.isfinite(each.values).all())
            refuse_infinite(self._names.embedding, samples, None if is_fine else index)
            if not self._is_tied:
                self._totals[0].index_add_(0, each.rows, each.values.abs().float())
        culprit = add_absolute_gradients(self._totals[-1], gradients, given, rows if self._is_tied else ())
        refuse_infinite(self._names.embedding if self._is_tied else self._names.head, samples, culprit)

    def scores(self) -> LayerScores:
        """Weights, and scores in the totals' own memory."""
        weights = {
            self._names.embedding: self.embedding.weight.detach(),
            self._names.head: self.head.weight.detach(),
        }
        totals = dict(zip(weights, self._totals, strict=False))
        with torch.no_grad():
            scores = {name: total.mul_(weights[name].abs()) for name, total in totals.items()}
        return LayerScores(None, {name: weights[name] for name in scores}, scores)


def _run_pass(
    model: PreTrainedModel, batch: SamplePass, by_layer: list[GradientSums], outside: _Vocabulary
) -> list[float]:
    """One forward and backward pass; the losses of its samples."""
    table = outside.embedding.weight.detach()
    columns = _answer_columns(batch)
    head_uses: list[Tensor] = []

    def keep_head(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        head_uses.append(args[0].detach())
        output.register_hook(head_uses.append)

    with ExitStack() as stack:
        known = stack.enter_context(
            rows_per_sample(outside.embedding, batch, lambda ids: table[ids.to(table.device)])
        )
        for sums in by_layer:
            stack.enter_context(sums.watching(batch.samples))
        stack.callback(outside.head.register_forward_hook(keep_head).remove)
        logits, columns = _logits(model, batch, columns, table.device)
        losses = answer_losses(logits, _labels_at(batch, columns).to(logits.device))
        refuse_infinite_losses(batch.samples, losses.detach())
        losses.sum().backward()
    gradient = known.weight.grad
    assert gradient is not None  # noqa: S101 - every causal model embeds its tokens
    given, head_gradient = head_uses
    own = [slice(*_own_columns(sample, columns)) for sample in batch.samples]
    outside.add(
        batch.samples,
        [given[row, part] for row, part in enumerate(own)],
        [head_gradient[row, part] for row, part in enumerate(own)],
        known.gradients(gradient),
    )
    return losses.tolist()


def _logits(
    model: PreTrainedModel, batch: SamplePass, columns: Int[Tensor, " kept"], device: torch.device
) -> tuple[Tensor, Int[Tensor, " kept"]]:
    """Logits, at the given positions where the model can do with those alone, and their positions."""
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    output = model(
        input_ids=batch.input_ids.to(device),
        attention_mask=batch.attention_mask.to(device),
        position_ids=batch.position_ids.to(device),
        use_cache=False,
        **({"logits_to_keep": columns.to(device)} if keeps else {}),
    )
    return output.logits, columns if keeps else torch.arange(batch.input_ids.shape[1])


def _answer_columns(batch: SamplePass) -> Int[Tensor, " kept"]:
    """Positions that predict an answer token of any sample, ascending."""
    needed = torch.zeros(batch.input_ids.shape[1], dtype=torch.bool)
    for sample in batch.samples:
        needed[sample.n_prompt - 1 : len(sample.token_ids) - 1] = True
    return needed.nonzero()[:, 0]


def _own_columns(sample: Sample, columns: Int[Tensor, " kept"]) -> tuple[int, int]:
    """Where a sample's own positions begin and end among those kept."""
    bounds = torch.tensor([sample.n_prompt - 1, len(sample.token_ids) - 1])
    start, end = torch.searchsorted(columns, bounds).tolist()
    return start, end


def _labels_at(batch: SamplePass, columns: Int[Tensor, " kept"]) -> Int[Tensor, "batch kept"]:
    """What each kept position predicts; ignored where that is no answer token of the sample."""
    labels = torch.full_like(batch.input_ids, IGNORE_INDEX)
    for row, sample in enumerate(batch.samples):
        answer = torch.tensor(sample.token_ids[sample.n_prompt :])
        labels[row, sample.n_prompt - 1 : len(sample.token_ids) - 1] = answer
    return labels[:, columns]


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """While in the block, no weight takes a gradient and nothing is dropped out."""
    was_training = [module for module in model.modules() if module.training]
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    model.eval()
    model.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)
        for module in was_training:
            module.training = True
