"""The one training loop: every route hands it a model and rows of tokens.

Every step is a function of the seed, the rows and the step's number alone (order, dropout, learning rate), so a
run that was killed continues from its checkpoint to the same weights.
"""

import math
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import get_scheduler

from transfuse.errors import TrainingError
from transfuse.train.batches import (
    LazyRows,
    Rows,
    TrainingPass,
    TrainingRow,
    packed_passes,
    padded_passes,
    row_lengths,
)
from transfuse.train.checkpoints import load_checkpoint, save_checkpoint
from transfuse.train.fast_paths import choose_head, choose_packing
from transfuse.train.objective import AnswerLoss, move_pass
from transfuse.train.settings import TrainSettings
from transfuse.train.sharding import gathered_at_last, give_back, is_sharded, shard, training_copy, whole
from transfuse.train.soft_targets import refuse_uneven_targets
from transfuse.train.steps import StepPlan
from transfuse.train.summary import Progress, StepLog, TrainingSummary
from transfuse.train.trackers import Trackers


def train(
    model: nn.Module,
    rows: Rows,
    settings: TrainSettings,
    *,
    seed: int,
    compute_dtype: torch.dtype,
    pad_id: int,
    folder: Path,
    run_name: str = "transfuse",
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> TrainingSummary:
    """Train the weights that need a gradient, in place; continue from the checkpoint in `folder` if there is one.

    The loss of a step is the weighted mean over all its learned tokens, however they are spread over passes and
    processes.

    Args:
        model: a causal language model of transformers, or one wrapped by PEFT; trained weights in float32.
        rows: at least one; every process is given all of them. Those that are made when asked for (`LazyRows`) are
            made as steps come to them, and checked then.
        settings: see `TrainSettings`.
        seed: of the order of rows and of dropout.
        compute_dtype: bfloat16 for autocast, float32 for none.
        pad_id: token that fills up padded batches.
        folder: for the checkpoint and the trackers' files.
        run_name: for the trackers.
        on_step: called by the main process after each step.

    Returns:
        Counts, seconds and the curve; the model is left in evaluation mode.

    Raises:
        TrainingError: no rows, soft targets that do not fit theirs, or the loss is not finite (the last good
            checkpoint stays in `folder`).
        RunFolderError: the checkpoint cannot be written.
    """
    if not len(rows):
        raise TrainingError(
            "expected training rows, got none; check the scale, the kept-out share and max_length_tokens."
        )
    if not isinstance(rows, LazyRows):
        refuse_uneven_targets([(row.n_learned, row.soft) for row in rows])
    accelerator = _accelerator_on(_device_of(model).type)
    run = _Run(model, rows, settings, seed, compute_dtype, pad_id, folder, accelerator)
    trackers = Trackers(
        settings.report_to if accelerator.is_main_process else [],
        folder,
        run_name,
        run.summary.n_steps,
        accelerator.device.type == "cpu",
    )
    trackers.begin(model)
    first_step = run.resume()
    last_save = time.monotonic()
    for step in range(first_step, run.summary.n_steps):
        log = run.step(step)
        if accelerator.is_main_process:
            trackers.log(
                log.step, {"loss": log.loss, "learning_rate": log.learning_rate, "grad_norm": log.grad_norm}
            )
            on_step(run.progress(log))
        if run.agrees(time.monotonic() - last_save > settings.checkpoint_s):
            run.save()
            last_save = time.monotonic()
    trackers.end()
    run.finish()
    return run.summary


class _Run:
    """State of one training run: the prepared model, its optimizer, and what has been done."""

    def __init__(
        self,
        model: nn.Module,
        rows: Rows,
        settings: TrainSettings,
        seed: int,
        compute_dtype: torch.dtype,
        pad_id: int,
        folder: Path,
        accelerator: Accelerator,
    ) -> None:
        self._rows, self._settings, self._seed, self._pad_id = rows, settings, seed, pad_id
        self._accelerator, self._device = accelerator, _device_of(model)
        self._given, self._is_sharded = model, is_sharded(accelerator)
        if self._is_sharded:
            model = training_copy(model, accelerator)
        self._model = model
        self._checkpoint = folder / "checkpoint"
        if settings.gradient_checkpointing:
            _without_deprecation(model.gradient_checkpointing_enable, {"use_reentrant": False})
            if hasattr(model, "enable_input_require_grads"):
                model.enable_input_require_grads()  # type: ignore[operator]
        objective = AnswerLoss(model, compute_dtype)
        device = _device_of(model)
        warnings = choose_head(objective, rows, settings, pad_id, device)
        is_packed, packing_warnings = choose_packing(objective, rows, settings, pad_id, device)
        self._plan = StepPlan(row_lengths(rows), settings, seed, by_length=not is_packed)
        self.summary = TrainingSummary(
            n_rows=len(rows),
            n_steps=self._plan.n_steps,
            is_packed=is_packed,
            warnings=[*warnings, *packing_warnings],
        )
        self._objective: nn.Module = objective
        if self._is_sharded:
            shard(objective, objective.units, accelerator)
        else:
            self._objective = accelerator.prepare(objective)
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._weights,
            lr=settings.peak_learning_rate,
            weight_decay=settings.weight_decay,
            betas=settings.betas,
        )
        schedule = get_scheduler(
            settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
            self._optimizer,
            num_warmup_steps=round(settings.warmup_share * self.summary.n_steps),
            num_training_steps=self.summary.n_steps,
        )
        self._share_of_peak: Callable[[int], float] = schedule.lr_lambdas[0]  # type: ignore[attr-defined]

    def resume(self) -> int:
        """Put the checkpoint back, if there is one; the number of the first step to do."""
        progress = load_checkpoint(self._checkpoint, self._model, self._optimizer)
        self._objective.train()
        if progress is None:
            return 0
        self.summary.curve = [StepLog(**log) for log in progress["curve"]]
        self.summary.n_tokens, self.summary.seconds = progress["n_tokens"], progress["seconds"]
        return len(self.summary.curve)

    def save(self) -> None:
        """Write a checkpoint of the steps done so far; every process whose weights are spread takes part."""
        progress: dict[str, Any] = {
            "n_tokens": self.summary.n_tokens,
            "seconds": self.summary.seconds,
            "curve": [asdict(log) for log in self.summary.curve],
        }
        is_main = self._accelerator.is_main_process
        if is_main or self._is_sharded:
            save_checkpoint(self._checkpoint, self._model, self._optimizer, progress, is_writer=is_main)

    def agrees(self, is_wanted: bool) -> bool:
        """What the first process wants, where all have to take part in it."""
        if not self._is_sharded:
            return is_wanted
        box = [is_wanted]
        broadcast_object_list(box)
        return box[0]

    def step(self, step: int) -> StepLog:
        """Do one optimizer step."""
        started = time.perf_counter()
        accelerator, settings = self._accelerator, self._settings
        torch.manual_seed((self._seed * 1_000_003 + step) * 1_009 + accelerator.process_index)
        learning_rate = settings.peak_learning_rate * self._share_of_peak(step)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        members = self._step_rows(step)
        loss = self._backward(members, sum(sum(row.weights) for row in members))
        grad_norm = float(whole(nn.utils.clip_grad_norm_(self._weights, settings.max_grad_norm)))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            if self.agrees(bool(step) and not self._checkpoint.is_dir()):
                self.save()  # none was due yet, and the weights of the step before are still in place
            raise self._not_finite(step, loss, grad_norm, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        n_tokens = sum(len(row.token_ids) for row in members)
        log = StepLog(
            step=step + 1,
            epoch=round((step + 1) / self._plan.steps_per_epoch, 4),
            loss=loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            tokens=n_tokens,
        )
        self.summary.curve.append(log)
        self.summary.n_tokens += n_tokens
        self.summary.seconds += time.perf_counter() - started
        return log

    def progress(self, log: StepLog) -> Progress:
        """Rate and time left after a step."""
        recent = self.summary
        left = (recent.n_steps - log.step) * recent.seconds / max(1, len(recent.curve))
        return Progress(log, recent.n_steps, recent.tokens_per_s, left)

    def finish(self) -> None:
        """Leave the model as an ordinary one, in evaluation mode."""
        self._accelerator.wait_for_everyone()
        if self._is_sharded:
            give_back(self._model, self._given, self._device)
        elif self._settings.gradient_checkpointing:
            _without_deprecation(self._model.gradient_checkpointing_disable)
        self._given.eval()

    def _step_rows(self, step: int) -> list[TrainingRow]:
        members = [self._rows[index] for index in self._plan.rows(step)]
        if isinstance(self._rows, LazyRows):
            refuse_uneven_targets([(row.n_learned, row.soft) for row in members])
        return members

    def _backward(self, members: list[TrainingRow], total_weight: float) -> float:
        """Add up the gradients of a step; its mean loss per target token over all processes, in nats."""
        accelerator = self._accelerator
        total = torch.zeros((), device=accelerator.device)
        passes = self._passes(members)
        for n_pass, (batch, weight) in enumerate(passes):
            is_last = n_pass == len(passes) - 1
            with self._exchange(is_last):
                loss_nats: Tensor = self._objective(**move_pass(batch, accelerator.device)) * weight
                # Data-parallel engines average gradients over processes; the mean here is over all targets.
                accelerator.backward(loss_nats * (accelerator.num_processes / total_weight))
            total += loss_nats.detach()
        summed = accelerator.reduce(total, reduction="sum")
        return float(summed) / total_weight  # type: ignore[arg-type]

    def _exchange(self, is_last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged after a step's last pass alone."""
        if self._is_sharded:
            return gathered_at_last(self._objective, is_last)
        return nullcontext() if is_last else self._accelerator.no_sync(self._objective)

    def _passes(self, members: list[TrainingRow]) -> list[tuple[TrainingPass, float]]:
        """This process's share of a step, with the weight of each pass."""
        accelerator = self._accelerator
        limit = self._settings.pass_tokens(accelerator.device.type)
        own = members[accelerator.process_index :: accelerator.num_processes]
        # Every process must take part in the gradient exchange, so one without rows repeats one at weight 0.
        weight = 1.0 if own else 0.0
        share = own or members[:1]
        batches = (
            packed_passes(share, limit)
            if self.summary.is_packed
            else padded_passes(share, limit, self._pad_id)
        )
        passes = [(batch, weight) for batch in batches]
        if self._is_sharded:
            # Each pass gathers the weights, so every process must do as many.
            counts: Any = accelerator.gather(torch.tensor([len(passes)], device=accelerator.device))
            passes += [(passes[-1][0], 0.0)] * (int(counts.max()) - len(passes))
        return passes

    def _not_finite(self, step: int, loss: float, grad_norm: float, learning_rate: float) -> TrainingError:
        kept = (
            f"the last checkpoint is kept in {self._checkpoint}"
            if self._checkpoint.is_dir()
            else "there is none, since it was the first step"
        )
        return TrainingError(
            f"training: step {step + 1} of {self.summary.n_steps}: expected a finite loss and gradient, got loss "
            f"{loss:g} and gradient norm {grad_norm:g} at learning rate {learning_rate:.3g}; {kept}. "
            f"Lower train.learning_rate (or set precision to float32), and give --overwrite to use the same folder."
        )


def _without_deprecation(call: Any, *arguments: Any) -> None:
    """transformers renames gradient checkpointing on the way to its next major version."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        call(*arguments)


def _accelerator_on(kind: str) -> Accelerator:
    """The process's accelerator, where the model is: accelerate would stay on the device of an earlier training."""
    earlier = PartialState._shared_state
    if earlier and PartialState().num_processes == 1 and earlier["device"].type != kind:
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(mixed_precision="no", cpu=kind == "cpu")


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
