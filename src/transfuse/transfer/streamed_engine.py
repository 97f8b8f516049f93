"""Sensitivity of a teacher of any size, read from disk layer by layer, twice, with at most one layer in memory.

Forward keeps each layer's input in a file; backward takes the layers again from the top, computes each once more with
gradients, and hands over its scores while it is there. A run that was killed goes on after its last finished layer.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from transfuse.io.precision import resolve_device
from transfuse.train.batches import TrainingRow
from transfuse.transfer.layer_weights import WeightFiles
from transfuse.transfer.samples import (
    FittedSamples,
    Sample,
    SamplePass,
    fit_samples,
    sample_passes,
)
from transfuse.transfer.sensitivity import (
    GradientSums,
    LayerScores,
    ModelNames,
    OnLayer,
    OnProgress,
    SensitivitySummary,
    layer_linears,
    summary_of,
)
from transfuse.transfer.spill import Spill
from transfuse.transfer.streamed_run import StreamedRun, gradient_at, inputs_of
from transfuse.transfer.streamed_teacher import StreamedTeacher, read_config
from transfuse.transfer.streamed_vocabulary import answer_gradients, vocabulary_scores

ENGINE_VERSION = 1
"""Raised where what is spilled changes meaning: then no older run is continued."""


def streamed_sensitivity(
    folder: Path,
    rows: Sequence[TrainingRow],
    on_layer: OnLayer,
    *,
    names: ModelNames,
    work: Path,
    key: str = "",
    max_tokens_per_pass: int = 2048,
    max_length_tokens: int | None = None,
    compute_dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    device: str | None = "cpu",
    on_progress: OnProgress | None = None,
) -> SensitivitySummary:
    """Sensitivity of every matrix of a model on disk, summed over samples.

    Args:
        folder: a model folder with safetensors weights in one file or several.
        rows: seed samples; each one's loss is the mean over its answer's tokens.
        on_layer: given each layer from the top while it is in memory, then embedding and head. A layer may be given
            again, with the same scores, to a run that was killed meanwhile.
        names: where the layers, the embedding and the head are.
        work: folder of the files in between; the same folder, model, rows and settings continue a killed run.
        key: of what `on_layer` makes of the layers; with another one, a run there is begun afresh, not continued.
        max_tokens_per_pass: rows x longest row that go through a layer together.
        max_length_tokens: longer samples are shortened; None is the model's own limit.
        compute_dtype: float32 or bfloat16; sums are float32 always.
        attention: transformers' name of an attention implementation (`sdpa`, `eager`); None leaves it to it.
        device: where to compute; None picks an accelerator where there is one.
        on_progress: told of every layer, forward and backward, of the head, and of embedding and head at the end.

    Returns:
        Counts, losses, bytes read and what was left out.

    Raises:
        DataError: no sample can be used, or one has tokens that the model does not know.
        ModelError: the folder holds no model that can be streamed, or its weights are missing or damaged.
        RunFolderError: the disk is too full for the layers' inputs.
        TrainingError: a loss or gradient is not finite; names the parameter and the sample.
    """
    started = time.perf_counter()
    config = read_config(folder)
    weights = WeightFiles(folder, names.aliases)
    text = config.get_text_config()
    limit = max_length_tokens or getattr(text, "max_position_embeddings", None)
    fitted = fit_samples(rows, limit, text.vocab_size)
    passes = sample_passes(fitted.samples, max_tokens_per_pass)
    on_device = resolve_device(device)
    settings = [str(names), max_tokens_per_pass, str(compute_dtype), attention, key]
    shapes = [(len(batch.samples), batch.input_ids.shape[1], text.hidden_size) for batch in passes]
    spill = Spill(work, _key(config, weights, fitted, settings), shapes, compute_dtype)
    if spill.note("finished") is None:
        teacher = StreamedTeacher(
            config, weights, names, dtype=compute_dtype, attention=attention, device=on_device
        )
        _go(teacher, spill, passes, fitted.samples, on_layer, on_progress, on_device)
    spill.remove_groups()
    losses = {int(number): loss for number, loss in spill.note("losses").items()}
    return summary_of(fitted, losses, bytes_read=weights.bytes_read, seconds=time.perf_counter() - started)


def _go(
    teacher: StreamedTeacher,
    spill: Spill,
    passes: list[SamplePass],
    samples: list[Sample],
    on_layer: OnLayer,
    on_progress: OnProgress | None,
    device: torch.device,
) -> None:
    """All stages, from where an earlier run came to."""
    n_layers = len(teacher.layers)
    n_forward, lowest_gradient = _progress(spill, n_layers)
    if lowest_gradient is None:
        spill.check_room(n_layers - n_forward + 3)
    with torch.no_grad():
        embedded = [teacher.embedded(batch) for batch in passes]
    if lowest_gradient is None and not spill.has(inputs_of(0)):
        with spill.writing(inputs_of(0)) as files:
            for file, each in zip(files, embedded, strict=True):
                file.copy_(each.first_input)
    run = StreamedRun(
        teacher, spill, passes, [each.calls for each in embedded], on_layer, on_progress, device
    )
    del embedded
    if lowest_gradient is None:
        for number in range(n_forward, n_layers):
            _layer_forward(run, number)
        answer_gradients(run, samples)
        lowest_gradient = n_layers
    for number in reversed(range(lowest_gradient)):
        _layer_backward(run, number)
    teacher.let_go()
    vocabulary_scores(run, samples)
    spill.write_note("finished", True)
    run.tell(2 * n_layers + 2, "embedding and head")


def _progress(spill: Spill, n_layers: int) -> tuple[int, int | None]:
    """How many layers are done forward, and the lowest layer whose input's gradient is known."""
    known = next((n for n in range(n_layers + 1) if spill.has(gradient_at(n))), None)
    if known is not None:
        needed = [inputs_of(n) for n in (*range(known), n_layers)]
        if all(map(spill.has, needed)) and spill.note("losses") is not None:
            return n_layers, known
        spill.clear()
    there = next((n for n in range(n_layers + 1) if not spill.has(inputs_of(n))), n_layers + 1)
    return max(0, there - 1), None


def _layer_forward(run: StreamedRun, number: int) -> None:
    """A layer's outputs, which are the next one's inputs, on disk."""
    run.teacher.layer(number)
    with torch.no_grad(), run.spill.writing(inputs_of(number + 1)) as files:
        for file, given, calls in zip(files, run.spill.read(inputs_of(number)), run.calls, strict=True):
            file.copy_(run.teacher.run_layer(number, given.to(run.device), calls[number]))
    run.tell(number + 1, "forward")


def _layer_backward(run: StreamedRun, number: int) -> None:
    """A layer once more, with gradients: its scores handed over, the gradient at its input on disk."""
    layer = run.teacher.layer(number)
    prefix = f"{run.teacher.names.layers}.{number}."
    sums = GradientSums(layer_linears(layer), prefix)
    given, above = run.spill.read(inputs_of(number)), run.spill.read(gradient_at(number + 1))
    with run.spill.writing(gradient_at(number)) as files:
        for file, batch, calls, part, gradient in zip(
            files, run.passes, run.calls, given, above, strict=True
        ):
            hidden = part.to(run.device).requires_grad_()
            with sums.watching(batch.samples):
                output = run.teacher.run_layer(number, hidden, calls[number])
                output.backward(gradient.to(run.device))
            assert hidden.grad is not None  # noqa: S101 - the output depends on it
            file.copy_(hidden.grad)
            del hidden, output
        weights = {name: linear.weight.detach() for name, linear in layer_linears(layer).items()}
        run.on_layer(LayerScores(number, weights, {name: sums.scores(name) for name in weights}))
    run.spill.remove(gradient_at(number + 1), inputs_of(number))
    run.tell(2 * run.n_layers + 1 - number, "backward")


def _key(
    config: PreTrainedConfig, weights: WeightFiles, fitted: FittedSamples, settings: list[str | int | None]
) -> str:
    """A digest of all that the spilled tensors depend on."""
    rows = [[sample.number, sample.token_ids, sample.n_prompt] for sample in fitted.samples]
    told = [ENGINE_VERSION, weights.identity(), config.to_json_string(), rows, settings]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
