"""Experiment trackers, through the callbacks that transformers keeps for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from transfuse.errors import RecipeError


def check_trackers(names: Sequence[str]) -> None:
    """Raise RecipeError where a tracker is unknown or not installed."""
    _callbacks(names)


def _callbacks(names: Sequence[str]) -> list[TrainerCallback]:
    try:
        return [kind() for kind in get_reporting_integration_callbacks(list(names))]
    except (ValueError, RuntimeError, ImportError) as err:
        raise RecipeError(f"train.report_to: {list(names)} cannot be used: {err}") from err


@final
class Trackers:
    """Sends training logs to every tracker named, as transformers' own trainer would."""

    def __init__(
        self, names: Sequence[str], folder: Path, run_name: str, n_steps: int, device_is_cpu: bool
    ) -> None:
        self._callbacks: list[TrainerCallback] = []
        if not names:
            return
        self._callbacks = _callbacks(names)
        self._arguments = TrainingArguments(
            output_dir=str(folder),
            run_name=run_name,
            report_to=[],
            use_cpu=device_is_cpu,
            accelerator_config={"use_configured_state": True},  # else the processes' state would be reset
        )
        # Without TENSORBOARD_LOGGING_DIR the records belong beside the run.
        for callback in self._callbacks:
            if getattr(callback, "logging_dir", "") is None:
                setattr(callback, "logging_dir", str(folder / "tensorboard"))  # noqa: B010 - of one subclass
        self._state = TrainerState(is_local_process_zero=True, is_world_process_zero=True, max_steps=n_steps)
        self._control = TrainerControl()

    def begin(self, model: nn.Module) -> None:
        """Open the trackers."""
        for callback in self._callbacks:
            callback.on_train_begin(self._arguments, self._state, self._control, model=model)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Send the values of one step."""
        for callback in self._callbacks:
            self._state.global_step = step
            callback.on_log(self._arguments, self._state, self._control, logs=dict(values))

    def end(self) -> None:
        """Close the trackers."""
        for callback in self._callbacks:
            callback.on_train_end(self._arguments, self._state, self._control)
