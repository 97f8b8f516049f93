"""What a transfer of a named pair of models will take, told before it starts."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from rich import box
from rich.table import Table
from transformers import AutoModelForCausalLM

from transfuse.errors import RecipeError
from transfuse.generate.local import MAX_BATCH_ROWS
from transfuse.io.configs import load_config
from transfuse.io.memory import available_bytes
from transfuse.io.precision import resolve_device, resolve_precision
from transfuse.io.references import resolve_model
from transfuse.io.task_files import load_tasks
from transfuse.recipes.progress import size_text, span_text
from transfuse.recipes.transfer_figures import DISK_BYTES_PER_S, PlanFigures, Rates, transfer_plan
from transfuse.recipes.transfer_schema import TransferRecipe
from transfuse.transfer.sub_cloning import student_shape

__all__ = ["PlanFigures", "Rates", "measured_rates", "plan_recipe", "plan_transfer_table", "transfer_plan"]

CHARACTERS_A_TOKEN = 4
"""Of English text, about; the plan needs no tokenizer."""
_FLOAT = 4


def measured_rates(seconds: float = 0.5, disk_bytes_per_s: float = DISK_BYTES_PER_S) -> Rates:
    """How fast this machine multiplies matrices and moves memory, from two short probes.

    Args:
        seconds: of both probes together.
        disk_bytes_per_s: taken as it is.

    Returns:
        Rates in float32.
    """
    left, right, product = (torch.ones(1024, 1024) for _ in range(3))
    source, sum_of = torch.ones(1 << 24), torch.zeros(1 << 24)
    matmul_s = _fastest_s(lambda: torch.mm(left, right, out=product), seconds / 2)
    add_s = _fastest_s(lambda: sum_of.add_(source), seconds / 2)
    return Rates(2 * 1024**3 / matmul_s, 3 * _FLOAT * (1 << 24) / add_s, disk_bytes_per_s)


def plan_transfer_table(
    teacher: str,
    student: str,
    *,
    rank: int = 16,
    n_samples: int = 32,
    sample_tokens: int = 256,
    n_train_tokens: int = 0,
    n_arms: int = 1,
    n_learning_rates: int = 1,
    n_seeds: int = 1,
    tokens_per_pass: int = 4096,
    engine: Literal["auto", "memory", "stream"] = "auto",
    rates: Rates | None = None,
    trust_remote_code: bool = False,
) -> Table:
    """The figures of a named pair of models, for a terminal.

    Args:
        teacher: model reference; its configuration is enough, no weight is read.
        student: likewise.
        rank: of the factors.
        n_samples: seed samples.
        sample_tokens: their mean length.
        n_train_tokens: that one run trains on, over all its epochs; 0 leaves training out.
        n_arms: the method and its controls.
        n_learning_rates: that each arm tries.
        n_seeds: runs of each arm.
        tokens_per_pass: most tokens of one forward pass.
        engine: `auto` takes memory where the teacher fits, and for a GGUF file.
        rates: of this machine; None measures them.
        trust_remote_code: whether Python code that comes with a model may run.

    Returns:
        A table for a rich console.

    Raises:
        ModelError: no such model, an unknown architecture, or a teacher that is smaller than the student.
    """
    if engine == "auto" and resolve_model(teacher).kind in ("gguf", "bundled"):
        engine = "memory"
    teacher_config, student_config = (
        load_config(name, trust_remote_code=trust_remote_code) for name in (teacher, student)
    )
    rates, free = rates or measured_rates(), available_bytes()
    figures = transfer_plan(
        teacher_config,
        student_config,
        rates,
        rank=rank,
        n_samples=n_samples,
        sample_tokens=sample_tokens,
        n_train_tokens=n_train_tokens,
        n_arms=n_arms,
        n_learning_rates=n_learning_rates,
        n_seeds=n_seeds,
        tokens_per_pass=tokens_per_pass,
        engine=engine,
        free_bytes=free,
    )
    return _table(figures, f"{n_samples} samples of {sample_tokens} tokens, rank {rank}", rates, free)


def plan_recipe(recipe: TransferRecipe, rates: Rates | None = None) -> Table:
    """The figures of a recipe, for a terminal; its samples are counted, its models' configurations are enough.

    Args:
        recipe: of any method.
        rates: of this machine; None measures them.

    Returns:
        A table for a rich console.

    Raises:
        RecipeError: the shape of a new student is given, but no teacher.
        TransfuseError: a file cannot be read, or the models do not fit.
    """
    trust = recipe.trust_remote_code
    needs_teacher = recipe.extracts or recipe.shape is not None
    if needs_teacher and recipe.teacher is None:
        raise RecipeError("transfuse plan: expected a recipe with a teacher, got none; add teacher: MODEL.")
    # Without an extraction, what is adapted are the student's own matrices.
    teacher_config = load_config(
        str(recipe.teacher) if needs_teacher else recipe.student, trust_remote_code=trust
    )
    if recipe.shape is not None:
        student_config = student_shape(teacher_config, **recipe.shape.model_dump())
    else:
        student_config = load_config(recipe.student, trust_remote_code=trust)
    task = recipe.task or recipe.train_file
    samples = _lengths(task, recipe.sensitivity.n_samples) if task is not None and recipe.extracts else []
    lessons = _lengths(recipe.train_file, recipe.n_train) if recipe.train_file is not None else []
    n_samples, sample_tokens = max(1, len(samples)), _all_tokens(samples) // max(1, len(samples))
    engine = recipe.sensitivity.engine
    is_whole = recipe.extracts and resolve_model(str(recipe.teacher)).kind in ("gguf", "bundled")
    rank, rates, free = recipe.train.lora.rank, rates or measured_rates(), available_bytes()
    figures = transfer_plan(
        teacher_config,
        student_config,
        rates,
        rank=rank,
        n_samples=n_samples,
        sample_tokens=sample_tokens,
        n_train_tokens=recipe.train.read_tokens(round(_all_tokens(lessons) * (1 - recipe.held_out_share))),
        n_arms=len(recipe.arms),
        n_learning_rates=len(recipe.rates),
        n_seeds=recipe.n_seeds,
        tokens_per_pass=recipe.sensitivity.max_tokens_per_pass,
        train_tokens_per_pass=recipe.train.pass_tokens(resolve_device().type),
        roles=recipe.extract.roles,
        engine="memory" if engine == "auto" and is_whole else engine,
        free_bytes=free,
    )
    if recipe.extracts:
        title = f"{n_samples} samples of about {sample_tokens} tokens, rank {rank}"
    else:
        title = (
            f"{len(lessons)} training samples of about {_all_tokens(lessons) // max(1, len(lessons))} tokens"
        )
    teaching = _teaching_lines(recipe, lessons, rates) if lessons else {}
    return _table(figures, title, rates, free, extracts=recipe.extracts, teaching=teaching)


class _Length(NamedTuple):
    """About how many tokens a sample has."""

    prompt: int
    answer: int


def _all_tokens(lengths: Sequence[_Length]) -> int:
    return sum(each.prompt + each.answer for each in lengths)


def _teaching_lines(recipe: TransferRecipe, lessons: Sequence[_Length], rates: Rates) -> dict[str, str]:
    """What it takes to ask a teacher for distributions or answers, once, about the samples that are read."""
    n_tokens = _all_tokens(lessons)
    share = 1 - recipe.held_out_share
    if recipe.train.n_tokens is not None:
        share = min(share, recipe.train.n_tokens / max(1, n_tokens))
    n_samples = math.ceil(share * len(lessons))
    lines: dict[str, str] = {}
    is_online, is_offline = (f"{kind}-distillation" in recipe.arms for kind in ("online", "offline"))
    has_writer = recipe.distillation.generator is not None
    n_parameters = 0
    if recipe.teacher is not None and (is_online or (is_offline and not has_writer)):
        n_parameters, _ = model_sizes(recipe.teacher, trust_remote_code=recipe.trust_remote_code)
        weight_bytes = 2 if resolve_precision(recipe.precision, resolve_device()) == torch.bfloat16 else 4
        lines["Teacher in memory, asked before training"] = size_text(n_parameters * weight_bytes)
    if is_online:
        n_learned = round(share * sum(each.answer for each in lessons))
        seconds = pass_s(n_parameters, round(share * n_tokens), rates)
        lines["Its distributions on disk"] = size_text(n_learned * recipe.distillation.top_k * 2 * _FLOAT)
        lines["Time of its pass over the training samples"] = f"about {span_text(seconds)}"
    if is_offline:
        lines["Answers to be written"] = f"{n_samples:,}"
        if has_writer:
            lines["Requests for them"] = f"{n_samples:,}"
        else:
            n_written = recipe.distillation.max_new_tokens
            prompts = round(share * sum(each.prompt for each in lessons))
            # Each new token of a batch reads all weights once.
            moved = math.ceil(n_samples / MAX_BATCH_ROWS) * n_written * n_parameters * _FLOAT
            seconds = pass_s(n_parameters, prompts + n_samples * n_written, rates)
            seconds += moved / rates.memory_bytes_per_s
            lines["Time to write them, at most"] = f"about {span_text(seconds)}"
    return lines


def model_sizes(reference: str, *, trust_remote_code: bool) -> tuple[int, int]:
    """Parameters and outputs of a model, made of its configuration without memory.

    Args:
        reference: of the model.
        trust_remote_code: whether Python code that comes with it may run.

    Returns:
        Both numbers.

    Raises:
        ModelError: no such model.
    """
    config = load_config(reference, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return sum(weight.numel() for weight in model.parameters()), int(config.get_text_config().vocab_size)


def pass_s(n_parameters: int, n_tokens: int, rates: Rates) -> float:
    """Seconds of one forward pass over so many tokens, at a machine's rate of multiplying."""
    return 2 * n_parameters * n_tokens / rates.flops_per_s


def _lengths(path: Path, n_items: int | None) -> list[_Length]:
    return [
        _Length(
            sum(len(turn.content) for turn in item.messages) // CHARACTERS_A_TOKEN,
            len(item.answer) // CHARACTERS_A_TOKEN + 1,
        )
        for item in load_tasks(path)[:n_items]
    ]


def _table(
    figures: PlanFigures,
    title: str,
    rates: Rates,
    free: int | None,
    *,
    extracts: bool = True,
    teaching: Mapping[str, str] = MappingProxyType({}),
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, caption_justify="left")
    table.add_column(title)
    table.add_column("", justify="right")
    lines = {**(_extraction_lines(figures) if extracts else _student_lines(figures)), **teaching}
    for name, value in {**lines, **_training_lines(figures)}.items():
        table.add_row(name, value)
    known = f"{free / 2**30:.1f} GiB of memory are free" if free is not None else "free memory is unknown"
    peak = figures.training_peak_bytes
    if extracts:
        peak = figures.stream_peak_bytes if figures.engine == "stream" else figures.memory_peak_bytes
    misfit = " That is not enough." if free is not None and peak > free else ""
    told = f"Engine '{figures.engine}': {known}" if extracts else f"Memory: {known}"
    table.caption = (
        f"{told}.{misfit} Parameters and files are exact; memory and time are "
        f"estimates, at {rates.flops_per_s / 1e9:,.0f} GFLOP/s and {rates.memory_bytes_per_s / 1e9:,.1f} GB/s of "
        f"memory as just measured and {rates.disk_bytes_per_s / 1e9:,.1f} GB/s of disk as assumed."
    )
    return table


def _student_lines(figures: PlanFigures) -> dict[str, str]:
    return {
        "Student, parameters": f"{figures.student.total:,}",
        "Student on disk": size_text(figures.student_bytes),
    }


def _extraction_lines(figures: PlanFigures) -> dict[str, str]:
    return {
        "Teacher, parameters": f"{figures.teacher.total:,}",
        "Teacher on disk": size_text(figures.teacher_bytes),
        **_student_lines(figures),
        "Peak memory, whole teacher in memory": size_text(figures.memory_peak_bytes),
        "Peak memory, streamed layer by layer": size_text(figures.stream_peak_bytes),
        "Engine": figures.engine,
        "Weights read from disk": size_text(figures.weights_read_bytes),
        "Spilled layer inputs and gradients": size_text(figures.spill_bytes),
        "Disk traffic, all together": size_text(figures.disk_bytes),
        "Factors kept until layers are chosen": size_text(figures.kept_bytes),
        "Starting factors": size_text(figures.adapter_bytes),
        "Operations of the extraction": f"{figures.extraction_flops:.2g} FLOP",
        "Time of the extraction": f"about {span_text(figures.extraction_s)}",
    }


def _training_lines(figures: PlanFigures) -> dict[str, str]:
    if not figures.n_runs:
        return {}
    return {
        "Trainings of the student": f"{figures.n_runs:,}",
        "Peak memory in training": size_text(figures.training_peak_bytes),
        "Time of one training": f"about {span_text(figures.run_s)}",
        "Time of all trainings": f"about {span_text(figures.training_s)}",
    }


def _fastest_s(work: Callable[[], object], seconds: float) -> float:
    """Shortest time of one piece of work, over as many as fit; the first warms up and is not counted."""
    work()
    begun, times = time.perf_counter(), [math.inf]
    while times == [math.inf] or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
