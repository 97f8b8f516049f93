import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from transfuse.recipes.compare_jobs import Job, JobRunner, failure_reason, folder_bytes, last_line
from transfuse.recipes.progress import Display

WORKER = textwrap.dedent(
    """
    import os, pathlib, signal, sys, time
    what, out = sys.argv[1], pathlib.Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    with (out / "starts").open("a") as file:
        file.write("x")
    print("step 1/2", file=sys.stderr, flush=True)
    if what == "fail":
        print("Error: no room; make some.", file=sys.stderr)
        sys.exit(1)
    if what == "raise":
        raise ValueError("a bug")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "memory":
        block = bytearray(80 * 2**20)
        for n in range(0, len(block), 4096):
            block[n] = 1
        time.sleep(0.5)
    if what == "wait":
        time.sleep(60)
    (out / "result").write_text("done")
    """
)


@pytest.fixture
def runner(tmp_path: Path) -> Callable[[], JobRunner]:
    """`runner()`: a new one, as of a new process, over the same folder."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return lambda: JobRunner(
        tmp_path / "jobs", Display(is_silent=True), 3, arguments=(sys.executable, str(script))
    )


def test_equal_jobs_run_once_and_a_later_process_takes_the_result(runner: Callable[[], JobRunner]):
    first = runner()
    outcome = first.run(Job("row a, seed 1", ("work", "{out}")))
    assert outcome.is_done
    assert (outcome.folder / "result").read_text() == "done"
    assert first.run(Job("row b, seed 1", ("work", "{out}"))) == outcome
    again = runner().run(Job("row b, seed 1", ("work", "{out}")))
    assert again.reused
    assert (again.seconds, again.folder) == (outcome.seconds, outcome.folder)
    assert (outcome.folder / "starts").read_text() == "x"
    assert outcome.folder.parent.name.startswith("row-a-seed-1-")


def test_a_failed_job_tells_its_last_error_and_is_tried_again_by_the_next_process(
    runner: Callable[[], JobRunner],
):
    first = runner()
    outcome = first.run(Job("row", ("fail", "{out}")))
    assert (outcome.is_done, outcome.reason) == (False, "no room; make some.")
    assert first.run(Job("row", ("fail", "{out}"))) is outcome
    assert (outcome.folder / "starts").read_text() == "x"
    assert runner().run(Job("row", ("fail", "{out}"))).seconds > outcome.seconds  # both attempts
    assert (outcome.folder / "starts").read_text() == "xx"


def test_a_crash_tells_its_exception_and_a_signal_its_name(runner: Callable[[], JobRunner]):
    assert runner().run(Job("row", ("raise", "{out}"))).reason == "ValueError: a bug"
    killed = runner().run(Job("row", ("killed", "{out}")))
    assert killed.reason == "ended by SIGKILL, probably for want of memory; its last words: step 1/2"


def test_memory_is_that_of_the_job(runner: Callable[[], JobRunner]):
    small = runner().run(Job("small", ("work", "{out}"))).peak_memory_bytes
    large = runner().run(Job("large", ("memory", "{out}"))).peak_memory_bytes
    assert 70 * 2**20 < large - small < 120 * 2**20


def test_a_job_is_another_when_a_file_that_it_names_changes(runner: Callable[[], JobRunner], tmp_path: Path):
    data = tmp_path / "data.jsonl"
    data.write_text("one")
    job = Job("row", ("work", "{out}"), recipe={"kind": "inject", "qa": str(data), "scale": 3})
    first = runner().run(job)
    data.write_text("two")
    second = runner().run(job)
    assert first.folder != second.folder
    assert not second.reused
    data.write_text("one")
    assert runner().run(job).reused
    assert "scale: 3" in (first.folder.parent / "recipe.yaml").read_text()


def test_an_interrupted_job_is_ended_and_its_time_kept(runner: Callable[[], JobRunner], tmp_path: Path):
    code = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from transfuse.recipes.compare_jobs import Job, JobRunner
        from transfuse.recipes.progress import Display
        runner = JobRunner(Path({str(tmp_path / "jobs")!r}), Display(is_silent=True), 1,
                           arguments=(sys.executable, {str(tmp_path / "worker.py")!r}))
        runner.run(Job("row", ("wait", "{{out}}")))
        """
    )
    runner()  # writes the worker
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, handler)
    for _ in range(600):
        if list((tmp_path / "jobs").glob("row-*/run/starts")):
            break
        time.sleep(0.05)
    (folder,) = (tmp_path / "jobs").glob("row-*")
    log = folder / "log.txt"
    parent.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in parent.communicate(timeout=60)[1]
    assert "KeyboardInterrupt" in log.read_text()  # it was let end by itself
    told = json.loads((folder / "job.json").read_text())
    assert told["state"] == "running"
    assert told["seconds"] > 0
    assert not _is_running("worker.py", tmp_path)


def _is_running(name: str, folder: Path) -> bool:
    wanted = str(folder / name).encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in words and int(path.parent.name) != os.getpid():
            return True
    return False


def test_reasons_and_last_lines_are_of_this_attempt(tmp_path: Path):
    log = tmp_path / "log.txt"
    log.write_text("Error: of yesterday.\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("half\rwhole\n\n")
    assert last_line(log, start) == "whole"
    assert failure_reason(3, log, start) == "exit code 3: whole"
    assert failure_reason(1, log) == "of yesterday. half whole"
    assert last_line(tmp_path / "none") == ""
    assert folder_bytes(tmp_path) == log.stat().st_size
