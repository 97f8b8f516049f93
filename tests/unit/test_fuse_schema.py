"""The fuse recipe: defaults of the paper, names of sources, and what cannot run."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfuse.cli.fuse import fuse_tree, named_files
from transfuse.errors import RecipeError
from transfuse.recipes.fuse_schema import FuseRecipe, short_names
from transfuse.recipes.schema import make_recipe


def recipe(*overrides: str, **keys: Any) -> FuseRecipe:
    tree = {"kind": "fuse", "target": "a/t", "sources": ["b/s"], "seed": 1, "texts": {"wiki": "w.jsonl"}}
    made = make_recipe({**tree, **keys}, overrides)
    assert isinstance(made, FuseRecipe)
    return made


def test_the_papers_training_settings_stand_beside_those_given() -> None:
    plain = recipe()
    train = plain.train
    assert (train.method, train.n_epochs, train.batch_rows, train.weight_decay) == ("full", 1, 128, 0.1)
    assert (train.warmup_share, train.betas, train.peak_learning_rate) == (0.008, (0.9, 0.95), 1e-5)
    assert (plain.fusion.clm_weight, plain.fusion.with_target, plain.distributions.k) == (0.9, True, 10)
    given_some = recipe("train.batch_rows=8", "train.learning_rate=0.001").train
    assert (given_some.batch_rows, given_some.learning_rate, given_some.weight_decay) == (8, 0.001, 0.1)


def test_lora_takes_its_own_learning_rate() -> None:
    assert recipe("train.method=lora").train.peak_learning_rate > 1e-5
    assert recipe("train.method=lora", "train.learning_rate=0.5").train.learning_rate == 0.5


def test_paths_are_absolute() -> None:
    made = recipe(caches={"s": "cache"}, evaluate={"texts": {"wiki": "e.jsonl"}})
    assert made.texts["wiki"] == Path("w.jsonl").absolute()
    assert made.caches["s"] == Path("cache").absolute()
    assert made.evaluate.texts["wiki"] == Path("e.jsonl").absolute()


def test_sources_are_named_by_the_last_part_of_their_references() -> None:
    assert short_names(["org/small", "models/expert.gguf", "plain"]) == ["small", "expert", "plain"]
    assert short_names(["a/m", "b/m", "c/m"]) == ["m", "m-2", "m-3"]
    assert short_names(["a/m", "b/m-3", "c/m"]) == ["m", "m-3", "m-4"]
    assert short_names(["x/target", "..", "."]) == ["target-1", "source", "source-3"]


@given(
    st.lists(st.sampled_from(["a/m", "b/m", "m-2", "m-3", "m-4", "target", "target-1", ".", "/"]), max_size=7)
)
def test_no_two_sources_have_one_name_and_none_the_targets(references: list[str]) -> None:
    names = short_names(references)
    assert len({*names}) == len(references)
    assert "target" not in names
    assert all(name.strip(".") and "/" not in name for name in names)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sources": []}, "sources"),
        ({"texts": {}}, "texts"),
        ({"seed": None}, "seed"),
        ({"strategy": "pairwise"}, "pairwise merges one result a source; give two sources or more"),
        (
            {"strategy": "pairwise", "sources": ["a", "b"], "train": {"method": "lora"}},
            "pairwise merges whole models; leave train.method at 'full'",
        ),
        ({"caches": {"other": "c"}}, "caches: 'other' is no source; expected target, s"),
        (
            {"distributions": {"k": 0}},
            "distributions.k is 0, but divergence cross-entropy learns kept tokens",
        ),
        (
            {"fusion": {"divergence": "chunk-likelihood", "align": "min-edit"}},
            "compares chunks of bytes; set align to 'exact'",
        ),
        ({"fusion": {"clm_weight": 1.5}}, "fusion.clm_weight"),
        ({"fusion": {"rule": "best"}}, "fusion.rule"),
        (
            {"merged": [{"method": "linear"}, {"method": "linear"}]},
            "merged: each method once, got linear, linear",
        ),
        ({"max_length": 3}, "max_length"),
    ],
)
def test_what_cannot_run_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(**keys)


def test_no_kept_tokens_are_needed_where_chunks_are_learned() -> None:
    assert recipe("distributions.k=0", "fusion.divergence=chunk-likelihood").distributions.k == 0


def test_the_command_lines_options_are_keys_of_the_recipe() -> None:
    tree = fuse_tree(
        target="t",
        sources=["s"],
        texts=named_files(["wiki=a/b=c.jsonl", "code/python.train.jsonl"], "--text"),
        eval_texts={},
        rule="min-ce",
        loss="uld",
        clm_weight=0.0,
        method="lora",
        merge_method=None,
        seeds=3,
        trust_remote_code=False,
    )
    assert tree == {
        "kind": "fuse",
        "target": "t",
        "sources": ["s"],
        "texts": {"wiki": "a/b=c.jsonl", "python": "code/python.train.jsonl"},
        "evaluate": {"texts": {}},
        "fusion": {"rule": "min-ce", "divergence": "uld", "clm_weight": 0.0},
        "train": {"method": "lora"},
        "n_seeds": 3,
    }


def test_two_files_of_one_domain_are_refused() -> None:
    message = r"--eval: two files are named 'wiki'; name them: --eval NAME=FILE"
    with pytest.raises(RecipeError, match=message):
        named_files(["wiki.jsonl", "wiki=other.jsonl"], "--eval")
