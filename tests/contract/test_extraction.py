"""The extraction as a whole against the published procedure, done with plain autograd and full decompositions."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from transfuse.train.batches import TrainingRow
from transfuse.transfer.assembly import layer_scores, starting_factors
from transfuse.transfer.extraction import Wanted
from transfuse.transfer.extraction_files import Extractor, load_extraction
from transfuse.transfer.families import architecture_of
from transfuse.transfer.layers import choose_layers
from transfuse.transfer.memory_engine import memory_sensitivity
from transfuse.transfer.sensitivity import ModelNames
from transfuse.transfer.settings import ExtractionSettings

RANK = 4


def published_scores(model: nn.Module, rows: list[TrainingRow]) -> dict[str, Tensor]:
    """S_i = sum over samples of |theta_i * dL(x_j) / dtheta_i|, one backward pass a sample."""
    scores = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for row in rows:
        model.zero_grad()
        labels = torch.tensor([[-100] * row.n_prompt + row.token_ids[row.n_prompt :]])
        model(torch.tensor([row.token_ids]), labels=labels).loss.backward()
        for name, weight in model.named_parameters():
            scores[name] += (weight * weight.grad).abs().detach()
    return scores


def published_block(scores: Tensor, n_rows: int, n_columns: int) -> tuple[int, int]:
    """The window of the greatest sum, all windows compared."""
    places = [
        (row, column)
        for row in range(scores.shape[0] - n_rows + 1)
        for column in range(scores.shape[1] - n_columns + 1)
    ]
    wide = scores.double()
    return max(places, key=lambda at: float(wide[at[0] : at[0] + n_rows, at[1] : at[1] + n_columns].sum()))


@pytest.fixture(scope="module")
def pair(make_model_folder: Callable) -> tuple[nn.Module, nn.Module]:
    big = {"hidden_size": 40, "intermediate_size": 72, "num_hidden_layers": 4, "num_attention_heads": 5}
    teacher = make_model_folder("big", seed=3, num_key_value_heads=5, **big)
    student = make_model_folder("small", seed=4, num_key_value_heads=4)
    loaded = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (teacher, student)
    ]
    return loaded[0].eval(), loaded[1].eval()


def test_layers_blocks_and_factors_are_those_of_the_published_procedure(
    pair: tuple[nn.Module, nn.Module], tmp_path: Path
) -> None:
    teacher, student = pair
    rows = [TrainingRow([5 + n, 60, 70 + n, 80, 9, 100 + 3 * n], 2 + n % 2) for n in range(4)]
    expected = published_scores(teacher, rows)
    by_layer = [
        sum(float(s.sum()) for name, s in expected.items() if f"layers.{n}." in name and s.ndim == 2)
        for n in range(4)
    ]
    layers = sorted(sorted(range(4), key=lambda n: -by_layer[n])[:2])

    big, small = architecture_of(teacher.config), architecture_of(student.config)
    tokens = torch.arange(small.vocab)
    wanted = Wanted(big, small, frozenset(small.roles), "submatrix", RANK, tokens, seed=17)
    names = ModelNames(big.layers, big.embedding.name, big.head.name)
    memory_sensitivity(teacher, rows, Extractor(wanted, tmp_path), names=names)
    extractions = [load_extraction(tmp_path, n) for n in range(4)]
    torch.testing.assert_close(
        torch.tensor(layer_scores(extractions)), torch.tensor(by_layer), rtol=1e-4, atol=0
    )
    chosen = choose_layers("sensitive", layer_scores(extractions), 2, torch.Generator())
    assert chosen == layers
    outside = load_extraction(tmp_path, None)
    start = starting_factors([extractions[n] for n in chosen], outside, "method", small, ExtractionSettings())

    theirs = dict(teacher.named_parameters())
    assert {f"{name}.weight" for name in start} == {n for n, w in student.named_parameters() if w.ndim == 2}
    for name, weight in student.named_parameters():
        if weight.ndim != 2:
            continue
        source = name
        for number, layer in enumerate(layers):
            source = source.replace(f"layers.{number}.", f"layers.*{layer}.") if "*" not in source else source
        source = source.replace("*", "")
        row, column = published_block(expected[source], *weight.shape)
        block = theirs[source][row : row + weight.shape[0], column : column + weight.shape[1]].detach()
        left, values, right = torch.linalg.svd(block)
        best = left[:, :RANK] * values[:RANK] @ right[:RANK]
        up, down = start[name.removesuffix(".weight")]
        torch.testing.assert_close(up @ down, best, rtol=1e-3, atol=1e-4 * float(best.abs().max()))
        torch.testing.assert_close(down @ down.T, torch.eye(RANK), rtol=0, atol=1e-4)  # A = V^T, B = U S
