"""Benchmarks: found by name, asked of a scripted model, and scored as worked out by hand."""

import json
import math
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lm_eval")

from lm_eval import tasks
from lm_eval.api.model import LM

from transfuse.errors import DataError, MissingExtraError, RecipeError
from transfuse.evaluate import harness_opening, harness_tasks
from transfuse.evaluate.harness import BenchmarkSettings, check_benchmarks, run_benchmarks
from transfuse.evaluate.harness_opening import quiet_harness
from transfuse.evaluate.scores import estimates


class ScriptedModel(LM):
    """Replies by functions of the prompt; keeps what it was asked."""

    def __init__(
        self,
        reply: Callable[[str], str] = lambda prompt: "",
        likelihood: Callable[[str, str], tuple[float, bool]] = lambda prompt, ending: (-1.0, False),
    ) -> None:
        super().__init__()
        self.reply, self.likelihood = reply, likelihood
        self.asked: list[tuple[Any, ...]] = []
        self.max_length: int | None = None
        self.tok_encode: Callable[[str], list[Any]] | None = None

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        self.asked += [request.args for request in requests]
        return [self.likelihood(*request.args) for request in requests]

    def generate_until(self, requests: Any) -> list[str]:
        self.asked += [request.args for request in requests]
        return [self.reply(request.args[0]) for request in requests]

    def loglikelihood_rolling(self, requests: Any) -> list[float]:
        self.asked += [request.args for request in requests]
        return [self.likelihood("", *request.args)[0] for request in requests]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def gsm8k(*numbers: int) -> list[dict[str, str]]:
    return [{"question": f"What is {n}?", "answer": f"It is {n}.\n#### {n}"} for n in numbers]


def mmlu(subject: str, *answers: int) -> list[dict[str, Any]]:
    return [
        {"question": f"{subject} {n}", "choices": list("wxyz"), "answer": answer, "subject": subject}
        for n, answer in enumerate(answers)
    ]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_args: Any, **_settings: Any) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def _few_definitions(monkeypatch):
    """All of lm-eval's definitions take long to read."""
    folders = [Path(tasks.__file__).parent / name for name in ("hellaswag", "winogrande", "humaneval")]
    few = tasks.TaskManager(include_path=folders, include_defaults=False)
    monkeypatch.setattr(harness_opening, "full_index", lambda: few)
    monkeypatch.setattr(harness_tasks, "full_index", lambda: few)


def test_gsm8k_by_hand(tmp_path):
    path = write(tmp_path / "asked.jsonl", gsm8k(1, 22, 333))
    replies = {"What is 1?": "#### 1", "What is 22?": "So 22", "What is 333?": "#### 334"}
    lm = ScriptedModel(lambda prompt: replies[prompt.splitlines()[0].removeprefix("Question: ")])
    settings = BenchmarkSettings(data=path, n_shot=0, max_new_tokens=9)
    begun: list[tuple[str, int]] = []
    outcome = run_benchmarks(lm, {"gsm8k": settings}, seed=1, on_benchmark=lambda *each: begun.append(each))
    values = {metric: estimate.value for metric, estimate in estimates(outcome.scores, 1).items()}
    assert values == {
        "exact_match/gsm8k:strict-match": pytest.approx(1 / 3),
        "exact_match/gsm8k:flexible-extract": pytest.approx(2 / 3),
    }
    assert outcome.answers[1] == (
        "gsm8k",
        "gsm8k/1",
        "Question: What is 22?\nAnswer:",
        "So 22",
        "It is 22.\n#### 22",
        {"exact_match:strict-match": 0.0, "exact_match:flexible-extract": 1.0},
    )
    assert outcome.harness["gsm8k"]["gsm8k"]["exact_match,strict-match"] == pytest.approx(1 / 3)
    assert begun == [("gsm8k", 3)]
    assert lm.asked[0][1]["max_gen_toks"] == 9
    assert set(outcome.versions) == {"lm_eval", "gsm8k"}


def test_mmlu_counts_every_item_alike_and_takes_items_of_all_subjects(tmp_path):
    rows = mmlu("anatomy", 0, 1, 1, 2) + mmlu("virology", 3) + mmlu("astronomy", 1, 0)
    path = write(tmp_path / "asked.jsonl", rows)
    lm = ScriptedModel(likelihood=lambda prompt, ending: (0.0 if ending == " B" else -1.0, False))
    outcome = run_benchmarks(lm, {"mmlu": BenchmarkSettings(data=path)}, seed=1)
    estimate = estimates(outcome.scores, 1)["accuracy/mmlu"]
    assert (estimate.value, estimate.n) == (pytest.approx(3 / 7), 7)
    assert outcome.harness["mmlu"]["mmlu"]["acc,none"] == pytest.approx(3 / 7)
    assert outcome.harness["mmlu"]["mmlu_stem"]["acc,none"] == pytest.approx(3 / 6)  # anatomy and astronomy
    assert outcome.plans["mmlu"].notes == [f"3 of 57 tasks are asked: {path} has no rows for the others"]
    assert {(answer.item, answer.reply, answer.gold) for answer in outcome.answers} >= {
        ("mmlu_virology/0", "B", "D"),
        ("mmlu_anatomy/1", "B", "B"),
    }
    few = run_benchmarks(lm, {"mmlu": BenchmarkSettings(data=path, n_items=5)}, seed=1)
    assert {score.item for score in few.scores} == {
        "mmlu_anatomy/0",
        "mmlu_anatomy/1",
        "mmlu_astronomy/0",
        "mmlu_astronomy/1",
        "mmlu_virology/0",
    }
    two = run_benchmarks(lm, {"mmlu": BenchmarkSettings(data=path, n_items=2)}, seed=1)
    assert len(two.scores) == two.plans["mmlu"].n_items == 2


def test_super_ni_by_its_references(tmp_path):
    rows = [
        {"prompt": "Name the cup.", "references": ["the golden cup", "The cup!"]},
        {"definition": "Name it.", "inputs": "team", "targets": "the red team"},
    ]
    path = write(tmp_path / "asked.jsonl", rows)
    lm = ScriptedModel(lambda prompt: " the cup" if "cup" in prompt else " a red team")
    outcome = run_benchmarks(lm, {"super-ni": BenchmarkSettings(data=path)}, seed=1)
    values = {metric: estimate.value for metric, estimate in estimates(outcome.scores, 1).items()}
    # ROUGE-L of "a red team" against "the red team": 2 * 2 / (3 + 3).
    assert values == {
        "exact_match/super-ni": 0.5,
        "rouge_l/super-ni": pytest.approx((1 + 2 / 3) / 2),
    }
    assert lm.asked[1][0].endswith("example -\nInput: team\nOutput:")


def test_lambada_gives_the_loss_of_the_last_word(tmp_path):
    path = write(tmp_path / "test.jsonl", [{"text": "He won the cup"}, {"text": "They scored a goal"}])
    lm = ScriptedModel(likelihood=lambda prompt, ending: (-3.0, True) if ending == " cup" else (-1.0, False))
    outcome = run_benchmarks(lm, {"lambada_openai": BenchmarkSettings(data=path)}, seed=1)
    values = {metric: estimate.value for metric, estimate in estimates(outcome.scores, 1).items()}
    assert values == {"nll_nats/lambada_openai": 2.0, "accuracy/lambada_openai": 0.5}
    assert [answer.reply for answer in outcome.answers] == ["cup", ""]
    assert outcome.harness["lambada_openai"]["lambada_openai"]["perplexity,none"] == pytest.approx(
        7.389, 1e-3
    )


def test_bbh_takes_its_examples_from_its_definition(tmp_path):
    write(tmp_path / "navigate.jsonl", [{"input": "Do you return?", "target": "Yes"}])
    write(tmp_path / "snarks.jsonl", [{"input": "Which?", "target": "(A)"}] * 3)
    lm = ScriptedModel(lambda prompt: "so the answer is Yes.")
    outcome = run_benchmarks(lm, {"bbh": BenchmarkSettings(data=tmp_path)}, seed=1)
    values = {metric: estimate.value for metric, estimate in estimates(outcome.scores, 1).items()}
    assert values == {"exact_match/bbh": pytest.approx(1 / 4)}
    assert outcome.plans["bbh"].n_shot == 3
    assert "examples are those that the definition holds" in outcome.plans["bbh"].notes
    assert lm.asked[0][0].count("Q: ") == 4


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "hellaswag",
            {
                "activity_label": "Sport",
                "ctx_a": "He runs.",
                "ctx_b": "",
                "endings": list("abcd"),
                "label": "1",
            },
        ),
        ("boolq", {"passage": "p", "question": "is it so", "answer": True}),
        (
            "openbookqa",
            {
                "question_stem": "It is",
                "choices": {"text": ["a", "b"], "label": ["A", "B"]},
                "answerKey": "B",
            },
        ),
        (
            "arc_easy",
            {"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
        ),
    ],
)
def test_other_choices(tmp_path, name, rows):
    path = write(tmp_path / "validation.jsonl", [rows, rows])
    lm = ScriptedModel(likelihood=lambda prompt, ending: (0.0 if ending in (" b", " yes") else -1.0, False))
    for reference in (path, tmp_path):
        outcome = run_benchmarks(lm, {name: BenchmarkSettings(data=reference)}, seed=1)
        assert estimates(outcome.scores, 1)[f"accuracy/{name}"].value == 1.0


def test_triviaqa_takes_any_alias(tmp_path):
    path = write(tmp_path / "asked.jsonl", [{"question": "Who", "answer": {"aliases": ["Al", "The Al"]}}] * 2)
    outcome = run_benchmarks(
        ScriptedModel(lambda p: " the al"), {"triviaqa": BenchmarkSettings(data=path)}, seed=1
    )
    assert estimates(outcome.scores, 1)["exact_match/triviaqa"].value == 1.0


def test_examples_come_from_the_training_rows_and_are_the_same_every_time(tmp_path):
    write(tmp_path / "test.jsonl", gsm8k(1, 2))
    write(tmp_path / "train.jsonl", gsm8k(*range(100, 140)))
    runs = []
    for _ in range(2):
        lm = ScriptedModel()
        outcome = run_benchmarks(lm, {"gsm8k-4shot": BenchmarkSettings(data=tmp_path)}, seed=1)
        runs.append([answer.prompt for answer in outcome.answers])
    assert runs[0] == runs[1]
    assert runs[0][0].count("####") == 4
    other = BenchmarkSettings(data=tmp_path, fewshot_seed=5)
    drawn = run_benchmarks(ScriptedModel(), {"gsm8k-4shot": other}, seed=1).answers[0].prompt
    assert drawn != runs[0][0]
    dev = write(tmp_path / "other" / "dev.jsonl", gsm8k(*range(100, 140))).parent
    write(dev / "test.jsonl", gsm8k(1))
    plans = check_benchmarks({"gsm8k-4shot": BenchmarkSettings(data=dev)})
    assert plans["gsm8k-4shot"].notes == ["examples are taken from dev, as there is no train"]


def test_prompts_that_are_cut_are_told(tmp_path):
    path = write(tmp_path / "asked.jsonl", gsm8k(1, 10**40))
    lm = ScriptedModel()
    lm.max_length, lm.tok_encode = 60, list  # a token a character; the prompts have 35 and 75
    settings = BenchmarkSettings(data=path, n_shot=0, max_new_tokens=20)
    outcome = run_benchmarks(lm, {"gsm8k": settings}, seed=1)
    assert outcome.plans["gsm8k"].notes == [
        "1 of 2 prompts are longer than the model reads; their beginning was cut off"
    ]


def test_nothing_reaches_the_terminal(tmp_path, capfd):
    write(tmp_path / "test.jsonl", gsm8k(1, 2))
    write(tmp_path / "train.jsonl", gsm8k(3, 4))
    run_benchmarks(ScriptedModel(), {"gsm8k-1shot": BenchmarkSettings(data=tmp_path)}, seed=1)
    assert capfd.readouterr() == ("", "")


DEFINITION = {
    "dataset_path": "nowhere/at-all",
    "output_type": "generate_until",
    "test_split": "test",
    "training_split": "train",
    "doc_to_text": "{{ask}}",
    "doc_to_target": "{{tell}}",
    "generation_kwargs": {"until": ["\n"]},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
AVERAGED = [{"metric": "exact_match", "weight_by_size": False}]


@pytest.fixture
def own_definitions(tmp_path, monkeypatch) -> Path:
    """Two tasks under groups and a tag, and rows for them: one right of one, one right of three."""
    folder = tmp_path / "definitions"
    folder.mkdir()
    definitions = {
        "one": {"task": "one", "tag": "both_tag", **DEFINITION},
        "two": {"task": "two", "tag": "both_tag", **DEFINITION},
        "macro": {"group": "macro", "task": ["one", "two"], "aggregate_metric_list": AVERAGED},
        "plain": {"group": "plain", "task": ["one", {"task": "two", "num_fewshot": 1}]},
        "nested": {"group": "nested", "task": ["macro", {"task": "inner", **DEFINITION}]},
        "python": {"task": "python", "class": "some.Class"},
        "rolling": {
            **DEFINITION,
            "task": "rolling",
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{ask}}",
            "generation_kwargs": None,
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
        "judged": {
            **DEFINITION,
            "task": "judged",
            "output_type": "multiple_choice",
            "doc_to_target": "{{['no', 'yes'].index(tell)}}",
            "doc_to_choice": ["no", "yes"],
            "generation_kwargs": None,
            "metric_list": [{"metric": "acc"}, {"metric": "f1"}],
        },
    }
    for name, definition in definitions.items():
        (folder / f"{name}.yaml").write_text(json.dumps(definition))
    own = tasks.TaskManager(include_path=folder, include_defaults=False)
    monkeypatch.setattr(harness_opening, "full_index", lambda: own)
    monkeypatch.setattr(harness_tasks, "full_index", lambda: own)
    rows = [{"ask": "a", "tell": "yes", "task": "one"}]
    rows += [{"ask": f"b{n}", "tell": tell, "task": "two"} for n, tell in enumerate(("yes", "no", "no"))]
    write(
        tmp_path / "data" / "train.jsonl",
        [{"ask": "t", "tell": "no", "task": task} for task in ("one", "two")],
    )
    write(tmp_path / "data" / "test.jsonl", rows)
    return tmp_path / "data"


def values_of(name: str, data: Path, **settings: Any) -> tuple[dict[str, float | None], ScriptedModel]:
    lm = ScriptedModel(lambda prompt: "yes")
    outcome = run_benchmarks(lm, {name: BenchmarkSettings(data=data, **settings)}, seed=1)
    return {metric: estimate.value for metric, estimate in estimates(outcome.scores, 1).items()}, lm


def test_a_group_that_counts_tasks_alike(own_definitions):
    values, _ = values_of("macro", own_definitions)
    assert values == {"exact_match/macro": pytest.approx((1 + 1 / 3) / 2)}


def test_groups_without_an_average_and_tags_give_each_task_its_own(own_definitions):
    values, lm = values_of("plain", own_definitions)
    assert values == {"exact_match/one": 1.0, "exact_match/two": pytest.approx(1 / 3)}
    # The group's own override holds: one example before the questions of the second task.
    assert [prompt for prompt, _ in lm.asked] == ["a", "t no\n\nb0", "t no\n\nb1", "t no\n\nb2"]
    values, _ = values_of("both_tag-1shot", own_definitions)
    assert values == {"exact_match/one-1shot": 1.0, "exact_match/two-1shot": pytest.approx(1 / 3)}


def test_metrics_that_are_no_means_of_items(own_definitions):
    values, _ = values_of("rolling", write(own_definitions / "texts.jsonl", [{"ask": "a b"}, {"ask": "b"}]))
    # One nat for each text, which have 3 words and 4 bytes together.
    assert values == {
        "nll_nats_per_word/rolling": pytest.approx(2 / 3),
        "bits_per_byte/rolling": pytest.approx(2 / math.log(2) / 4),
    }
    data = write(own_definitions / "judged.jsonl", [{"ask": "a", "tell": "yes"}, {"ask": "b", "tell": "no"}])
    lm = ScriptedModel(likelihood=lambda prompt, ending: (-1.0 if ending == " no" else -2.0, False))
    outcome = run_benchmarks(lm, {"judged": BenchmarkSettings(data=data)}, seed=1)
    assert [(score.metric, score.numerator) for score in outcome.scores] == [
        ("accuracy/judged", 0.0),
        ("accuracy/judged", 1.0),
    ]
    assert "f1/judged is no mean over items: see lm-eval's own results" in outcome.plans["judged"].notes
    assert outcome.harness["judged"]["judged"]["f1,none"] == 0.0


def test_rows_of_mixed_kinds_are_refused(own_definitions):
    data = write(own_definitions / "mixed.jsonl", [{"ask": "a", "tell": "yes"}, {"ask": 3, "tell": "no"}])
    assert "expected each field of" in refusal(DataError, "one-0shot", data=data)


def test_definitions_that_local_data_cannot_be_put_under(own_definitions):
    assert "'inner' is defined within a group" in refusal(RecipeError, "nested", data=own_definitions)
    assert "is Python code that loads its own data" in refusal(RecipeError, "python", data=own_definitions)


def refusal(error: type[Exception], name: str, **settings: Any) -> str:
    with pytest.raises(error) as caught:
        check_benchmarks({name: BenchmarkSettings(**settings)})
    return str(caught.value)


def test_names_and_settings_that_do_not_fit_are_refused(tmp_path):
    path = write(tmp_path / "asked.jsonl", gsm8k(1, 2))
    assert "did you mean hellaswag" in refusal(RecipeError, "helaswag")
    assert "n_shot says 3; drop one" in refusal(RecipeError, "gsm8k-8shot", n_shot=3, data=path)
    message = refusal(RecipeError, "gsm8k_cot_zeroshot", n_shot=3, data=path)
    assert "its definition is without examples before a question" in message
    message = refusal(DataError, "gsm8k", data=path)
    assert "5 worked examples before each question are asked for" in message
    assert "put train.jsonl beside what is asked" in message
    write(tmp_path / "few" / "test.jsonl", gsm8k(1))
    write(tmp_path / "few" / "train.jsonl", gsm8k(1, 2))
    message = refusal(DataError, "gsm8k", data=tmp_path / "few")
    assert "its train rows are 2, of at least 5; add rows, or set n_shot to 2" in message
    (tmp_path / "few" / "test.jsonl").unlink()
    message = refusal(DataError, "gsm8k-0shot", data=tmp_path / "few")
    assert "found rows for training alone" in message


def test_tasks_that_execute_code_are_refused_unless_asked_for():
    message = refusal(RecipeError, "humaneval")
    assert "'humaneval' executes code that the model writes" in message


def test_without_a_hub_it_is_said_what_to_download(monkeypatch):
    message = refusal(DataError, "hellaswag")
    assert "the hub (https://huggingface.co) cannot be reached" in message
    assert "Download data/validation-*.parquet; for examples data/train-*.parquet of" in message
    assert "https://huggingface.co/datasets/Rowan/hellaswag" in message
    assert "--data hellaswag=FOLDER" in message
    assert "endings (a list of texts)" in message


def test_a_hub_that_is_there_is_asked(monkeypatch):
    import datasets

    asked: list[tuple[str, str]] = []

    def load_dataset(path: str, name: str, **_settings: Any) -> Any:
        asked.append((path, name))
        if path == "openai/gsm8k":
            return datasets.DatasetDict(
                {s: datasets.Dataset.from_list(gsm8k(1, 2)) for s in ("train", "test")}
            )
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub\nand more")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    lm = ScriptedModel(lambda prompt: "#### 2")
    outcome = run_benchmarks(lm, {"gsm8k-1shot": BenchmarkSettings()}, seed=1)
    assert estimates(outcome.scores, 1)["exact_match/gsm8k-1shot:strict-match"].value == 0.5
    assert asked == [("openai/gsm8k", "main")]
    message = refusal(DataError, "arc_easy")
    assert (
        "could not fetch or read its data (ConnectionError: Couldn't reach 'allenai/ai2_arc' on the Hub)"
        in message
    )
    assert "Download ARC-Easy/test-*.parquet" in message


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 60))
def test_items_are_taken_in_turn(sizes, n_items):
    named = {str(place): size for place, size in enumerate(sizes)}
    picked = harness_tasks._picked(named, n_items)
    if n_items >= sum(sizes):
        assert picked is None
        return
    assert picked is not None
    assert sum(map(len, picked.values())) == n_items
    most = max(map(len, picked.values()))
    assert all(len(picked.get(name, [])) >= min(size, most - 1) for name, size in named.items())
    assert all(places == list(range(len(places))) for places in picked.values())


def test_rows_that_a_definition_cannot_read_are_named(tmp_path):
    path = write(
        tmp_path / "validation.jsonl",
        [
            {"sentence": "The _ won.", "option1": "team", "option2": "cup", "answer": "1"},
            {"sentence": "A _ won.", "option1": "team", "answer": "1"},
        ],
    )
    message = refusal(DataError, "winogrande", data=path)
    assert "validation.jsonl:2: winogrande: its definition could not read the row" in message
    assert "winogrande" in message
    message = refusal(DataError, "winogrande", data=write(tmp_path / "b.jsonl", [{"text": "x"}]))
    assert "its definition could not read the rows, which hold 'text'" in message


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'transfuse\[benchmarks\]'"), quiet_harness():
        pass
