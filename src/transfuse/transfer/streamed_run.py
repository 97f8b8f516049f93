"""What the stages of a streamed run share: the teacher, the samples' passes, and the files in between."""

from dataclasses import dataclass

import torch

from transfuse.transfer.samples import SamplePass
from transfuse.transfer.sensitivity import OnLayer, OnProgress
from transfuse.transfer.spill import Spill
from transfuse.transfer.streamed_teacher import LayerCall, StreamedTeacher


@dataclass(frozen=True)
class StreamedRun:
    """One run of the streamed engine."""

    teacher: StreamedTeacher
    spill: Spill
    passes: list[SamplePass]
    calls: list[list[LayerCall]]
    """Of every pass, what each layer is given beside its input."""
    on_layer: OnLayer
    on_progress: OnProgress | None
    device: torch.device

    @property
    def n_layers(self) -> int:
        """Of the teacher."""
        return len(self.teacher.layers)

    def tell(self, n_done: int, what: str) -> None:
        """Report so many of the steps done: every layer forward and backward, the head, the vocabulary."""
        if self.on_progress is not None:
            self.on_progress(n_done, 2 * self.n_layers + 2, what)


def inputs_of(number: int) -> str:
    """Name of the file of a layer's inputs; of the number of layers, the last one's outputs."""
    return f"inputs-{number:04d}"


def gradient_at(number: int) -> str:
    """Name of the file of the loss's gradient at a layer's inputs."""
    return f"gradient-{number:04d}"
