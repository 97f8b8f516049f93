"""Recipes are strict: unknown keys, a missing seed and wrong kinds are refused by name."""

import json

import pytest

from transfuse.errors import RecipeError
from transfuse.io.run_folder import RECIPE_FILE, open_run
from transfuse.recipes.schema import load_recipe, make_recipe, resolved

TEXT = """\
kind: inject
model: smollm2-135m
seed: 17
documents: docs/document.md
facts: facts.jsonl
qa: ../qa.jsonl
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipes" / "inject.yaml"
    path.parent.mkdir()
    path.write_text(TEXT, encoding="utf-8")
    return path


def tree(**more: object) -> dict:
    return {"model": "m", "seed": 1, "documents": "d", "facts": "f", "qa": "q", **more}


def test_a_recipe_and_its_defaults(recipe_file):
    recipe = load_recipe(recipe_file)
    assert (recipe.model, recipe.seed, recipe.scale, recipe.basis) == ("smollm2-135m", 17, 10, "fact")
    assert recipe.train.peak_learning_rate == 1e-3


def test_paths_are_relative_to_the_recipes_folder(recipe_file, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    recipe_file.write_text(
        TEXT + "records: {replay_texts: replay.jsonl}\nevaluate: {texts: {generic: null, wiki: wiki.jsonl}}\n"
    )
    recipe = load_recipe(recipe_file, ["facts=mine.jsonl"])
    folder = recipe_file.parent
    assert recipe.documents == folder / "docs" / "document.md"
    assert recipe.qa.resolve() == tmp_path / "qa.jsonl"
    assert recipe.records.replay_texts == folder / "replay.jsonl"
    assert recipe.evaluate.texts == {"generic": None, "wiki": folder / "wiki.jsonl"}
    assert recipe.facts == elsewhere / "mine.jsonl"  # typed on the command line


def test_absolute_and_home_paths_stay(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    recipe_file.write_text(TEXT.replace("facts.jsonl", "/data/facts.jsonl").replace("../qa", "~/qa"))
    recipe = load_recipe(recipe_file)
    assert str(recipe.facts) == "/data/facts.jsonl"
    assert recipe.qa == tmp_path / "home" / "qa.jsonl"


@pytest.mark.parametrize(
    ("line", "name"),
    [("epochs: 3", "epochs"), ("train: {n_epoch: 3}", "train.n_epoch"), ("train: {lora: {rnak: 8}}", "rnak")],
)
def test_an_unknown_key_is_named(recipe_file, line, name):
    recipe_file.write_text(TEXT + line)
    with pytest.raises(RecipeError, match=rf"inject\.yaml: .*{name}: unknown key"):
        load_recipe(recipe_file)


def test_a_missing_seed_says_why(recipe_file):
    recipe_file.write_text(TEXT.replace("seed: 17\n", ""))
    with pytest.raises(RecipeError, match="seed: is missing: a run without a seed cannot be repeated"):
        load_recipe(recipe_file)


def test_every_fault_is_listed():
    with pytest.raises(RecipeError) as caught:
        make_recipe({"model": "m", "seed": "x", "scale": 0})
    assert len(str(caught.value).splitlines()) == 3  # documents; seed and scale


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("seed=soon", "seed: .*integer.*'soon'"),
        ("scale=0", "scale: .*greater than 0"),
        ("kept_out_share=1", "kept_out_share: .*less than 1"),
        ("basis=chars", "basis: .*'fact' or 'token'"),
        ("train.packing=maybe", "train.packing: .*'maybe'"),
        ("train.packing=false", "train.packing: .*False"),
        ("train.n_epochs=1.5", "train.n_epochs: "),
        ("train.learning_rate=.nan", "train.learning_rate: "),
        ("train.max_grad_norm=.inf", "train.max_grad_norm: "),  # no run folder could hold it
        ("seed=-1", "seed: "),  # no generator takes it
        ("seed=99999999999999", "seed: "),
        ("model=", "model: .*string"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(override, complaint):
    with pytest.raises(RecipeError, match=complaint):
        make_recipe(tree(), [override])


def test_lora_settings_beside_full_fine_tuning_are_refused():
    with pytest.raises(RecipeError, match=r"train.lora is set, but train.method is 'full'"):
        make_recipe(tree(train={"method": "full", "lora": {"rank": 8}}))
    assert make_recipe(tree(train={"method": "full"})).train.peak_learning_rate == 1e-4


@pytest.mark.parametrize("kind", ["inhect", 3, None, ["inject"], {"inject": 1}])
def test_an_unknown_kind_is_refused(kind):
    with pytest.raises(RecipeError, match=r"kind: expected one of \[.*'fuse', 'inject', 'transfer'\]"):
        make_recipe(tree(kind=kind))


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.learning_rate=1e-3", ("train", "learning_rate"), 0.001),
        ("train.learning_rate=5E+2", ("train", "learning_rate"), 500.0),
        ("train.learning_rate=.5e-3", ("train", "learning_rate"), 0.0005),
        ("train.packing=off", ("train", "packing"), "off"),
        ("train.packing=on", ("train", "packing"), "on"),
        ("train.lora.rank=8", ("train", "lora", "rank"), 8),
        ("train.lora.targets=[q_proj, v_proj]", ("train", "lora", "targets"), ["q_proj", "v_proj"]),
        ("include=['Cup*']", ("include",), ["Cup*"]),
        ("evaluate.oracle=false", ("evaluate", "oracle"), False),
        ("model=org/name=x", ("model",), "org/name=x"),
        ("model=no", ("model",), "no"),
        (" seed = 5", ("seed",), 5),
        ("train.max_length_tokens=null", ("train", "max_length_tokens"), None),
    ],
)
def test_an_override_is_yaml(override, path, value):
    got = make_recipe(tree(), [override])
    for name in path:
        got = getattr(got, name)
    assert got == value
    assert type(got) is type(value)


def test_overrides_keep_what_stands_beside_them(recipe_file):
    recipe_file.write_text(TEXT + "train: {n_epochs: 3, lora: {alpha: 8}}\n")
    recipe = load_recipe(recipe_file, ["train.lora.rank=4", "train.lora.rank=2"])
    assert (recipe.train.n_epochs, recipe.train.lora.alpha, recipe.train.lora.rank) == (3, 8, 2)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("seed", "expected key=value"),
        ("=3", "expected key=value"),
        ("include=[a", "the value is no YAML"),
        ("seed.x=3", "'seed' holds a value"),
        ("train.n_epochz=3", "n_epochz: unknown key"),
    ],
)
def test_a_bad_override_is_refused(override, complaint):
    with pytest.raises(RecipeError, match=complaint):
        make_recipe(tree(), [override])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("a: [", "expected YAML"), ("- a\n", "got list"), ("", "got NoneType"), ("\x00", "expected YAML")],
)
def test_a_file_that_is_no_recipe_is_refused(recipe_file, text, complaint):
    recipe_file.write_text(text)
    with pytest.raises(RecipeError, match=complaint):
        load_recipe(recipe_file)


def test_a_missing_or_undecodable_file_is_refused(recipe_file):
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(recipe_file.parent / "none.yaml")
    recipe_file.write_bytes(b"model: \xff")
    with pytest.raises(RecipeError, match="expected YAML"):
        load_recipe(recipe_file)


def test_the_search_of_the_rag_rows(recipe_file):
    """Its models are paths where there is such a folder; as null, none is made."""
    (recipe_file.parent / "mine").mkdir()
    recipe_file.write_text(TEXT + "rag: {embedder: mine, reranker: owner/name}\n")
    recipe = load_recipe(recipe_file, ["rag.passages.max_tokens=64"])
    assert recipe.rag is not None
    assert recipe.rag.embedder == str(recipe_file.parent / "mine")
    assert (recipe.rag.reranker, recipe.rag.passages.max_tokens) == ("owner/name", 64)
    assert load_recipe(recipe_file, ["rag=null"]).rag is None
    by_default = make_recipe(tree()).rag
    assert by_default is not None
    assert (by_default.embedder, by_default.mode, by_default.rerank) == ("minilm-l6-v2", "hybrid", True)


def test_yaml_cannot_run_code(recipe_file):
    recipe_file.write_text(TEXT + "include: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(RecipeError, match="expected YAML"):
        load_recipe(recipe_file)


def test_a_resolved_recipe_repeats_the_run(recipe_file, tmp_path):
    overrides = ["train.learning_rate=1e-05", "train.packing=off", "model=no", "include=['1e3', 'on']"]
    recipe = load_recipe(recipe_file, [*overrides, "evaluate.texts.wiki=wiki.jsonl"])
    for _ in range(2):  # the second time the folder is recognised as this run's
        with open_run(tmp_path / "run", resolved(recipe)):
            pass
    assert load_recipe(tmp_path / "run" / RECIPE_FILE) == recipe
    assert json.loads(json.dumps(resolved(recipe), allow_nan=False)) == resolved(recipe)


def test_a_recipe_does_not_change():
    recipe = make_recipe(tree())
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 2


def test_knowledge_comes_from_files_or_from_a_generator():
    with pytest.raises(RecipeError, match=r"--facts FILE --qa FILE.*--generator openai:MODEL@URL"):
        make_recipe({"model": "m", "seed": 1, "documents": "d"})
    with pytest.raises(RecipeError, match="qa is given without facts"):
        make_recipe({"model": "m", "seed": 1, "documents": "d", "qa": "q", "generator": {"reference": "m"}})
    recipe = make_recipe({"model": "m", "seed": 1, "documents": "d", "generator": {"reference": "m"}})
    assert (recipe.facts, recipe.qa) == (None, None)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["generator.reference=openai:m"], "generator.reference: expected openai:MODEL@URL"),
        (["generator.referense=m"], "did you mean 'generator.reference'"),
        (["probe.n_questions=2", "basis=token"], "asks fact by fact"),
        (["writing.pairs.paraphrases=2"], "set records.fact_texts as well"),
        (["records.chat_share=0.1"], "records.chats names no file"),
        (["method=rlhf"], "method: .*'sft' or 'prompt-distillation'"),
        (["rag.embedder=null"], "rag: mode 'hybrid' searches by meaning, which needs an embedder"),
        (["rag.embeder=m"], "did you mean 'rag.embedder'"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(overrides, complaint):
    with pytest.raises(RecipeError, match=complaint):
        make_recipe(tree(), overrides)


def test_a_recording_is_found_beside_the_recipe(recipe_file):
    recipe_file.write_text(TEXT + "generator: {reference: 'recorded:replies.jsonl'}\n")
    recipe = load_recipe(recipe_file)
    assert recipe.generator.reference == f"recorded:{recipe_file.parent / 'replies.jsonl'}"
