"""Run folders: one folder a run, one folder a stage; finished stages survive a kill and are used again."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import yaml

from transfuse.errors import RunFolderError
from transfuse.io.files import write_errors, write_json, write_text

RECIPE_FILE = "recipe.resolved.yaml"
N_SHOWN = 8


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What `report.json` says of a stage."""

    name: str
    seconds: float
    """Time it took when it was done, also where it is reused."""
    reused: bool


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a run, with a folder of its own."""

    folder: Path
    key: str
    is_done: bool
    """Whether an earlier run finished it with the same key; its files may be read instead."""


@final
class RunFolder:
    """A run's folder, held by one process at a time."""

    def __init__(self, path: Path, stages: list[StageRecord]) -> None:
        self.path = path
        self.stages = stages
        """Stages met so far, in order."""

    @contextmanager
    def stage(
        self, name: str, key: Mapping[str, Any], *, version: int, outputs: Sequence[Path] = ()
    ) -> Iterator[Stage]:
        """Enter a stage; leaving the block without an error marks it done.

        A folder left by a killed run of the same key is kept as it is, so that the stage may go on from its
        own checkpoints; one of another key is emptied.

        Args:
            name: of the stage and its folder.
            key: everything its result depends on: settings, hashes of its inputs, keys of earlier stages.
            version: of the stage's code; another version does not reuse the result.
            outputs: files or folders outside the stage's own that must be there for it to count as done.

        Yields:
            The stage; where `is_done`, the block reads its files instead of making them.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        digest = key_digest({"stage": name, "version": version, **key})
        folder = self.path / name
        done = _read_json(folder / "done.json")
        is_done = done.get("key") == digest and all(output.exists() for output in outputs)
        started = time.monotonic()
        if not is_done:
            _start_stage(folder, digest)
        yield Stage(folder, digest, is_done)
        seconds = float(done["seconds"]) if is_done else round(time.monotonic() - started, 3)
        if not is_done:
            write_json(folder / "done.json", {"key": digest, "seconds": seconds, "settings": key})
        self.stages.append(StageRecord(name, seconds, is_done))


@contextmanager
def open_run(
    path: Path, recipe: Mapping[str, Any], *, overwrite: bool = False, free: Collection[str] = ()
) -> Iterator[RunFolder]:
    """Open or make a run's folder and hold it until the block ends.

    Args:
        path: the folder; made where it is missing.
        recipe: the resolved recipe, as JSON values.
        overwrite: whether a folder of a different recipe may be taken over; stages that are unaffected by the
            difference are reused all the same.
        free: dotted names of settings that change no result (limits, prices, times), so that a run may go on
            with others.

    Yields:
        The run folder.

    Raises:
        RunFolderError: the folder holds a different run or other files, is in use, or cannot be written.
    """
    with write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise RunFolderError(f"{path}: no permission to write there; choose a folder of your own.")
    _refuse_strangers(path, recipe, overwrite, free)
    with _held(path):
        _remove_temporaries(path)
        write_text(path / RECIPE_FILE, _yaml(recipe))
        yield RunFolder(path, [])


class _Dumper(yaml.SafeDumper):
    """Quotes words such as `1e3`, which recipes read as numbers though YAML 1.1 does not."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _yaml(recipe: Mapping[str, Any]) -> str:
    return yaml.dump(dict(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _remove_temporaries(path: Path) -> None:
    """Remove what a killed process had half written; the folder is held, so nobody writes it now."""
    for left in list(path.rglob(".*.*")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def key_digest(key: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, as hex; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()


def _start_stage(folder: Path, digest: str) -> None:
    with write_errors(folder):
        started = _read_json(folder / "started.json")
        if started.get("key") != digest and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "done.json").unlink(missing_ok=True)
    write_json(folder / "started.json", {"key": digest})


def _refuse_strangers(path: Path, recipe: Mapping[str, Any], overwrite: bool, free: Collection[str]) -> None:
    recipe_file = path / RECIPE_FILE
    if not recipe_file.is_file():
        strangers = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
        if strangers:
            raise RunFolderError(
                f"{path}: expected a new or empty folder, or one of this run; found {strangers[:N_SHOWN]}. "
                f"Choose another --out."
            )
        return
    if overwrite:
        return
    try:
        earlier = dict(yaml.safe_load(recipe_file.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as err:
        raise RunFolderError(
            f"{recipe_file}: cannot be read; choose another --out, or give --overwrite."
        ) from err
    differing = [
        f"{name}: {before!r} there, {now!r} now"
        for name, before, now in _differences(_flat(earlier), _flat(dict(recipe)))
        if name not in free
    ]
    if differing:
        shown = "".join(f"\n  {line}" for line in differing[:N_SHOWN])
        raise RunFolderError(
            f"{path}: holds a different run:{shown}\n"
            f"Choose another --out, or give --overwrite (stages that do not depend on the difference are kept)."
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            yield name, before.get(name), now.get(name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold the folder against other processes; the system lets go when this one ends, however it ends."""
    with write_errors(path):
        lock = (path / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise RunFolderError(
                f"{path}: another transfuse process is at work there; wait for it, or choose another --out."
            ) from err
        yield
