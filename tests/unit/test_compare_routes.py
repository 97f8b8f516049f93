import json
from pathlib import Path
from typing import Any

import pytest

from transfuse.errors import RecipeError
from transfuse.recipes.compare_plan import entries
from transfuse.recipes.compare_questions import select_questions
from transfuse.recipes.compare_routes import (
    ROUTES,
    Materials,
    check_rows,
    merge_words,
    nested,
    system_tree,
    training_recipe,
)
from transfuse.recipes.compare_schema import CompareRecipe
from transfuse.recipes.fuse_schema import FuseRecipe
from transfuse.recipes.schema import InjectRecipe, load_recipe, make_recipe
from transfuse.recipes.transfer_schema import TransferRecipe

ROOT = Path(__file__).parents[2]
KNOWLEDGE = {
    "documents": "/d/doc.md",
    "facts": "/d/facts.jsonl",
    "qa": "/d/qa.jsonl",
    "teacher": "big",
    "train_file": "/d/train.jsonl",
    "task_adapter": "/d/adapter",
    "texts": {"wiki": "/d/wiki.jsonl"},
    "sources": ["one", "two"],
}


def recipe(rows: dict[str, Any], **more: Any) -> CompareRecipe:
    tree = {"kind": "compare", "student": "small", "seed": 17, "knowledge": KNOWLEDGE, "rows": rows, **more}
    made = make_recipe(tree)
    assert isinstance(made, CompareRecipe)
    return made


def trained(made: CompareRecipe, row: str, **more: Any) -> Any:
    return training_recipe(made, row, Materials.given(made), **{"seed": 17, **more})


def test_every_route_that_trains_gives_a_recipe_that_measures_nothing():
    made = recipe({name: {"route": name} for name, route in ROUTES.items() if route.train})
    for name in made.rows:
        training = trained(made, name)
        match training:
            case InjectRecipe():
                assert training.rag is None
                assert not training.evaluate.texts
            case TransferRecipe():
                assert training.eval_file is None
                assert training.controls == []
            case FuseRecipe():
                assert not training.evaluate.texts
                assert training.controls == []
            case _:
                raise AssertionError(name)


def test_seeds_train_on_the_same_facts():
    made = recipe({"inject": {"route": "inject"}})
    one, other = (trained(made, "inject", seed=seed) for seed in (17, 18))
    assert (one.seed, other.seed) == (17, 18)
    assert one.kept_out_seed == other.kept_out_seed == 17


def test_a_row_sets_dotted_and_nested_keys_and_budgets_come_on_top():
    made = recipe(
        {
            "inject": {
                "route": "inject",
                "set": {"scale": 5, "train.n_epochs": 3, "train": {"lora": {"rank": 8}}},
            }
        },
        budget={"kinds": ["equal-tokens"], "training_tokens": 1000},
    )
    training = trained(made, "inject", budget="equal-tokens", learning_rate=0.5)
    assert (training.scale, training.train.n_epochs, training.train.lora.rank) == (5, 3, 8)
    assert (training.train.n_tokens, training.train.learning_rate) == (1000, 0.5)
    assert trained(made, "inject").train.n_tokens is None


def test_nested_keys_by_hand():
    assert nested({"a.b": 1, "a": {"c": 2}, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}
    assert nested({"a": {"b.c": 1}}) == {"a": {"b": {"c": 1}}}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"route": "injekt"}, "unknown route 'injekt'; did you mean 'inject'?"),
        ({"route": "inject", "set": {"documents": "x"}}, "'documents' is the same for all rows"),
        ({"route": "inject", "set": {"train.lerning_rate": 1}}, "train.lerning_rate: unknown key"),
        ({"route": "lora", "set": {"train.n_epochs": 0}}, "rows.row.set: train.n_epochs"),
        ({"route": "base", "set": {"scale": 1}}, "trains nothing, so there is nothing to set"),
        ({"route": "base", "adapter": "x"}, "model and adapter belong to route given"),
        ({"route": "given"}, "route given needs a model or an adapter"),
        ({"route": "inject", "members": ["a"]}, "members belong to routes ensemble and merge"),
        ({"route": "oracle", "retrieval": True}, "has the right section already"),
        ({"route": "merge", "members": ["a"]}, "needs two models or more"),
        ({"route": "merge", "members": ["a", "a"]}, "the models to merge are all the same"),
        ({"route": "merge", "set": {"method": "tyes"}}, "Did you mean 'ties'?"),
        (
            {"route": "merge", "set": {"density": 0.3}},
            "density: Extra inputs are not permitted (method linear)",
        ),
    ],
)
def test_a_faulty_row_is_refused_by_name(row: dict[str, Any], told: str):
    with pytest.raises(RecipeError, match=r"rows\.row") as refusal:
        check_rows(recipe({"row": row}))
    assert told in str(refusal.value)


@pytest.mark.parametrize(
    ("route", "key"),
    [
        ("inject", "documents"),
        ("lora", "train_file"),
        ("transfer", "teacher"),
        ("clm", "texts"),
        ("fuse", "sources"),
    ],
)
def test_a_route_without_its_knowledge_says_which_key_to_add(route: str, key: str):
    less = {name: value for name, value in KNOWLEDGE.items() if name != key}
    if key == "documents":
        less = {name: value for name, value in less.items() if name not in ("facts", "qa")}
    made = recipe({"row": {"route": route}}, knowledge=less, evaluate={"texts": {"generic": None}})
    with pytest.raises(RecipeError, match=f"rows.row: route {route} needs knowledge.{key}"):
        check_rows(made)


def test_systems_of_rows(tmp_path: Path):
    made = recipe(
        {
            "base": {"route": "base"},
            "rag": {"route": "base", "retrieval": {"k": 2, "mode": "lexical", "embedder": None}},
            "searched": {"route": "base", "retrieval": True},
            "oracle": {"route": "oracle"},
            "ensemble": {"route": "ensemble"},
            "given": {"route": "given", "adapter": "/d/adapter"},
        }
    )
    trees = {name: system_tree(made, row, None, Path("/q/tuning.jsonl")) for name, row in made.rows.items()}
    assert trees["base"] == {"model": "small"}
    assert (trees["rag"]["retrieval"]["k"], trees["rag"]["retrieval"]["tuning"]) == (2, None)
    assert trees["searched"]["retrieval"]["tuning"] == "/q/tuning.jsonl"
    assert trees["oracle"]["section_context"] == {"documents": "/d/doc.md"}
    assert trees["ensemble"] == {"model": "one", "ensemble": ["two"]}
    assert trees["given"] == {"model": "small", "adapter": "/d/adapter"}
    for name in ("adapter", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    row = made.rows["base"]
    assert system_tree(made, row, tmp_path / "adapter", None)["adapter"] == str(tmp_path / "adapter")
    assert system_tree(made, row, tmp_path / "model", None) == {"model": str(tmp_path / "model")}


def test_the_words_of_a_merge():
    made = recipe({"row": {"route": "merge", "set": {"method": "ties", "weights": [1, 2], "density": 0.3}}})
    words = " ".join(merge_words(made, made.rows["row"], "rows.row"))
    assert words == (
        "merge --method ties --model one --model two --base small --weight 1 --weight 2 --set density=0.3"
    )


def test_trained_rows_stand_once_a_budget():
    made = recipe(
        {"base": {"route": "base"}, "inject": {"route": "inject"}},
        budget={"kinds": ["equal-tokens", "tuned-best"], "training_tokens": 10},
    )
    assert [entry.name for entry in entries(made)] == [
        "base",
        "inject (equal-tokens)",
        "inject (tuned-best)",
    ]
    assert [entry.is_tuned for entry in entries(made)] == [False, False, True]


def test_tokens_without_a_kind_that_uses_them_are_refused():
    with pytest.raises(RecipeError, match="training_tokens is set, but no kind uses it"):
        recipe({"base": {"route": "base"}}, budget={"kinds": ["tuned-best"], "training_tokens": 10})


def orvessa(**more: Any) -> CompareRecipe:
    rows = {"inject": {"route": "inject", "set": {"scale": 3}}}
    files = {name: str(ROOT / "examples" / "orvessa" / name) for name in ("document.md",)}
    known = {
        "documents": files["document.md"],
        "facts": str(ROOT / "examples/orvessa/facts.jsonl"),
        "qa": str(ROOT / "examples/orvessa/qa.jsonl"),
    }
    made = make_recipe(
        {"kind": "compare", "student": "s", "seed": 17, "knowledge": known, "rows": rows, **more}
    )
    assert isinstance(made, CompareRecipe)
    return made


def test_questions_are_those_of_the_document_route_and_sets_do_not_meet():
    made = orvessa(budget={"kinds": ["tuned-best"]})
    sets = select_questions(made, Materials.given(made))
    trained_facts = {pair.source for pair in sets["reworded"]}
    assert trained_facts == {pair.source for pair in sets["direct"]}
    assert not trained_facts & {pair.source for pair in sets["kept-out"]}
    assert {pair.split for pair in sets["direct"]} == {"train"}
    assert {pair.split for pair in sets["reworded"] + sets["kept-out"]} == {"eval"}
    wordings = {pair.question for pair in sets["direct"]}
    assert not wordings & {pair.question for pair in sets["development"]}  # ten wordings, three trained
    rows = [json.loads(line) for line in (ROOT / "examples/orvessa/qa.jsonl").read_text().splitlines()]
    first = {}
    for row in rows:
        if row["basis"] == "fact" and row["split"] == "train":
            first.setdefault(row["fact"], row["question"])
    assert wordings == {first[fact] for fact in trained_facts}


def test_where_no_wording_is_left_rates_are_chosen_on_direct_questions():
    made = orvessa(budget={"kinds": ["tuned-best"]})
    many = made.model_copy(
        update={"rows": {"inject": made.rows["inject"].model_copy(update={"set": {"scale": 10}})}}
    )
    sets = select_questions(many, Materials.given(many))
    assert sets["development"] == sets["direct"]


def test_fewer_questions_are_drawn_with_the_seed():
    made = orvessa(evaluate={"n_questions": 5})
    sets = select_questions(made, Materials.given(made))
    assert [len(sets[name]) for name in ("direct", "reworded", "kept-out")] == [5, 5, 5]
    assert select_questions(made, Materials.given(made)) == sets


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "compare").glob("*.yaml")), ids=lambda p: p.stem)
def test_example_recipes_are_sound(path: Path):
    made = load_recipe(path)
    assert isinstance(made, CompareRecipe)
    check_rows(made)
    assert path.read_text().startswith(f"# transfuse compare examples/compare/{path.name} ")
