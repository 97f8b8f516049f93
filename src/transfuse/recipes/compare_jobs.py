"""The jobs of a comparison: each a `transfuse` command in a process of its own, run once, resumed, and measured.

A process of its own, so that memory and time are those of one row alone, and a row that the system kills takes no
other with it.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import yaml

from transfuse.io.files import file_sha256, write_json, write_text
from transfuse.io.run_folder import key_digest
from transfuse.recipes.progress import Display, size_text, time_text

JOBS_VERSION = 1
JOB_FILE, LOG_FILE, RECIPE_FILE, OUT = "job.json", "log.txt", "recipe.yaml", "run"

POLL_S = 0.2
NOTE_EVERY_S = 5.0
"""Seconds between notes of a running job's time, which a killed comparison counts on from."""
GRACE_S, PATIENCE_S = 1.0, 30.0
"""An interrupted child may have been told by the terminal already; then it is told once, then ended."""

_WHOLE_DIGEST_BYTES = 64 * 2**20
"""Larger files are told apart by size and time."""
_DIGEST_CHARACTERS = 10
_ERROR = re.compile(r"^(Error: |[\w.]*(Error|Exception|Interrupt)\b)")
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Job:
    """One command; equal ones are run once."""

    label: str
    """What people read: `inject-10x, seed 17`."""
    words: tuple[str, ...]
    """Arguments of `transfuse`; `{recipe}` and `{out}` stand for the recipe's file and the folder to write."""
    recipe: Mapping[str, Any] | None = None
    """As JSON values, where the command runs one."""
    inputs: tuple[str, ...] = ()
    """Further files and folders that the result depends on."""

    @property
    def key(self) -> str:
        """Changes with the command, its recipe and the files that these name."""
        named = sorted({*_paths(self.recipe), *self.words, *self.inputs})
        stamps = {each: stamp for each in named if (stamp := _stamp(Path(each))) is not None}
        told = {"words": self.words, "recipe": self.recipe, "files": stamps, "version": JOBS_VERSION}
        return key_digest(told)


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    label: str
    folder: Path
    """What the command wrote."""
    is_done: bool
    reason: str = ""
    """Why it failed."""
    seconds: float = 0.0
    """Of all its processes, those that were killed too."""
    peak_memory_bytes: int = 0
    reused: bool = False


@final
@dataclass
class JobRunner:
    """Runs jobs one after the other, in folders of their own."""

    folder: Path
    """Holds a folder for each job."""
    display: Display
    n_planned: int
    """Jobs that the whole comparison takes, as far as they can be told."""
    arguments: Sequence[str] = (sys.executable, "-m", "transfuse.cli")
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By the job's key, in order."""

    def run(self, job: Job) -> Outcome:
        """Run a job, continue it, or take its result from an earlier process.

        Args:
            job: the job; one that failed in this comparison already is not tried again, one that failed in an earlier
                process is.

        Returns:
            What became of it.

        Raises:
            RunFolderError: its folder cannot be written.
        """
        key = job.key
        if key not in self.outcomes:
            self.outcomes[key] = self._run(job, key)
        return self.outcomes[key]

    def _run(self, job: Job, key: str) -> Outcome:
        folder = self._folder(job, key)
        told = _read(folder / JOB_FILE)
        if told.get("key") == key and told.get("state") == "done":
            return _outcome(job, folder, told, reused=True)
        number = len(self.outcomes) + 1
        place = f"Job {number} of {max(number, self.n_planned)}, {job.label}"
        folder.mkdir(parents=True, exist_ok=True)
        if job.recipe is not None:
            write_text(
                folder / RECIPE_FILE, yaml.safe_dump(dict(job.recipe), sort_keys=False, allow_unicode=True)
            )
        places = {"{recipe}": str(folder / RECIPE_FILE), "{out}": str(folder / OUT)}
        filled = [places.get(word, word) for word in job.words]
        before = {
            "key": key,
            "label": job.label,
            "state": "running",
            "seconds": float(told.get("seconds", 0.0)),
            "peak_memory_bytes": int(told.get("peak_memory_bytes", 0)),
        }
        self.display.say(f"{place}{': continued' if told else ''}.")
        with self.display.bar(place) as advance, (folder / LOG_FILE).open("ab") as log:
            start = log.tell()
            child = _Child([*self.arguments, *filled], log)

            def note(seconds: float) -> None:
                so_far, said = time_text(before["seconds"] + seconds), last_line(folder / LOG_FILE, start)
                advance(0, 0, f"{so_far}, {said}" if said else so_far)

            def keep(seconds: float) -> None:
                write_json(folder / JOB_FILE, before | {"seconds": round(before["seconds"] + seconds, 2)})

            status, peak_bytes, seconds = child.wait(note, keep)
        reason = "" if status == 0 else failure_reason(status, (folder / LOG_FILE), start)
        told = before | {
            "state": "failed" if reason else "done",
            "reason": reason,
            "seconds": round(before["seconds"] + seconds, 2),
            "peak_memory_bytes": max(before["peak_memory_bytes"], peak_bytes),
        }
        write_json(folder / JOB_FILE, told)
        took = f"{time_text(told['seconds'])}, {size_text(told['peak_memory_bytes'])} of memory"
        self.display.say(f"{place}: {'failed: ' + reason if reason else 'done'} ({took}).")
        return _outcome(job, folder, told, reused=False)

    def _folder(self, job: Job, key: str) -> Path:
        """The job's folder; one that another row made first keeps that row's name."""
        short = key[:_DIGEST_CHARACTERS]
        there = sorted(self.folder.glob(f"*-{short}"))
        stem = re.sub(r"[^A-Za-z0-9+._-]+", "-", job.label).strip("-.")[:60] or "job"
        return there[0] if there else self.folder / f"{stem}-{short}"


@final
class _Child:
    """A process whose output goes to a file, and whose time and memory are its own."""

    def __init__(self, command: Sequence[str], log: Any) -> None:
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_bind_to_parent()
        )

    def wait(self, note: Callable[[float], None], keep: Callable[[float], None]) -> tuple[int, int, float]:
        """Wait until the process has ended, telling of it now and then.

        Args:
            note: called often, with the seconds so far.
            keep: called seldom, with the same.

        Returns:
            Exit code (negative: the signal that ended it), most memory in bytes, seconds.

        Raises:
            KeyboardInterrupt: passed on to the process, which is waited for.
        """
        kept, peak_bytes = self._started, 0
        try:
            while True:
                peak_bytes = max(peak_bytes, _peak_bytes(self._process.pid))
                pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
                now = time.monotonic()
                if pid:
                    code = os.waitstatus_to_exitcode(status)
                    self._process.returncode = code
                    unit = 1 if sys.platform == "darwin" else 1024
                    return code, peak_bytes or usage.ru_maxrss * unit, now - self._started
                note(now - self._started)
                if now - kept >= NOTE_EVERY_S:
                    kept = now
                    keep(now - self._started)
                time.sleep(POLL_S)
        except BaseException:
            self._end()
            keep(time.monotonic() - self._started)
            raise

    def _end(self) -> None:
        """Let the process end by itself, as Ctrl-C does, so that it keeps what it has."""
        for told, patience in ((None, GRACE_S), (signal.SIGINT, PATIENCE_S), (signal.SIGKILL, PATIENCE_S)):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                if told is not None:
                    self._process.send_signal(told)
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                self._process.wait(timeout=patience)
                return


def _peak_bytes(pid: int) -> int:
    """The most memory that a running process has held so far; 0 where the system does not say.

    What `wait4` says of an ended one is no less than its parent held when it was started.
    """
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _bind_to_parent() -> Callable[[], None] | None:
    """What a child calls first, so that it ends with a parent that is killed; None where the system cannot."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None, use_errno=True)

    def bind() -> None:
        library.prctl(_DIE_WITH_PARENT, signal.SIGKILL)

    return bind


def failure_reason(status: int, log: Path, start: int = 0) -> str:
    """Why a command did not come to an end, in one line.

    Args:
        status: exit code; negative where a signal ended it.
        log: what it printed.
        start: byte of the log at which this attempt begins.

    Returns:
        The last error that it printed, or the signal's name.
    """
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        hint = ", probably for want of memory" if -status == signal.SIGKILL else ""
        return f"ended by {name}{hint}; its last words: {last_line(log, start) or 'none'}"
    lines = _lines(log, start)
    told = [n for n, line in enumerate(lines) if _ERROR.match(line)]
    if told:
        return " ".join(line.strip() for line in lines[told[-1] :] if line.strip()).removeprefix("Error: ")[
            :600
        ]
    return f"exit code {status}: {lines[-1] if lines else 'nothing was printed'}"[:600]


def last_line(log: Path, start: int = 0) -> str:
    """The last line that is not empty."""
    lines = _lines(log, start)
    return lines[-1][:200] if lines else ""


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file() and not each.is_symlink())


def _lines(log: Path, start: int) -> list[str]:
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - 16_384))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def _outcome(job: Job, folder: Path, told: Mapping[str, Any], *, reused: bool) -> Outcome:
    return Outcome(
        job.label,
        folder / OUT,
        told["state"] == "done",
        str(told.get("reason", "")),
        float(told.get("seconds", 0.0)),
        int(told.get("peak_memory_bytes", 0)),
        reused,
    )


def _paths(value: Any) -> list[str]:
    """Every text in a tree that could be a path."""
    if isinstance(value, Mapping):
        return [path for each in value.values() for path in _paths(each)]
    if isinstance(value, list | tuple):
        return [path for each in value for path in _paths(each)]
    return [value] if isinstance(value, str) and os.sep in value and "\n" not in value else []


def _stamp(path: Path) -> Any:
    """What changes with a file or folder; None where there is none."""
    try:
        if path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.is_file())
            return [[str(each.relative_to(path)), _stamp(each)] for each in files if each.name[0] != "."]
        if not path.is_file():
            return None
        status = path.stat()
    except OSError:
        return None
    if status.st_size > _WHOLE_DIGEST_BYTES:
        return [status.st_size, status.st_mtime_ns]
    return file_sha256(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
