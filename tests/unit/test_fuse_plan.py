"""What a fusion is told to take, from configurations, tokenizers and texts alone."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from transfuse.errors import TransfuseError
from transfuse.fuse.distributions import cache_plan
from transfuse.io.token_spans import token_spans
from transfuse.recipes import fuse_plan
from transfuse.recipes.fuse_plan import fusion_plan, plan_fusion
from transfuse.recipes.fuse_schema import FuseRecipe
from transfuse.recipes.transfer_plan import Rates

RATES = Rates(flops_per_s=1e9, memory_bytes_per_s=1e9)
TEXTS = [f"Spain won the cup {n} times, and the final." for n in range(30)]


@pytest.fixture(scope="module")
def folders(make_model_folder) -> tuple[Path, Path]:
    """Target and source, whose weights are taken away: a plan reads none."""
    target = make_model_folder("plan-target", chat_template=None)
    source = make_model_folder("plan-source", chat_template=None, vocab_size=280, seed=1)
    for folder in (target, source):
        (folder / "model.safetensors").unlink()
    return target, source


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def make(folders, texts):
    def made(**keys: Any) -> FuseRecipe:
        tree = {"target": str(folders[0]), "sources": [str(folders[1])], "seed": 1, "texts": {"a": texts}}
        return FuseRecipe.model_validate({"precision": "float32", **tree, **keys})

    return made


def n_parameters(n_vocab: int) -> int:
    """Embeddings and head; in each of 2 layers query, output, key, value, MLP and norms; a last norm."""
    return 2 * n_vocab * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32


def test_figures_worked_by_hand(make, folders):
    from transformers import AutoTokenizer

    plan = fusion_plan(make(), RATES)
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in folders]
    n_tokens = [sum(len(each.token_ids) for each in token_spans(one, TEXTS)) for one in tokenizers]
    assert [each.n_tokens for each in plan.models] == n_tokens
    assert [each.n_parameters for each in plan.models] == [n_parameters(300), n_parameters(280)]
    assert [each.name for each in plan.models] == ["target", "plan-source"]
    assert plan.models[1].memory_bytes == 4 * n_parameters(280)
    assert plan.models[1].pass_s == 2 * n_parameters(280) * n_tokens[1] / 1e9
    assert (plan.n_pieces, plan.n_target_tokens, plan.n_trainings) == (30, n_tokens[0], 2)  # fused and CLM
    assert plan.training_s == pytest.approx(2 * 3 * 2 * n_parameters(300) * n_tokens[0] / 1e9)
    assert plan.training_memory_bytes == 16 * n_parameters(300)
    assert plan.result_bytes == 4 * n_parameters(300)
    assert (
        plan.disk_bytes
        == sum(each.cache_bytes for each in plan.models) + plan.target_bytes + plan.result_bytes
    )


def test_caches_take_what_is_planned(make, tiny_base_folder, texts):
    """Against the layout that the writer would choose for the same model."""
    from transfuse.io.models import load_model

    loaded = load_model(str(tiny_base_folder), precision="float32", device="cpu")
    recipe = make(sources=[str(tiny_base_folder)])
    header = cache_plan(loaded, recipe.distributions, [b""], 1)
    planned = fusion_plan(recipe, RATES).models[1]
    assert planned.cache_bytes == planned.n_tokens * header.layout.record_bytes


def test_what_is_there_or_left_out_costs_nothing(make, tmp_path):
    whole = fusion_plan(make(), RATES)
    cached = fusion_plan(make(caches={"plan-source": tmp_path, "target": tmp_path}), RATES)
    assert [(each.pass_s, each.cache_bytes) for each in cached.models] == [(0.0, 0)] * 2
    without = fusion_plan(make(fusion={"with_target": False}), RATES)
    assert without.models[0].cache_bytes == 0
    assert without.models[1].cache_bytes == whole.models[1].cache_bytes


def test_trainings_are_counted(make, folders):
    more = {"sources": [str(folders[1])] * 2, "n_seeds": 3}
    assert fusion_plan(make(**more, controls=["distilled", "clm", "ensemble"]), RATES).n_trainings == 12
    pairwise = fusion_plan(make(**more, strategy="pairwise", controls=[]), RATES)
    assert pairwise.n_trainings == 6
    assert pairwise.target_bytes == 2 * fusion_plan(make(), RATES).target_bytes
    adapted = fusion_plan(make(train={"method": "lora"}), RATES)
    assert adapted.result_bytes == 0
    assert adapted.training_memory_bytes < fusion_plan(make(), RATES).training_memory_bytes


def test_fewer_pieces_are_planned_in_proportion(make):
    whole, third = fusion_plan(make(), RATES), fusion_plan(make(n_pieces=10), RATES)
    assert third.n_pieces == 10
    assert third.n_target_tokens == pytest.approx(whole.n_target_tokens / 3, abs=1)


def test_long_files_are_estimated_from_some_of_their_texts(make, monkeypatch):
    whole = fusion_plan(make(), RATES)
    monkeypatch.setattr(fuse_plan, "MAX_PLANNED_TEXTS", 6)
    estimated = fusion_plan(make(), RATES)
    assert estimated.n_target_tokens == pytest.approx(whole.n_target_tokens, rel=0.05)
    assert estimated.n_pieces == pytest.approx(30, abs=1)


def test_the_table_says_it_all(make):
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(plan_fusion(make(caches={"plan-source": Path("there")}), RATES))
    printed = " ".join(console.file.getvalue().split())  # type: ignore[union-attr]
    assert "target" in printed
    assert "plan-source" in printed
    assert "30 pieces; 2 trainings of" in printed
    assert "Disk:" in printed


def test_a_model_that_is_not_there_is_named(make, tmp_path):
    with pytest.raises(TransfuseError, match="nowhere"):
        fusion_plan(make(sources=[str(tmp_path / "nowhere")]), RATES)
