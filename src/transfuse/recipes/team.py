"""The processes that train together under `accelerate launch`; a team of one otherwise."""

import os
from datetime import timedelta
from typing import Any, final

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

PATIENCE = timedelta(hours=48)
"""How long the other processes wait while the first prepares and measures."""


@final
class Team:
    """The first process does everything; the others join it in training."""

    def __init__(self) -> None:
        is_launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._state = (
            PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE) if is_launched else None
        )

    @property
    def is_main(self) -> bool:
        """Whether this is the first process."""
        return self._state is None or self._state.is_main_process

    @property
    def size(self) -> int:
        """Number of processes."""
        return self._state.num_processes if self._state else 1

    @property
    def device(self) -> str | None:
        """This process's device; None where it is alone and free to choose."""
        return str(self._state.device) if self._state else None

    def leave(self) -> None:
        """End the connection; each process calls it when it has nothing more to share.

        Left to the interpreter's end, threads of the connection are torn down while they run, and abort the process.
        """
        if self._state is not None:
            self._state.destroy_process_group()

    def share(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self._state is None:
            return value
        box = [value]
        broadcast_object_list(box)
        return box[0]
