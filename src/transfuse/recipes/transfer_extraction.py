"""The first half of the parameter route: the teacher is measured, and the student's start cut out of it."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from transfuse.errors import DataError, RunFolderError
from transfuse.io.chat import prompt_format
from transfuse.io.configs import weights_folder
from transfuse.io.files import file_sha256, write_json
from transfuse.io.fingerprint import model_fingerprint
from transfuse.io.memory import available_bytes, peak_gib
from transfuse.io.models import load_model, load_tokenizer
from transfuse.io.precision import resolve_device, resolve_precision
from transfuse.io.references import resolve_model
from transfuse.io.run_folder import RunFolder, Stage
from transfuse.io.task_files import load_tasks
from transfuse.recipes.progress import Display
from transfuse.recipes.transfer_figures import activation_bytes, auto_engine, parameter_counts
from transfuse.recipes.transfer_pair import Pair, read_pair
from transfuse.recipes.transfer_reading import file_reader, layer_reader, model_reader
from transfuse.recipes.transfer_schema import TransferRecipe
from transfuse.tensors.sub_matrices import Cut
from transfuse.train.batches import TrainingRow
from transfuse.train.factor_files import save_factors
from transfuse.train.starting_factors import Factors
from transfuse.train.task_rows import task_rows
from transfuse.transfer.adapter_deltas import adapter_deltas
from transfuse.transfer.architecture import Role
from transfuse.transfer.assembly import (
    ReadLayer,
    block_records,
    coupled_layers,
    layer_scores,
    load_cuts,
    save_cuts,
    starting_factors,
)
from transfuse.transfer.extraction import LayerExtraction, Wanted
from transfuse.transfer.extraction_files import Extractor, load_extraction
from transfuse.transfer.layers import choose_layers
from transfuse.transfer.memory_engine import memory_sensitivity
from transfuse.transfer.sensitivity import ModelNames, SensitivitySummary
from transfuse.transfer.streamed_engine import streamed_sensitivity

EXTRACTION_VERSION = 1
SUMMARY, CUTS, START, RANDOM_BLOCK = "extraction.json", "cuts.safetensors", "start", "start-random-block"


@dataclass(frozen=True)
class Extraction:
    """What training can start from."""

    folder: Path
    summary: dict[str, Any]
    """The part `transfer` of `report.json`."""
    key: str

    def start(self) -> dict[str, Factors]:
        """The extracted factors, by the student's module names."""
        return adapter_deltas(self.folder / START)

    def random_block(self) -> dict[str, Factors]:
        """The control's: blocks from drawn places of drawn layers."""
        return adapter_deltas(self.folder / RANDOM_BLOCK)

    def cuts(self) -> tuple[list[dict[Role, Cut]], dict[Role, Cut]]:
        """Where each of the student's layers, and embedding and head, stood in the teacher."""
        return load_cuts(self.folder / CUTS)


def extract(recipe: TransferRecipe, run: RunFolder, display: Display) -> Extraction:
    """Measure the teacher, choose layers, and write the student's starting factors.

    Args:
        recipe: names teacher, student and seed samples.
        run: the run folder; the stage is reused or continued where an earlier process got to.
        display: progress.

    Returns:
        The extraction, its files in the stage's folder.

    Raises:
        TransfuseError: a model, a file or the disk does not do; teacher and student do not fit.
    """
    task = recipe.task or recipe.train_file
    assert task is not None  # noqa: S101 - the recipe checks it
    assert recipe.teacher is not None  # noqa: S101 - and this
    pair = read_pair(recipe)
    key = {
        "teacher": model_fingerprint(recipe.teacher),
        "student": pair.student_config.to_dict(),
        "student_tokenizer": recipe.student,
        "task": file_sha256(task),
        "sensitivity": recipe.sensitivity.model_dump(mode="json"),
        "extract": recipe.extract.model_dump(mode="json"),
        "rank": recipe.train.lora.rank,
        "seed": recipe.seed,
        "precision": recipe.precision,
        "random_block": "random-block" in recipe.controls,
        "result": recipe.result,
    }
    with run.stage("extraction", key, version=EXTRACTION_VERSION) as stage:
        if not stage.is_done:
            _extract_into(recipe, task, pair, stage, display)
        summary = json.loads((stage.folder / SUMMARY).read_text(encoding="utf-8"))
    return Extraction(stage.folder, summary, stage.key)


def finished_extraction(folder: Path) -> Extraction:
    """The extraction of an earlier run.

    Args:
        folder: run folder of a finished `transfer extract`, or of any transfer run.

    Returns:
        The extraction.

    Raises:
        RunFolderError: there is none, or it is not finished.
    """
    stage = folder / "extraction"
    try:
        key = json.loads((stage / "done.json").read_text(encoding="utf-8"))["key"]
        summary = json.loads((stage / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as err:
        raise RunFolderError(
            f"{folder}: expected the run folder of a finished `transfuse transfer extract`, found no "
            f"{stage.name}/done.json; check the path, or finish that run."
        ) from err
    return Extraction(stage, summary, key)


def _extract_into(recipe: TransferRecipe, task: Path, pair: Pair, stage: Stage, display: Display) -> None:
    assert recipe.teacher is not None  # noqa: S101 - the recipe checks it
    wanted = Wanted(
        pair.teacher,
        pair.student,
        pair.roles,
        recipe.extract.reduce,
        recipe.train.lora.rank,
        pair.token_rows,
        recipe.seed,
        with_random_block="random-block" in recipe.controls,
        has_factors=recipe.result == "adapter",
    )
    rows = _seed_rows(recipe, task)
    layers = stage.folder / "layers"
    layers.mkdir(exist_ok=True)
    summary, read_layer, engine = _measure(recipe, pair, rows, Extractor(wanted, layers), stage, display)
    extractions = [
        load_extraction(layers, layer, with_factors=False) for layer in range(pair.teacher.n_layers)
    ]
    scores = layer_scores(extractions)
    n_student = pair.student.n_layers
    generator = torch.Generator().manual_seed(recipe.seed)
    chosen = choose_layers(recipe.extract.layers, scores, n_student, generator)
    kept = [load_extraction(layers, layer) for layer in chosen]
    outside = load_extraction(layers, None)
    if recipe.extract.reduce == "coupled":
        display.say("Reading the chosen layers again, to cut all of them on the same indices.")
        kept, cut_outside = coupled_layers(kept, outside, wanted, read_layer)
        outside = cut_outside or outside
    start = starting_factors(kept, outside, "method", pair.student, recipe.extract)
    embedding = (pair.student.embedding.name,)
    if recipe.result == "adapter":
        save_factors(start, stage.folder / START, recipe.student, embeddings=embedding)
    save_cuts(kept, outside, stage.folder / CUTS)
    if wanted.with_random_block:
        drawn = choose_layers("random", scores, n_student, generator)
        control = [load_extraction(layers, layer) for layer in drawn]
        factors = starting_factors(control, outside, "random-block", pair.student, recipe.extract)
        save_factors(factors, stage.folder / RANDOM_BLOCK, recipe.student, embeddings=embedding)
    told = _told(recipe, pair, summary, engine, extractions, outside, chosen)
    told["blocks"] = block_records(kept, outside, wanted)
    write_json(stage.folder / SUMMARY, told)
    shutil.rmtree(stage.folder / "work", ignore_errors=True)


def _seed_rows(recipe: TransferRecipe, task: Path) -> list[TrainingRow]:
    """The seed samples as the teacher reads them; too long ones are left to the engine, which cuts and counts."""
    assert recipe.teacher is not None  # noqa: S101 - the recipe checks it
    items = load_tasks(task)[: recipe.sensitivity.n_samples]
    tokenizer = load_tokenizer(recipe.teacher, trust_remote_code=recipe.trust_remote_code)
    rows, dropped = task_rows(items, prompt_format(tokenizer), None)
    if not rows:
        reason = dropped[0].reason if dropped else "none is there"
        raise DataError(f"{task}: expected seed samples with an answer, got none ({reason}).")
    return rows


def _measure(
    recipe: TransferRecipe,
    pair: Pair,
    rows: list[TrainingRow],
    extractor: Extractor,
    stage: Stage,
    display: Display,
) -> tuple[SensitivitySummary, ReadLayer, str]:
    """Run an engine over all layers; also a way to read a layer's weights again."""
    assert recipe.teacher is not None  # noqa: S101 - the recipe checks it
    engine, why = choose_engine(recipe, pair, sum(len(row.token_ids) for row in rows))
    display.say(
        f"Teacher: {pair.teacher.n_layers} layers, engine '{engine}' ({why}); {len(rows)} seed samples."
    )
    teacher = pair.teacher
    names = ModelNames(teacher.layers, teacher.embedding.name, teacher.head.name, teacher.aliases)
    settings = recipe.sensitivity
    limit = settings.max_length_tokens
    with display.bar("sensitivity") as advance:
        if engine == "memory":
            loaded = load_model(
                recipe.teacher, precision=recipe.precision, trust_remote_code=recipe.trust_remote_code
            )
            summary = memory_sensitivity(
                loaded.model,
                rows,
                extractor,
                names=names,
                max_length_tokens=limit,
                max_tokens_per_pass=settings.max_tokens_per_pass,
                on_progress=advance,
            )
            return summary, layer_reader(model_reader(loaded), teacher), engine

        files = weights_folder(recipe.teacher)
        summary = streamed_sensitivity(
            files,
            rows,
            extractor,
            names=names,
            work=stage.folder / "work",
            key=stage.key,
            compute_dtype=resolve_precision(recipe.precision, resolve_device()),
            device=None,
            max_length_tokens=limit,
            max_tokens_per_pass=settings.max_tokens_per_pass,
            on_progress=advance,
        )
    return summary, layer_reader(file_reader(files, teacher), teacher), engine


def choose_engine(recipe: TransferRecipe, pair: Pair, n_tokens: int) -> tuple[str, str]:
    """Which engine to use, and why.

    Args:
        recipe: names an engine, or `auto`.
        pair: tells the teacher's size.
        n_tokens: of all seed samples.

    Returns:
        `memory` or `stream`, and the reason in a few words.
    """
    assert recipe.teacher is not None  # noqa: S101 - the recipe checks it
    if recipe.sensitivity.engine != "auto":
        return recipe.sensitivity.engine, "as asked"
    if resolve_model(recipe.teacher).kind in ("gguf", "bundled"):
        return "memory", "a GGUF file is loaded whole"
    n_parameters, free = parameter_counts(pair.teacher).total, _free_bytes()
    told = "unknown" if free is None else f"{free / 2**30:.1f} GiB"
    n_tokens = min(n_tokens, recipe.sensitivity.max_tokens_per_pass)
    engine = auto_engine(n_parameters, free, activation_bytes(pair.teacher, n_tokens))
    return engine, f"{n_parameters:,} parameters, free memory {told}"


def _free_bytes() -> int | None:
    """Memory where the teacher would be: on the accelerator, which it reaches by way of the machine's own."""
    free, device = available_bytes(), resolve_device()
    if device.type != "cuda":
        return free
    on_device = torch.cuda.mem_get_info(device)[0]
    return on_device if free is None else min(free, on_device)


def _told(
    recipe: TransferRecipe,
    pair: Pair,
    summary: SensitivitySummary,
    engine: str,
    extractions: list[LayerExtraction],
    outside: LayerExtraction,
    chosen: list[int],
) -> dict[str, Any]:
    roles: list[Role] = list(dict.fromkeys(role for each in extractions for role in each.scores))
    return {
        "teacher": recipe.teacher,
        "student": recipe.student_name,
        "method": recipe.method,
        "engine": engine,
        "reduce": recipe.extract.reduce,
        "layer_choice": recipe.extract.layers,
        "rank": recipe.train.lora.rank if recipe.result == "adapter" else None,
        "n_seeds_samples": summary.n_samples,
        "n_samples_cut": summary.n_cut,
        "n_sample_tokens": summary.n_tokens,
        "n_answer_tokens": summary.n_answer_tokens,
        "seconds": round(summary.seconds, 2),
        "bytes_read": summary.bytes_read,
        "peak_gib": round(peak_gib(), 2),
        "layers": {"scores": layer_scores(extractions), "chosen": chosen},
        "modules": [
            {"name": role, "scores": [each.scores.get(role, 0.0) for each in extractions]} for role in roles
        ]
        + [{"name": role, "scores": [score]} for role, score in outside.scores.items()],
        "left_out": [asdict(each) for each in (*pair.left_out, *summary.dropped)],
    }
