"""The recipe of an evaluation: paths made absolute wherever they stand, systems told apart, faults named."""

from pathlib import Path
from typing import Any

import pytest

from transfuse.errors import RecipeError
from transfuse.recipes.eval_schema import DEFAULT_PASSAGES, EvalRecipe
from transfuse.recipes.recipe_paths import absolute_paths
from transfuse.recipes.schema import load_recipe, make_recipe


def eval_recipe(**given: Any) -> EvalRecipe:
    recipe = make_recipe({"kind": "eval", "model": "m", "seed": 1, "texts": {"generic": None}, **given})
    assert isinstance(recipe, EvalRecipe)
    return recipe


def test_paths_are_relative_to_the_recipe_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "eval.yaml").write_text(
        """
kind: eval
model: model
seed: 1
adapter: adapter
ensemble: [model, some/hub-id]
retrieval: {documents: docs, embedder: null, mode: lexical}
benchmarks: {gsm8k: {data: tasks/gsm8k}}
questions: {reworded: {qa: qa.jsonl, facts: /facts.jsonl}}
unanswerable: {file: none.jsonl}
samples: {sums: {file: test.jsonl}}
texts: {wiki: wiki.jsonl, generic: null}
coverage: {facts: facts.jsonl, qa: qa.jsonl}
against: {model: other, adapter: theirs}
"""
    )
    recipe = load_recipe(tmp_path / "eval.yaml", ["against.adapter=here"])
    assert isinstance(recipe, EvalRecipe)
    assert recipe.model == str(tmp_path / "model")
    assert recipe.adapter == tmp_path / "adapter"
    assert recipe.ensemble == [str(tmp_path / "model"), "some/hub-id"]
    assert recipe.retrieval is not None
    assert recipe.retrieval.documents == tmp_path / "docs"
    assert recipe.benchmarks["gsm8k"].data == tmp_path / "tasks" / "gsm8k"
    assert recipe.questions["reworded"].qa == tmp_path / "qa.jsonl"
    assert recipe.questions["reworded"].facts == Path("/facts.jsonl")
    assert recipe.texts == {"wiki": tmp_path / "wiki.jsonl", "generic": None}
    assert recipe.against is not None
    assert recipe.against.model == "other"
    assert recipe.against.adapter == Path.cwd() / "here"  # the command line's own folder


def test_recorded_references_are_paths(tmp_path: Path) -> None:
    tree = {"model": "recorded:replies.jsonl", "seed": 1}
    absolute_paths(EvalRecipe, tree, tmp_path)
    assert tree["model"] == f"recorded:{tmp_path}/replies.jsonl"


def test_what_does_not_fit_is_left_for_the_check(tmp_path: Path) -> None:
    tree: dict[str, Any] = {"model": 3, "questions": ["a"], "texts": None, "against": "other"}
    absolute_paths(EvalRecipe, tree, tmp_path)
    assert tree == {"model": 3, "questions": ["a"], "texts": None, "against": "other"}


def test_systems_by_row() -> None:
    assert list(eval_recipe().systems) == ["model"]
    recipe = eval_recipe(against={"model": "n"}, adapter="a")
    assert [(row, each.model) for row, each in recipe.systems.items()] == [("model", "m"), ("against", "n")]
    assert recipe.systems["model"].adapter == Path.cwd() / "a"


def test_number_of_passages(tmp_path: Path) -> None:
    given = {"documents": tmp_path, "embedder": None, "mode": "lexical"}
    for extra, expected in (({}, DEFAULT_PASSAGES), ({"k": 5}, 5), ({"tuning": "qa.jsonl"}, None)):
        retrieval = eval_recipe(retrieval={**given, **extra}).retrieval
        assert retrieval is not None
        assert retrieval.n_passages == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"texts": {}}, "nothing to measure; name benchmarks"),
        ({"retrieval": {"documents": "d"}, "section_context": {"documents": "d"}}, "choose one of them"),
        ({"questions": {"a/b": {"qa": "f"}}}, "should match pattern"),
        ({"questions": {"a": {"q": "f"}}}, "questions.a.q: unknown key"),
        ({"samples": {"a": {"file": "f", "answers": "essay"}}}, "samples.a.answers"),
    ],
)
def test_faults_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        eval_recipe(**given)
