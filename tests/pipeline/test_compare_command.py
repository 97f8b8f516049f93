"""`transfuse compare` from a recipe to one table, on a tiny random model, each job in a process of its own."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from test_bad_input import message_of

pytestmark = pytest.mark.usefixtures("own_maps")

PATIENCE_S = 300
TRAIN = {"n_epochs": 12, "batch_rows": 4, "learning_rate": 0.05, "checkpoint_s": 0.01}
ROWS: dict[str, dict[str, Any]] = {
    "base": {"route": "base"},
    "same": {"route": "given"},
    "gone": {"route": "given", "adapter": "nowhere"},
    "inject": {"route": "inject", "set": {"scale": 3, "train": TRAIN}},
    "twin": {
        "route": "inject",
        "set": {"scale": 3, **{f"train.{name}": each for name, each in TRAIN.items()}},
    },
    "broken": {"route": "inject", "set": {"scale": 3, "train": {**TRAIN, "learning_rate": 1e30}}},
}


class Compared(NamedTuple):
    """A finished comparison."""

    recipe: Path
    out: Path
    err: str


@pytest.fixture(scope="module")
def recipe(isles: Any, chat_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rows: two the same as another, one that cannot run, one that fails in training."""
    rows = {**ROWS, "same": {"route": "given", "model": str(chat_folder)}}
    tree = {
        "kind": "compare",
        "student": str(chat_folder),
        "seed": 17,
        "precision": "float32",
        "knowledge": {"documents": str(isles.document), "facts": str(isles.facts), "qa": str(isles.qa)},
        "evaluate": {"texts": {"tiny": str(isles.texts)}, "max_new_tokens": 8, "latency_n": 1},
        "rows": rows,
    }
    path = tmp_path_factory.mktemp("compare") / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def compared(transfuse: Callable, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """The comparison done in one go. Shared: copy it before changing it."""
    out = tmp_path_factory.mktemp("runs") / "compared"
    done = transfuse("compare", recipe, "--out", out)
    assert done.code == 0, done.err
    return Compared(recipe, out, done.err)


def test_one_table_of_all_rows_and_a_failed_one_says_why(compared: Compared, read_report: Callable):
    report = read_report(compared.out)
    rows = {row["name"]: row["metrics"] for row in report["rows"]}
    assert list(rows) == list(ROWS)
    told = {row["name"]: row for row in report["compare"]["rows"]}
    assert {name for name, row in told.items() if row["state"] == "failed"} == {"broken", "gone"}
    assert "expected an adapter folder" in told["gone"]["reason"]
    assert compared.err.index("1 of 6 rows cannot run here") < compared.err.index("Job 1 of 5")
    assert "expected a finite loss" in told["broken"]["reason"]
    assert rows["broken"] == {}
    assert "2 of 6 rows failed" in compared.err
    for name in ("base", "inject"):
        assert {"f1/direct", "f1/reworded", "f1/kept-out", "bits_per_byte/tiny"} <= rows[name].keys()
        assert rows[name]["f1/reworded"]["n"] == report["compare"]["questions"]["reworded"] == 7
    bits = [rows[name]["bits_per_byte/tiny"]["value"] for name in ("base", "inject")]
    assert bits[0] != bits[1]  # so small a model learns no answer, but is another after training
    assert (report["compare"]["reference"], report["compare"]["main_metric"]) == ("base", "f1/reworded")


def test_rows_that_are_the_same_share_their_jobs(compared: Compared, read_report: Callable):
    report = read_report(compared.out)
    rows = {row["name"]: row for row in report["rows"]}
    told = {row["name"]: row for row in report["compare"]["rows"]}
    assert rows["same"]["metrics"] == rows["base"]["metrics"]
    assert rows["twin"]["metrics"] == rows["inject"]["metrics"]
    assert told["twin"]["results"] == told["inject"]["results"]
    jobs = [json.loads(path.read_text()) for path in compared.out.glob("jobs/*/job.json")]
    assert sorted(job["state"] for job in jobs) == ["done"] * 3 + ["failed"]


def test_what_each_row_took_is_told(compared: Compared, read_report: Callable):
    told = {row["name"]: row["costs"] for row in read_report(compared.out)["compare"]["rows"]}
    assert told["base"]["training_s"] is None
    assert told["inject"]["training_s"] > 0
    assert told["inject"]["training_memory_bytes"] > 50 * 2**20
    assert told["inject"]["training_tokens"] > 0
    assert told["inject"]["size_added_bytes"] > 0 == told["base"]["size_added_bytes"]
    assert all(told[name]["latency_s"] > 0 for name in ("base", "inject"))


def test_rows_are_held_against_the_first_and_all_pairs_stand_in_a_matrix(
    compared: Compared, read_report: Callable
):
    report = read_report(compared.out)
    rows = {row["name"]: row["metrics"] for row in report["rows"]}
    for each in report["comparisons"]:
        ours, theirs = rows[each["method"]], rows[each["against"]]
        if each["metric"] != "bits_per_byte/tiny" and each["difference"]["n"] == theirs[each["metric"]]["n"]:
            expected = ours[each["metric"]]["value"] - theirs[each["metric"]]["value"]
            assert each["difference"]["value"] == pytest.approx(expected)
        assert each["p_holm"] >= each["p"]
    names = {(pair["first"], pair["second"]) for pair in report["compare"]["pairs"]}
    assert len(names) == 6  # of four rows
    same = next(p for p in report["compare"]["pairs"] if (p["first"], p["second"]) == ("base", "same"))
    assert (same["difference"]["value"], same["p"], same["holds"]) == (0, 1, False)


def test_the_page_stands_alone_and_shows_every_row(compared: Compared):
    page = (compared.out / "report.html").read_text(encoding="utf-8")
    for name in ROWS:
        assert name in page
    assert "failed: broken, seed 17" in page
    assert page.count("<svg") >= 1
    for outside in ('src="http', 'href="http', "@import", "url(http"):
        assert outside not in page


def wait_for(find: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something is there."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and process.poll() is None:
        if find():
            return
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError(f"it never came: {process.communicate()}")


def steps_of(out: Path) -> int:
    """Steps in the checkpoint of the row `inject`."""
    for path in out.glob("jobs/inject-*/run/training/checkpoint/progress.json"):
        try:
            return len(json.loads(path.read_text())["curve"])
        except (OSError, ValueError):  # just being replaced
            return 0
    return 0


def test_killed_twice_and_resumed_it_comes_to_the_same_table(
    compared: Compared,
    start: Callable,
    transfuse: Callable,
    read_report: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))  # no reply of the other run
    out = tmp_path / "run"
    line = ("compare", compared.recipe, "--out", out)
    for is_there in (
        lambda: steps_of(out) >= 5,
        lambda: any((path / "run" / ".lock").exists() for path in out.glob("jobs/inject-seed-17-measured-*")),
    ):
        process = start(*line)
        wait_for(is_there, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
        assert not (out / "report.json").exists()
    done = transfuse(*line)
    assert done.code == 0, done.err
    report, whole = read_report(out), read_report(compared.out)
    assert report["rows"] == whole["rows"]
    assert report["comparisons"] == whole["comparisons"]
    assert report["compare"]["pairs"] == whole["compare"]["pairs"]
    reasons, others = (
        [row["reason"].replace(str(folder), "RUN") for row in told["compare"]["rows"]]
        for folder, told in ((out, report), (compared.out, whole))
    )
    assert reasons == others
    jobs = [json.loads(path.read_text()) for path in out.glob("jobs/*/job.json")]
    assert len(jobs) == 4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (("rows.inject.route=injekt",), "rows.inject: unknown route 'injekt'; did you mean 'inject'?"),
        (("rows.base.retrieval=true", "rows.more={route: lora}"), "route lora needs knowledge.train_file"),
        (("rows.inject.set={train: {lerning_rate: 1}}",), "rows.inject.set: train.lerning_rate: unknown key"),
        (("rows.inject.set={seed: 3}",), "rows.inject.set: 'seed' is the same for all rows"),
        (("rows.base.set={scale: 3}",), "rows.base.set: route base trains nothing"),
        (("rows.twin.set={basis: token, scale: 1}",), "what one keeps out, the other trains on"),
        (("evaluate.texts={tiny: nowhere.jsonl}",), "nowhere.jsonl: expected a JSONL file"),
        (("budget.kinds=[equal-tokens]",), "kind equal-tokens needs training_tokens"),
        (("rows={a/b: {route: base}}",), "'a/b' is no name for a row"),
    ],
)
def test_a_faulty_recipe_is_refused_before_anything_is_made(
    changes: tuple[str, ...], told: str, transfuse: Callable, recipe: Path, tmp_path: Path
):
    sets = [part for change in changes for part in ("--set", change)]
    assert told in message_of(transfuse("compare", recipe, "--out", tmp_path / "run", *sets))
    assert not (tmp_path / "run").exists()


def test_a_row_that_cannot_run_here_is_told_by_plan_and_refused_where_all_have_to(
    transfuse: Callable, recipe: Path, tmp_path: Path
):
    done = transfuse("plan", recipe)
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    assert "Cannot run here: gone:" in text
    assert "expected an adapter folder" in text
    assert "Trainings: 2; measurings: 3" in text
    done = transfuse("compare", recipe, "--out", tmp_path / "run", "--strict")
    assert "1 of 6 rows cannot run here" in message_of(done)
    assert not (tmp_path / "run").exists()


def test_another_recipe_in_a_used_folder_is_refused(compared: Compared, transfuse: Callable):
    done = transfuse("compare", compared.recipe, "--out", compared.out, "--set", "seed=18")
    assert "holds a different run" in message_of(done)
    assert "seed: 17 there, 18 now" in message_of(done)
