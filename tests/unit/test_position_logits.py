"""The head of every family, run on chosen positions, gives what the whole model gives."""

import pytest
import torch

from tiny_families import EXTRAS, random_model, tiny_config
from transfuse.fuse.position_logits import PositionLogits


@pytest.mark.parametrize("variant", EXTRAS)
def test_chosen_positions_have_the_logits_of_the_whole_model(variant):
    model = random_model(tiny_config(variant))
    ids = torch.arange(24).reshape(2, 12) % 50
    logits = PositionLogits(model, torch.float32)
    assert logits.is_split
    assert logits.n_logits == 50
    states = logits.states(ids)
    with torch.no_grad():
        expected = model(ids).logits
    chosen = torch.tensor([11, 0, 3])
    torch.testing.assert_close(logits.logits(states[1, chosen]), expected[1, chosen], atol=1e-4, rtol=1e-4)
    with torch.no_grad():  # and the model is as it was
        torch.testing.assert_close(model(ids).logits, expected, atol=0, rtol=0)


def test_capping_and_scaling_of_logits_are_kept():
    """The families above hold some that change the head's outputs; without that the test would say little."""
    capped, scaled = tiny_config("gemma2"), tiny_config("granite", logits_scaling=3.0)
    assert capped.final_logit_softcapping == 30.0
    model = random_model(scaled)
    logits = PositionLogits(model, torch.float32)
    states = logits.states(torch.tensor([[1, 2, 3]]))[0]
    torch.testing.assert_close(logits.logits(states) * 3, model.get_output_embeddings()(states))


def test_a_model_that_would_give_other_logits_is_run_whole():
    model = random_model(tiny_config("llama"))
    plain = model.forward

    def adds_positions(input_ids, **options):  # a head that looks at the tokens too
        output = plain(input_ids=input_ids, **options)
        output.logits = output.logits + input_ids[:, :, None]
        return output

    model.forward = adds_positions
    logits = PositionLogits(model, torch.float32)
    assert not logits.is_split
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(logits.logits(logits.states(ids)[0]), model(input_ids=ids).logits[0])
