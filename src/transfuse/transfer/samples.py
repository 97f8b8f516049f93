"""Seed samples of the sensitivity engines: fitted to the context, in passes of like length, each with its own loss."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from transfuse.errors import DataError, TrainingError
from transfuse.train.batches import TrainingRow
from transfuse.types import IGNORE_INDEX, Dropped


class Sample(NamedTuple):
    """One seed; its loss is on `token_ids[n_prompt:]`."""

    number: int
    """Place among the given rows, from 1."""
    token_ids: list[int]
    n_prompt: int

    @property
    def n_answer(self) -> int:
        """Tokens that give loss."""
        return len(self.token_ids) - self.n_prompt


class FittedSamples(NamedTuple):
    """Samples that fit the context."""

    samples: list[Sample]
    n_cut: int
    """How many lost the beginning of their prompt."""
    dropped: list[Dropped]


class SamplePass(NamedTuple):
    """Samples that go through a layer together, padded on the right."""

    samples: list[Sample]
    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    position_ids: Int[Tensor, "batch pos"]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample, padding not counted."""
        return [len(sample.token_ids) for sample in self.samples]


def fit_samples(rows: Sequence[TrainingRow], context_tokens: int | None, n_vocab: int) -> FittedSamples:
    """Samples the teacher can read whole; of too long ones the prompt loses its beginning, never the answer.

    Args:
        rows: weights and soft targets are not looked at: every answer token counts alike.
        context_tokens: the greatest length; None where there is no limit.
        n_vocab: rows of the teacher's embedding.

    Returns:
        What is kept, in the order given, how many were shortened, and what was left out.

    Raises:
        DataError: no sample is left, or a token is not in the teacher's vocabulary.
    """
    samples: list[Sample] = []
    dropped: list[Dropped] = []
    n_cut = 0
    for number, row in enumerate(rows, start=1):
        sample = Sample(number, row.token_ids, row.n_prompt)
        why = _unusable(sample, context_tokens)
        if why:
            dropped.append(Dropped("record", f"sample {number}", why))
            continue
        if max(row.token_ids) >= n_vocab or min(row.token_ids) < 0:
            raise DataError(
                f"sample {number}: token {max(row.token_ids)} is not in the teacher's vocabulary of {n_vocab}; "
                "encode the samples with the teacher's own tokenizer."
            )
        n_over = max(0, len(row.token_ids) - (context_tokens or len(row.token_ids)))
        n_cut += n_over > 0
        samples.append(Sample(number, row.token_ids[n_over:], row.n_prompt - n_over))
    if not samples:
        reasons = "; ".join(f"{each.what}: {each.reason}" for each in dropped[:3])
        raise DataError(
            "expected at least one sample with an answer that fits the teacher's context, got none"
            f"{f' ({reasons})' if reasons else ''}; give seed samples."
        )
    return FittedSamples(samples, n_cut, dropped)


def sample_passes(samples: Sequence[Sample], max_tokens: int) -> list[SamplePass]:
    """Samples of like length together, at most `max_tokens` a pass with padding; a longer one goes alone."""
    passes: list[SamplePass] = []
    batch: list[Sample] = []
    for sample in sorted(samples, key=lambda each: len(each.token_ids)):
        if batch and (len(batch) + 1) * len(sample.token_ids) > max_tokens:
            passes.append(_pass_of(batch))
            batch = []
        batch.append(sample)
    return [*passes, _pass_of(batch)]


def answer_batches(samples: Sequence[Sample], max_answer_tokens: int) -> list[list[Sample]]:
    """Samples with answers of like length together, at most so many answer tokens with padding."""
    batches: list[list[Sample]] = [[]]
    for sample in sorted(samples, key=lambda each: each.n_answer):
        if batches[-1] and (len(batches[-1]) + 1) * sample.n_answer > max_answer_tokens:
            batches.append([])
        batches[-1].append(sample)
    return batches


def answer_labels(samples: Sequence[Sample]) -> Int[Tensor, "batch answer"]:
    """Each sample's answer from the left, padded with the ignored label."""
    labels = torch.full((len(samples), max(sample.n_answer for sample in samples)), IGNORE_INDEX)
    for row, sample in enumerate(samples):
        labels[row, : sample.n_answer] = torch.tensor(sample.token_ids[sample.n_prompt :])
    return labels


def answer_losses(
    logits: Float[Tensor, "batch answer vocab"], labels: Int[Tensor, "batch answer"]
) -> Float[Tensor, " batch"]:
    """Mean nats over each sample's answer tokens, with a gradient to each sample's own logits."""
    nats = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return nats.view_as(labels).sum(1) / (labels != IGNORE_INDEX).sum(1)


def refuse_infinite_losses(samples: Sequence[Sample], losses: Float[Tensor, " batch"]) -> None:
    """Raise a TrainingError that names the first sample whose loss is NaN or infinite."""
    for sample, loss in zip(samples, losses.tolist(), strict=True):
        if not torch.isfinite(torch.tensor(loss)):
            raise TrainingError(
                f"sample {sample.number}: the teacher's loss is {loss}, expected a finite number; check that its "
                "weights are whole, compute in float32, or leave that sample out."
            )


def _unusable(sample: Sample, context_tokens: int | None) -> str:
    if sample.n_prompt < 1:
        return "it has no prompt token, so nothing predicts its first answer token"
    if sample.n_answer < 1:
        return "it has no answer token"
    if context_tokens is not None and sample.n_answer >= context_tokens:
        return (
            f"its answer alone has {sample.n_answer} tokens; the teacher's context of {context_tokens} tokens "
            "holds the answer and at least one token before it"
        )
    return ""


def _pass_of(samples: list[Sample]) -> SamplePass:
    longest = max(len(sample.token_ids) for sample in samples)
    input_ids = torch.zeros(len(samples), longest, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, sample in enumerate(samples):
        n_tokens = len(sample.token_ids)
        input_ids[row, :n_tokens] = torch.tensor(sample.token_ids)
        attention_mask[row, :n_tokens] = 1
    positions = torch.arange(longest).repeat(len(samples), 1)
    return SamplePass(list(samples), input_ids, attention_mask, positions)
