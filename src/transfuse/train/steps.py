"""Which rows each optimizer step learns, and how many steps a training takes."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import final

import torch

from transfuse.train.settings import TrainSettings

_WINDOW_BATCHES = 16
"""Length-aware batches are cut from sorted windows of this many batches."""


def plan_epoch(
    lengths: Sequence[int], batch_rows: int, *, by_length: bool, generator: torch.Generator
) -> list[list[int]]:
    """Row indices of each batch of one epoch; every row once, the last batch perhaps smaller.

    Args:
        lengths: tokens of each row.
        batch_rows: rows a batch.
        by_length: whether a batch takes rows of like length (for padded batches). Lengths are sorted within
            windows of 16 batches of the shuffled rows, and the batches shuffled again, so that the order
            stays random.
        generator: seeded; the same state gives the same plan.

    Returns:
        Batches of indices into `lengths`.
    """
    order: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
    if not by_length:
        return [order[start : start + batch_rows] for start in range(0, len(order), batch_rows)]
    window = batch_rows * _WINDOW_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        ranked = sorted(order[start : start + window], key=lambda index: lengths[index])
        batches += [ranked[first : first + batch_rows] for first in range(0, len(ranked), batch_rows)]
    shuffled: list[int] = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[index] for index in shuffled]


@final
class StepPlan:
    """The rows of every step of a training: a function of the seed, the rows' lengths and the step alone."""

    def __init__(
        self, lengths: Sequence[int], settings: TrainSettings, seed: int, *, by_length: bool
    ) -> None:
        """Count the steps.

        Args:
            lengths: tokens of each row; at least one row.
            settings: rows a step, and epochs or tokens to train.
            seed: of the order of rows.
            by_length: see `plan_epoch`.
        """
        self._lengths, self._settings, self._seed, self._by_length = lengths, settings, seed, by_length
        self._epoch: tuple[int, list[list[int]]] = (-1, [])
        n_batches = math.ceil(len(lengths) / settings.batch_rows)
        self.steps_per_epoch = math.ceil(n_batches / settings.gradient_accumulation)
        self.n_steps = self._n_steps()
        """With `n_tokens`, up to and with the step that reads the last of them."""

    def rows(self, step: int) -> list[int]:
        """Indices of the rows of a step, which counts from 0."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self._of_epoch(epoch)[within]

    def _n_steps(self) -> int:
        n_tokens, per_epoch = self._settings.n_tokens, sum(self._lengths)
        if n_tokens is None:
            return self.steps_per_epoch * self._settings.n_epochs
        whole, left = divmod(n_tokens, per_epoch)
        if not left:
            return self.steps_per_epoch * whole
        read = accumulate(sum(self._lengths[index] for index in rows) for rows in self._of_epoch(whole))
        last = next(within for within, n_read in enumerate(read) if n_read >= left)
        return self.steps_per_epoch * whole + last + 1

    def _of_epoch(self, epoch: int) -> list[list[int]]:
        if self._epoch[0] != epoch:
            settings = self._settings
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            batches = plan_epoch(
                self._lengths, settings.batch_rows, by_length=self._by_length, generator=generator
            )
            n_joined = settings.gradient_accumulation
            steps = [batches[start : start + n_joined] for start in range(0, len(batches), n_joined)]
            self._epoch = (epoch, [[index for batch in step for index in batch] for step in steps])
        return self._epoch[1]
