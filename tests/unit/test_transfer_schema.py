from pathlib import Path
from typing import Any

import pytest

from transfuse.errors import RecipeError
from transfuse.recipes.schema import make_recipe
from transfuse.recipes.transfer_schema import BUILT_IN_CONTROLS, SWEEP, TransferRecipe


def recipe(*overrides: str, **keys: Any) -> TransferRecipe:
    tree = {"kind": "transfer", "teacher": "a/big", "student": "a/small", "seed": 1, "train_file": "t.jsonl"}
    made = make_recipe({**tree, **keys}, overrides)
    assert isinstance(made, TransferRecipe)
    return made


def test_the_papers_training_settings_stand_beside_those_given() -> None:
    plain = recipe().train
    assert (plain.n_epochs, plain.lora.rank, plain.lora.alpha, plain.lora.dropout) == (3, 16, 16, 0.05)
    given = recipe("train.lora.rank=4", "train.batch_rows=2").train
    assert (given.n_epochs, given.lora.rank, given.lora.alpha, given.batch_rows) == (3, 4, 4, 2)
    assert recipe("train.lora.rank=4", "train.lora.alpha=8").train.lora.alpha == 8


def test_arms_sweep_learning_rates_only_beside_controls() -> None:
    assert recipe().rates == [None]
    assert recipe("train.learning_rate=0.01", controls=["lora"]).rates == [0.01]
    with_controls = recipe(controls=list(BUILT_IN_CONTROLS))
    assert with_controls.rates == list(SWEEP)
    assert with_controls.arms == ["parametric", "lora", "pissa", "random-block", "norm-matched-random"]
    assert recipe(method="lora", controls=["lora", "pissa"]).arms == ["lora", "pissa"]


def test_paths_are_absolute() -> None:
    made = recipe(task="seeds.jsonl", task_adapter="adapter", method="delta-transport")
    assert made.train_file == Path("t.jsonl").absolute()
    assert made.task == Path("seeds.jsonl").absolute()
    assert made.task_adapter == Path("adapter").absolute()


def test_an_endpoint_as_teacher_writes_answers() -> None:
    made = recipe(teacher="openai:big@http://localhost:8000", method="offline-distillation")
    assert made.teacher is None
    assert made.distillation.generator is not None
    assert made.distillation.generator.reference == "openai:big@http://localhost:8000"
    more = recipe(
        "distillation.generator.n_at_once=4", teacher="http://h/v1", method="offline-distillation"
    ).distillation.generator
    assert more is not None
    assert (more.reference, more.n_at_once) == ("http://h/v1", 4)
    # A resolved recipe is read as it was written.
    again = make_recipe(made.model_dump(mode="json"), [])
    assert again == made


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"teacher": None}, "teacher is missing, which parametric needs"),
        (
            {"teacher": "openai:big@http://localhost:8000", "method": "online-distillation"},
            "an endpoint can only write answers",
        ),
        ({"teacher": "openai:big", "method": "offline-distillation"}, "expected openai:MODEL@URL"),
        (
            {"teacher": None, "method": "online-distillation"},
            "teacher is missing, which online-distillation needs",
        ),
        ({"train_file": None}, "expected seed samples of the task"),
        ({"method": "delta-transport"}, "give --task-adapter FOLDER"),
        (
            {"train_file": None, "task": "s.jsonl", "controls": ["lora"]},
            "expected training samples; give --train",
        ),
        ({"shape": {"hidden": 8}}, "shape is given, but result is 'adapter'"),
        ({"extract": {"roles": []}}, "expected at least one role"),
        ({"extract": {"roles": ["querry"]}}, "extract.roles"),
        ({"n_seeds": 0}, "n_seeds"),
    ],
)
def test_what_cannot_run_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(**keys)


def test_an_extraction_needs_no_teacher() -> None:
    assert recipe(teacher=None, extraction="runs/e").teacher is None
