"""Gradients of embedding rows, each sample its own."""

import torch
from torch import nn

from transfuse.transfer.embedding_rows import rows_per_sample
from transfuse.transfer.samples import Sample, sample_passes


class Scaled(nn.Embedding):
    """An embedding that multiplies what it looks up."""

    def forward(self, input_ids):
        return super().forward(input_ids) * 3.0


def test_gradients_equal_those_of_each_sample_alone():
    torch.manual_seed(0)
    embedding = Scaled(6, 4, padding_idx=2)
    embedding.weight.requires_grad_(False)
    whole = embedding.weight
    (batch,) = sample_passes([Sample(1, [5, 2, 5], 1), Sample(2, [0, 5, 2, 1], 1)], 100)
    factors = torch.randn(2, 4, 4)
    factors[0, 3] = 0.0  # padding gives no loss
    with rows_per_sample(embedding, batch, lambda ids: whole[ids]) as rows:
        output = embedding(batch.input_ids)
        (output * factors).sum().backward()
    assert embedding.weight is whole
    assert embedding.padding_idx == 2
    torch.testing.assert_close(output[1], embedding(torch.tensor([0, 5, 2, 1])))
    for n, found in enumerate(rows.gradients(rows.weight.grad)):
        alone = nn.Parameter(whole.detach().clone())
        ids = batch.input_ids[n, : batch.lengths[n]]
        looked_up = nn.functional.embedding(ids, alone, padding_idx=2) * 3.0
        (looked_up * factors[n, : batch.lengths[n]]).sum().backward()
        expected = torch.zeros(6, 4)
        expected[found.rows] = found.values
        torch.testing.assert_close(expected, alone.grad)
        assert found.rows.tolist() == sorted(set(ids.tolist()) - {2})


def test_the_embedding_is_put_back_after_an_error():
    embedding = nn.Embedding(4, 2)
    whole = embedding.weight
    (batch,) = sample_passes([Sample(1, [0, 1], 1)], 100)
    try:
        with rows_per_sample(embedding, batch, lambda ids: whole[ids]):
            raise KeyError
    except KeyError:
        pass
    torch.testing.assert_close(embedding(torch.tensor([3])), whole[3:])
