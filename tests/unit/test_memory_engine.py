"""The engine over a loaded model: what it hands over, what it leaves as it was, what it refuses."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from transfuse.errors import DataError, TrainingError
from transfuse.train.batches import TrainingRow
from transfuse.transfer.memory_engine import memory_sensitivity
from transfuse.transfer.sensitivity import ModelNames

NAMES = ModelNames("model.layers", "model.embed_tokens", "lm_head")
ROWS = [TrainingRow([1, 2, 3, 4], 2), TrainingRow([5, 6, 7], 1)]


@pytest.fixture
def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4,
        attention_dropout=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def scores_of(model: LlamaForCausalLM, rows: list[TrainingRow], **settings: int) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    memory_sensitivity(
        model,
        rows,
        lambda given: found.update({f"{given.layer} {name}": s.clone() for name, s in given.scores.items()}),
        names=NAMES,
        **settings,
    )
    return found


def test_the_model_is_left_as_it_was(model):
    model.train()
    model.model.norm.weight.requires_grad_(False)
    needed = [weight.requires_grad for weight in model.parameters()]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    first = scores_of(model, ROWS)
    again = scores_of(model, ROWS)
    assert model.training
    assert [weight.requires_grad for weight in model.parameters()] == needed
    assert all(weight.grad is None for weight in model.parameters())
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0)
    for name, score in first.items():  # a model in training mode is not measured under dropout
        torch.testing.assert_close(again[name], score, rtol=0, atol=0)


def test_scores_do_not_depend_on_how_samples_are_passed(model):
    together = scores_of(model, ROWS)
    alone = scores_of(model, ROWS, max_tokens_per_pass=1)
    each = [scores_of(model, [row]) for row in ROWS]
    for name, score in together.items():
        torch.testing.assert_close(alone[name], score, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(each[0][name] + each[1][name], score, rtol=1e-4, atol=1e-7)


def test_progress_and_summary(model):
    told: list[tuple[int, int, str]] = []
    rows = [TrainingRow([9, 1, 2, 3, 4, 5], 5), *ROWS, TrainingRow([1, 2], 2)]
    summary = memory_sensitivity(
        model,
        rows,
        lambda given: None,
        names=NAMES,
        max_tokens_per_pass=4,
        on_progress=lambda *numbers: told.append(numbers),
    )
    assert told == [(1, 3, "passes"), (2, 3, "passes"), (3, 3, "passes")]
    assert (summary.n_samples, summary.n_cut, summary.bytes_read) == (3, 1, 0)
    assert [each.what for each in summary.dropped] == ["sample 4"]
    with torch.no_grad():
        logits = model.eval()(torch.tensor([[5, 6, 7]])).logits[0, :2]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([6, 7]))
    assert summary.losses[2] == pytest.approx(float(expected), rel=1e-5)


def test_refusals_name_what_is_wrong(model):
    with pytest.raises(DataError, match="at least one sample"):
        scores_of(model, [])
    with torch.no_grad():
        model.model.embed_tokens.weight[6] = float("nan")
    with pytest.raises(TrainingError, match="sample 2: the teacher's loss is nan"):
        scores_of(model, ROWS)
    assert scores_of(model, ROWS[:1])  # and the model can be used again
