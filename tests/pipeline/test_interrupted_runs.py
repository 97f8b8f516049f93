"""A run that is killed, interrupted or spread over processes ends with the same numbers."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

N_STEPS = 90
LONG = ["--set", "train.n_epochs=15", "--set", "train.learning_rate=0.01"]
OFTEN = ["--set", "train.checkpoint_s=0.01"]
"""A checkpoint after each step."""

PATIENCE_S = 300


def wait_for_steps(run: Path, process: subprocess.Popen[str], n_steps: int) -> int:
    """Wait until the run's checkpoint holds that many steps; how many it holds."""
    progress = run / "training" / "checkpoint" / "progress.json"
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and process.poll() is None:
        try:
            n_done = len(json.loads(progress.read_text())["curve"])
        except (OSError, ValueError):  # not there yet, or just being replaced
            n_done = 0
        if n_done >= n_steps:
            return n_done
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"no checkpoint of {n_steps} steps: {process.communicate()}")


@pytest.fixture(scope="module")
def uninterrupted(
    transfuse: Callable,
    inject_arguments: Callable,
    read_report: Callable,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """The report of the long run done in one go."""
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    done = transfuse(*inject_arguments(out, *LONG))
    assert done.code == 0, done.err
    assert len(read_report(out)["training"]["curve"]) == N_STEPS
    return read_report(out)


def test_a_run_killed_in_training_continues_to_the_same_numbers(
    uninterrupted: dict[str, Any],
    tmp_path: Path,
    start: Callable,
    transfuse: Callable,
    inject_arguments: Callable,
    read_report: Callable,
    reused_stages: Callable,
):
    out = tmp_path / "run"
    process = start(*inject_arguments(out, *LONG, *OFTEN))
    wait_for_steps(out, process, 5)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGKILL
    assert not (out / "report.json").exists()
    assert not (out / "training" / "done.json").exists()
    n_kept = len(json.loads((out / "training/checkpoint/progress.json").read_text())["curve"])
    assert 5 <= n_kept < N_STEPS

    done = transfuse(*inject_arguments(out, *LONG, *OFTEN))
    assert done.code == 0, done.err
    report = read_report(out)
    assert report["rows"] == uninterrupted["rows"]
    assert report["training"]["curve"] == uninterrupted["training"]["curve"]
    assert report["training"]["n_tokens"] == uninterrupted["training"]["n_tokens"]
    reused = reused_stages(out)
    assert (reused["base"], reused["training"], reused["evaluation"]) == (True, False, False)
    left = sorted(str(path.relative_to(out)) for path in out.rglob(".*") if path.name != ".lock")
    assert left == []  # what the killed process had half written is gone


def test_ctrl_c_says_one_line_and_the_same_command_continues(
    uninterrupted: dict[str, Any],
    tmp_path: Path,
    start: Callable,
    transfuse: Callable,
    inject_arguments: Callable,
    read_report: Callable,
):
    out = tmp_path / "run"
    process = start(*inject_arguments(out, *LONG, *OFTEN))
    wait_for_steps(out, process, 3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "Interrupted; run the same command again. Finished stages are kept."

    done = transfuse(*inject_arguments(out, *LONG, *OFTEN))
    assert done.code == 0, done.err
    assert read_report(out)["rows"] == uninterrupted["rows"]
    assert read_report(out)["training"]["curve"] == uninterrupted["training"]["curve"]


def test_two_processes_train_what_one_does(
    tmp_path: Path, start: Callable, transfuse: Callable, inject_arguments: Callable, read_report: Callable
):
    """`--cpu` would start a single process; `--multi_gpu` starts as many as asked for, on a CPU as well.

    At a learning rate so small that rounding, which depends on how rows are packed into passes, does not grow.
    """
    gently = ("--set", "train.learning_rate=0.002")
    out, finished = tmp_path / "run", tmp_path / "alone"
    done = transfuse(*inject_arguments(finished, *gently))
    assert done.code == 0, done.err
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    launch += ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
    process = start(*inject_arguments(out, *gently), launcher=(*launch, "--main_process_port", "0"))
    printed, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert printed.count("Page: ") == 1
    assert len(re.findall("questions before", err)) == 1
    settings = json.loads((out / "training" / "done.json").read_text())["settings"]
    assert settings["n_processes"] == 2
    together, alone = read_report(out), read_report(finished)
    assert [row["name"] for row in together["rows"]] == [row["name"] for row in alone["rows"]]
    assert together["rows"][0] == alone["rows"][0]
    losses = [[point["loss"] for point in report["training"]["curve"]] for report in (together, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
