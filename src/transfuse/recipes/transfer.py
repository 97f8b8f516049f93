"""The parameter route: a larger teacher's weights into a smaller student's adapter, and what that is worth.

Source: Zhong et al. 2024, arXiv:2310.11451. Differs: the base stays untouched (a frozen branch takes the extracted
factors off again), fused and grouped matrices are cut role by role, and controls are trained beside the method, each
with a learning rate of its own.
"""

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transfuse.baselines.distillation import refuse_other_vocabulary
from transfuse.errors import RecipeError, TrainingError
from transfuse.generate.references import check_generator
from transfuse.generate.settings import WITHOUT_EFFECT
from transfuse.io.configs import load_config
from transfuse.io.files import atomic_folder, file_sha256, write_json
from transfuse.io.fingerprint import model_fingerprint
from transfuse.io.hardware import manifest
from transfuse.io.memory import available_bytes
from transfuse.io.models import load_tokenizer
from transfuse.io.run_folder import RunFolder, open_run
from transfuse.io.task_files import load_tasks
from transfuse.recipes.progress import Display
from transfuse.recipes.team import Team
from transfuse.recipes.transfer_arms import ArmRun, Starts, train_arm
from transfuse.recipes.transfer_card import write_arm_card, write_start_card, write_student_card
from transfuse.recipes.transfer_delta import Carried, carry
from transfuse.recipes.transfer_extraction import (
    RANDOM_BLOCK,
    START,
    Extraction,
    extract,
    finished_extraction,
)
from transfuse.recipes.transfer_figures import parameter_counts
from transfuse.recipes.transfer_lessons import Lessons, make_lessons
from transfuse.recipes.transfer_measure import Measured, Questions, measure, read_questions
from transfuse.recipes.transfer_model import make_student
from transfuse.recipes.transfer_pair import check_pair
from transfuse.recipes.transfer_report import Arm, report_json
from transfuse.recipes.transfer_schema import Control, TransferRecipe
from transfuse.train.trackers import check_trackers
from transfuse.transfer.families import architecture_of


def run_transfer(recipe: TransferRecipe, out: Path, *, overwrite: bool, command: str) -> Path:
    """Run the parameter route, or continue it where an earlier process stopped.

    Args:
        recipe: what to do; without a training file the run ends with the extraction.
        out: the run folder.
        overwrite: whether a folder of a different recipe may be taken over.
        command: for the manifest and the report.

    Returns:
        The run folder, with `report.json` and the adapter (or the new student) in it.

    Raises:
        TransfuseError: any fault of the input, the models or the machine, with what to do.
    """
    if Team().size > 1:
        raise RecipeError(
            "transfuse transfer runs in one process; start it without a launcher. (Its adapters train on one device.)"
        )
    display = Display()
    started = _now()
    questions = check_inputs(recipe)
    free = [f"distillation.generator.{name}" for name in WITHOUT_EFFECT]
    with open_run(out, recipe.model_dump(mode="json"), overwrite=overwrite, free=free) as run:
        write_json(run.path / "manifest.json", manifest(command, started, None))
        extraction = _extraction(recipe, run, display)
        arms: list[Arm] = []
        others: dict[str, Measured] = {}
        lessons: Lessons | None = None
        carried: Carried | None = None
        result: Path | None = None
        if recipe.result == "model":
            result = make_student(recipe, run, display, extraction)
        elif recipe.train_file is not None:
            carried = carry(recipe, run, display)
            starts = starts_of(extraction, carried)
            lessons = make_lessons(recipe, run, display)
            others = _measure_others(recipe, run, display, questions, carried)
            arms = train_arms(recipe, run, display, questions, lessons, starts, recipe.arms)
            result = _save_result(arms[0], run)
        report = report_json(
            recipe,
            run.stages,
            command,
            extraction.summary if extraction else None,
            carried.summary if carried else None,
            arms,
            others,
            questions,
            lessons.dropped if lessons else [],
            lessons.notes if lessons else [],
            result,
        )
        write_json(run.path / "report.json", report)
        _write_cards(recipe, arms, result, report)
        _write_start_cards(recipe, run, carried, report)
        write_json(run.path / "manifest.json", manifest(command, started, _now()))
    return out


def check_inputs(recipe: TransferRecipe) -> Questions | None:
    """Faults of the files are named before anything heavy starts, and before a folder is made."""
    check_trackers(recipe.train.report_to)
    for path in (recipe.task, recipe.train_file):
        if path is not None:
            load_tasks(path)
    for reference in (recipe.teacher, recipe.student):
        if reference is not None and (reference != recipe.student or recipe.shape is None):
            model_fingerprint(reference)
    if recipe.extraction is not None:
        finished_extraction(recipe.extraction)
    elif recipe.extracts:
        check_pair(recipe)
    if recipe.distillation.generator is not None:
        check_generator(recipe.distillation.generator)
    is_refused = recipe.distillation.other_vocabulary == "refuse"
    if is_refused and "online-distillation" in recipe.arms and recipe.train_file is not None:
        assert recipe.teacher is not None  # noqa: S101 - the recipe checks it
        trust = recipe.trust_remote_code
        refuse_other_vocabulary(
            *(load_tokenizer(name, trust_remote_code=trust) for name in (recipe.teacher, recipe.student))
        )
    return read_questions(recipe)


def _extraction(recipe: TransferRecipe, run: RunFolder, display: Display) -> Extraction | None:
    if recipe.extraction is not None:
        return finished_extraction(recipe.extraction)
    return extract(recipe, run, display) if recipe.extracts else None


def starts_of(extraction: Extraction | None, carried: Carried | None) -> Starts:
    """What adapters can start from: extracted factors, a carried delta, both or neither."""
    key: dict[str, str] = {}
    if extraction is not None:
        key["extraction"] = extraction.key
    if carried is not None:
        key["carried"] = carried.key
    return Starts(extraction, carried.factors if carried else None, key)


def _measure_others(
    recipe: TransferRecipe,
    run: RunFolder,
    display: Display,
    questions: Questions | None,
    carried: Carried | None,
) -> dict[str, Measured]:
    """What stands beside the trained arms: the untouched student, the teacher, a delta before training."""
    if questions is None:
        return {}
    student = {"student": model_fingerprint(recipe.student)}
    found = {
        "student": measure(recipe, run, display, questions, "measured/student", recipe.student, None, student)
    }
    if recipe.teacher is not None and recipe.evaluate.teacher and _fits(recipe, display):
        key = {"teacher": model_fingerprint(recipe.teacher)}
        if recipe.task_adapter is not None:
            key["adapter"] = file_sha256(recipe.task_adapter / "adapter_model.safetensors")
        found["teacher"] = measure(
            recipe, run, display, questions, "measured/teacher", recipe.teacher, recipe.task_adapter, key
        )
    if carried is not None:
        found["delta-transport/untrained"] = measure(
            recipe,
            run,
            display,
            questions,
            "measured/delta",
            recipe.student,
            carried.adapter,
            student | {"delta": carried.key},
        )
    return found


def _fits(recipe: TransferRecipe, display: Display) -> bool:
    """Whether the teacher can be loaded whole, to be measured."""
    assert recipe.teacher is not None  # noqa: S101 - asked for teachers only
    config = load_config(recipe.teacher, trust_remote_code=recipe.trust_remote_code)
    free, n_bytes = available_bytes(), 4 * parameter_counts(architecture_of(config)).total
    if free is None or n_bytes < 0.8 * free:
        return True
    display.say(f"Note: the teacher needs {n_bytes / 2**30:.1f} GiB, more than is free; it is not measured.")
    return False


def train_arms(
    recipe: TransferRecipe,
    run: RunFolder,
    display: Display,
    questions: Questions | None,
    lessons: Lessons,
    starts: Starts,
    names: Sequence[Control],
) -> list[Arm]:
    """Each arm tries its learning rates with the first seed, then trains the best with all seeds.

    Args:
        recipe: names models, settings, learning rates and seeds.
        run: the run folder; every training and measurement has a stage of its own.
        display: progress.
        questions: the eval samples; None measures nothing.
        lessons: the rows of each kind of teaching.
        starts: what adapters start from.
        names: which arms.

    Returns:
        The arms in the order given.

    Raises:
        TrainingError: an arm cannot be trained at any of its learning rates.
    """
    arms: list[Arm] = []
    for name in names:
        tried, failed = _sweep(recipe, run, display, name, lessons, starts)
        best = min(tried, key=lambda each: each.told.get("development_bits_per_byte") or 0.0)
        more = [
            train_arm(recipe, run, display, name, best.learning_rate, recipe.seed + n, lessons, starts)
            for n in range(1, recipe.n_seeds)
        ]
        arm = Arm(name, tried, [best, *more], failed)
        if questions is not None:
            arm.measured = [
                measure(
                    recipe,
                    run,
                    display,
                    questions,
                    f"measured/{name}-seed-{each.seed}",
                    recipe.student,
                    each.adapter,
                    {"arm": each.key},
                )
                for each in arm.chosen
            ]
        arms.append(arm)
    return arms


def _sweep(
    recipe: TransferRecipe,
    run: RunFolder,
    display: Display,
    arm: Control,
    lessons: Lessons,
    starts: Starts,
) -> tuple[list[ArmRun], list[float]]:
    """An arm at each of its learning rates, and the rates at which training did not come to an end."""
    tried: list[ArmRun] = []
    failed: list[float] = []
    for rate in recipe.rates:
        try:
            tried.append(train_arm(recipe, run, display, arm, rate, recipe.seed, lessons, starts))
        except TrainingError as err:
            is_last = rate == recipe.rates[-1]
            if rate is None or (is_last and not tried):
                raise
            display.say(f"Note: {arm} at learning rate {rate:g} is left out: {err}")
            failed.append(rate)
    return tried, failed


def _save_result(method: Arm, run: RunFolder) -> Path:
    """The method's adapter of the first seed, at the top of the run folder."""
    result = run.path / "adapter"
    with atomic_folder(result) as temporary:
        shutil.copytree(method.chosen[0].adapter, temporary, dirs_exist_ok=True)
    return result


def _write_cards(
    recipe: TransferRecipe, arms: Sequence[Arm], result: Path | None, report: Mapping[str, Any]
) -> None:
    """Cards with the figures, for every arm's adapters at its best learning rate, and for the result."""
    for arm in arms:
        for each in arm.chosen:
            write_arm_card(recipe, each.adapter, arm.name, each.learning_rate, each.seed, report=report)
    if result is not None and recipe.result == "model":
        write_student_card(recipe, result, report)
    elif result is not None:
        method = arms[0].chosen[0]
        write_arm_card(recipe, result, arms[0].name, method.learning_rate, method.seed, report=report)


def _write_start_cards(
    recipe: TransferRecipe, run: RunFolder, carried: Carried | None, report: Mapping[str, Any]
) -> None:
    """Cards of what adapters started from, where this run made it."""
    for name in (START, RANDOM_BLOCK):
        folder = run.path / "extraction" / name
        if folder.is_dir():
            write_start_card(recipe, folder, name, report)
    if carried is not None:
        write_start_card(recipe, carried.adapter, "delta-transport/untrained", report)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
