"""lm-eval imported late, kept off the terminal, and its list of tasks."""

import logging
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfuse.errors import MissingExtraError
from transfuse.evaluate.benchmark_table import BENCHMARKS, own_tasks_folder

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

_LOGGERS = ("lm_eval", "datasets", "evaluate", "huggingface_hub")


def check_harness() -> None:
    """Refuse to go on without lm-eval.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with _unlogged():
            import lm_eval.tasks  # noqa: F401
    except ImportError as err:
        raise MissingExtraError(
            f"benchmarks need lm-eval ({err}): pip install 'transfuse[benchmarks]'"
        ) from err


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Keep what lm-eval and the libraries under it log, warn of and draw off the terminal for a while."""
    from transfuse.io.quiet import quiet

    check_harness()
    with quiet("lm_eval", "datasets", "evaluate", "huggingface_hub", "multiprocess", "dill"):
        from datasets.utils import (
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )

        had_bars = not are_progress_bars_disabled()
        disable_progress_bars()
        drawing = [
            module
            for name, module in list(sys.modules.items())
            if name.startswith("lm_eval.") and _draws(module)
        ]
        bars = [module.tqdm for module in drawing]
        for module in drawing:
            vars(module)["tqdm"] = _undrawn
        try:
            with _unlogged():
                yield
        finally:
            for module, bar in zip(drawing, bars, strict=True):
                vars(module)["tqdm"] = bar
            if had_bars:
                enable_progress_bars()


@contextmanager
def harness_seeds(seed: int) -> Iterator[None]:
    """The global random states that lm-eval starts from, and back to those before.

    Args:
        seed: of replies that are sampled; data are shuffled as lm-eval's command line does.

    Yields:
        Nothing.
    """
    import numpy as np
    import torch

    before, before_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(0)
        np.random.seed(1234)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(before_numpy)


def task_index(task: str) -> "TaskManager":
    """lm-eval's list of tasks and our own; of a benchmark we know only its folder is read, which is much faster.

    Args:
        task: the name to be looked up.

    Returns:
        A list that holds the name, where any does.
    """
    if task in BENCHMARKS and not BENCHMARKS[task].folder:
        return _folder_index(own_tasks_folder())
    for known, benchmark in BENCHMARKS.items():
        if benchmark.folder and (task == known or task.startswith(f"{known}_")):
            manager = _folder_index(_defined_in(benchmark.folder))
            entry = manager.task_index.get(task)
            if entry is not None and (task == known or entry.kind.name == "TASK"):
                return manager
    return full_index()


def _defined_in(folder: str) -> Path:
    from lm_eval import tasks

    return Path(tasks.__file__).parent / folder


@lru_cache(maxsize=32)
def _folder_index(folder: Path) -> "TaskManager":
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=[folder], include_defaults=False)


@lru_cache(maxsize=1)
def full_index() -> "TaskManager":
    """All tasks of lm-eval, some ten thousand, and our own; takes some seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=[own_tasks_folder()])


def _draws(module: Any) -> bool:
    return callable(getattr(module, "tqdm", None))


class _undrawn:  # noqa: N801 (stands in for tqdm)
    """A progress bar that shows nothing."""

    def __init__(self, iterable: Any = None, *_args: Any, **_settings: Any) -> None:
        self._iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        return iter(self._iterable)

    def update(self, _n: int = 1) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@contextmanager
def _unlogged() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
