"""Each sample's own gradient of the embedding, row by row, whatever the model does with an embedded token."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from transfuse.transfer.absolute_gradients import GradientRows
from transfuse.transfer.samples import SamplePass


class SampleRows(NamedTuple):
    """Embedding rows of a pass, those of each sample a copy of their own."""

    ids: list[Int[Tensor, " known"]]
    """Of each sample, its distinct tokens, ascending."""
    weight: nn.Parameter
    """The rows of all samples in turn; what takes the gradient."""
    padding_id: int | None

    def gradients(self, gradient: Float[Tensor, "all_known hidden"]) -> list[GradientRows]:
        """The gradient of `weight` by sample; the embedding's padding row has none, as in autograd."""
        found = [
            GradientRows(ids, rows)
            for ids, rows in zip(self.ids, gradient.split([len(ids) for ids in self.ids]), strict=True)
        ]
        if self.padding_id is None:
            return found
        kept = [each.rows != self.padding_id for each in found]
        return [
            GradientRows(each.rows[mask], each.values[mask]) for each, mask in zip(found, kept, strict=True)
        ]


@contextmanager
def rows_per_sample(
    embedding: nn.Embedding,
    batch: SamplePass,
    rows_of: Callable[[Int[Tensor, " tokens"]], Float[Tensor, "tokens hidden"]],
) -> Iterator[SampleRows]:
    """While in the block, the embedding looks up only the rows of this pass, for every sample separately.

    Two samples with the same token read two copies of its row, so one backward pass gives each sample's gradient,
    through whatever scaling the embedding and the model apply.

    Args:
        embedding: its weight is put back afterwards; it may be on the meta device.
        batch: the only token ids it is given in the block.
        rows_of: rows of the true embedding, in the compute type and on the device.

    Yields:
        Which rows they are, and the parameter they are in.
    """
    ids = [torch.tensor(sorted(set(sample.token_ids))) for sample in batch.samples]
    local = torch.zeros_like(batch.input_ids)  # what padding reads does not matter
    first = 0
    for row, (known, length) in enumerate(zip(ids, batch.lengths, strict=True)):
        local[row, :length] = first + torch.searchsorted(known, batch.input_ids[row, :length])
        first += len(known)
    rows = rows_of(torch.cat(ids))
    compact = nn.Parameter(rows.detach().clone())
    whole, padding_id = embedding.weight, embedding.padding_idx
    local = local.to(compact.device)
    handle = embedding.register_forward_pre_hook(lambda _, given: (local, *given[1:]))
    embedding.weight, embedding.padding_idx = compact, None
    try:
        yield SampleRows([known.to(compact.device) for known in ids], compact, padding_id)
    finally:
        handle.remove()
        embedding.weight, embedding.padding_idx = whole, padding_id
