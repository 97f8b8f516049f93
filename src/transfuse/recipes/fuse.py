"""The fusion route: the distributions of several models, whatever their tokenizers, into one target.

Source: Wan et al. 2024, arXiv:2401.10491. Differs: texts are aligned by bytes, sources compared in bits per byte, and
distributions and targets stay sparse from the first pass to the loss.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transfuse.errors import RecipeError
from transfuse.evaluate.bits_per_byte import load_texts
from transfuse.io.files import write_json
from transfuse.io.fingerprint import model_fingerprint
from transfuse.io.hardware import manifest
from transfuse.io.references import check_model_folder, resolve_model
from transfuse.io.run_folder import RunFolder, open_run
from transfuse.recipes.fuse_arms import ArmRun, join_trainings, merge_arms, train_arm
from transfuse.recipes.fuse_card import write_fuse_card
from transfuse.recipes.fuse_check import Pairs, check_pairs
from transfuse.recipes.fuse_lessons import (
    ONLY,
    CachedSource,
    Lesson,
    cache_sources,
    check_caches,
    make_lesson,
    plain_lesson,
)
from transfuse.recipes.fuse_measure import (
    Measured,
    MeasuredSource,
    measure_ensemble,
    measure_merged,
    measure_model,
    measure_source,
)
from transfuse.recipes.fuse_pieces import (
    TARGET,
    DomainPieces,
    Tokenizers,
    eval_pieces,
    load_tokenizers,
    piece_limit,
    training_pieces,
)
from transfuse.recipes.fuse_report import Findings, report_json
from transfuse.recipes.fuse_schema import FuseRecipe
from transfuse.recipes.progress import Display
from transfuse.recipes.team import Team
from transfuse.train.steps import StepPlan
from transfuse.train.trackers import check_trackers

WITHOUT_EFFECT = ("fusion.min_coverage", "train.checkpoint_s", "train.report_to")
"""Settings that change no result, so that a run may go on with others."""

FUSED, CLM, TOGETHER = "fused", "clm", "together"
FEW_STEPS = 30
"""Fewer optimizer steps than these are told of before they are made."""


def run_fuse(
    recipe: FuseRecipe, out: Path, *, overwrite: bool, command: str, stop_after: str | None = None
) -> Path:
    """Run the fusion route, or continue it where an earlier process stopped.

    Args:
        recipe: what to do.
        out: the run folder.
        overwrite: whether a folder of a different recipe may be taken over.
        command: for the manifest and the report.
        stop_after: `pieces` or `targets`; None goes to the end.

    Returns:
        The run folder, with `report.json` and the model (or adapter) in it where it went to the end.

    Raises:
        TransfuseError: any fault of the input, the models or the machine, with what to do.
    """
    team = Team()
    if not team.is_main:
        join_trainings(recipe, team)
        return out
    display, started = Display(), _now()
    tokenizers = check_inputs(recipe, stop_after)
    with open_run(out, recipe.model_dump(mode="json"), overwrite=overwrite, free=WITHOUT_EFFECT) as run:
        write_json(run.path / "manifest.json", manifest(command, started, None))
        pieces = training_pieces(recipe, run, display, tokenizers)
        held_out = eval_pieces(recipe, run, display, tokenizers)
        if stop_after == "pieces":
            return _ended(team, out)
        if recipe.strategy == CLM:
            pairs, caches = Pairs([], {}), {}
            lessons = {CLM: plain_lesson(run, pieces, tokenizers)}
        else:
            pairs = check_pairs(recipe, run, display, pieces, tokenizers)
            caches = cache_sources(recipe, run, display, pieces, tokenizers)
            lessons = _lessons(recipe, run, display, pieces, tokenizers, caches, pairs)
        if stop_after == "targets":
            return _ended(team, out)
        _note_few_steps(recipe, display, next(iter(lessons.values())))
        others = _measure_others(recipe, run, display, held_out)
        arms = _train(recipe, run, display, team, lessons, held_out)
        team.share(None)
        found = Findings(pieces, pairs, caches, lessons, others, arms)
        report = report_json(recipe, run.stages, command, found)
        write_json(run.path / "report.json", report)
        _write_cards(recipe, arms, report)
        write_json(run.path / "manifest.json", manifest(command, started, _now()))
    return out


def _write_cards(recipe: FuseRecipe, arms: Mapping[str, Sequence[ArmRun]], report: Mapping[str, Any]) -> None:
    """Cards with the figures, for everything that is kept."""
    for runs in arms.values():
        for each in runs:
            if each.result is not None:
                write_fuse_card(recipe, each.result, each.arm, each.seed, report)


def _ended(team: Team, out: Path) -> Path:
    team.share(None)
    return out


def check_inputs(recipe: FuseRecipe, stop_after: str | None) -> Tokenizers:
    """Faults of the input are named before anything heavy starts, and before a folder is made.

    To cut pieces takes tokenizers alone: no weights, and no caches, which are to be made over these pieces.
    """
    check_trackers(recipe.train.report_to)
    for path in (*recipe.texts.values(), *recipe.evaluate.texts.values()):
        load_texts(path)
    if stop_after == "pieces":
        piece_limit(recipe)
        return load_tokenizers(recipe)
    needs_weights = {recipe.target}
    reads_sources = recipe.strategy != CLM
    for name, reference in zip(recipe.names, recipe.sources, strict=True):
        if (
            (reads_sources and name not in recipe.caches)
            or _measures_sources(recipe)
            or "merged" in recipe.controls
        ):
            needs_weights.add(reference)
    for reference in needs_weights:
        source = resolve_model(reference)
        if source.kind == "folder" and source.path is not None:
            check_model_folder(source.path)
        model_fingerprint(reference)
    piece_limit(recipe)
    tokenizers = load_tokenizers(recipe)
    check_caches(recipe, tokenizers)
    return tokenizers


def _measures_sources(recipe: FuseRecipe) -> bool:
    return bool(recipe.evaluate.texts) and (recipe.evaluate.sources or "ensemble" in recipe.controls)


def _lessons(
    recipe: FuseRecipe,
    run: RunFolder,
    display: Display,
    pieces: DomainPieces,
    tokenizers: Tokenizers,
    caches: dict[str, CachedSource],
    pairs: Pairs,
) -> dict[str, Lesson]:
    """Fused targets of all sources together, and of single ones where something learns from these."""

    def lesson(name: str, members: Sequence[str]) -> Lesson:
        chosen = [caches[each] for each in members]
        return make_lesson(recipe, run, display, pieces, tokenizers, chosen, pairs.maps, name)

    own = [TARGET] if recipe.fusion.with_target else []
    found: dict[str, Lesson] = {}
    if recipe.strategy == "together":
        found[TOGETHER] = lesson(TOGETHER, [*own, *recipe.names])
    for name in recipe.names:
        if recipe.strategy == "pairwise":
            found[f"with-{name}"] = lesson(f"with-{name}", [*own, name])
        if "distilled" in recipe.controls:
            found[f"{ONLY}{name}"] = lesson(f"{ONLY}{name}", [name])
    return found


def _note_few_steps(recipe: FuseRecipe, display: Display, lesson: Lesson) -> None:
    """The paper's steps of 128 pieces are meant for a million of them."""
    lengths, per_step = lesson.rows().lengths, recipe.train.batch_rows * recipe.train.gradient_accumulation
    n_steps = StepPlan(lengths, recipe.train, recipe.seed, by_length=False).n_steps
    if n_steps < FEW_STEPS:
        display.say(
            f"Note: {len(lengths):,} pieces make {n_steps} training steps of {per_step}; for more of them set "
            f"train.batch_rows lower (--set train.batch_rows=8), and perhaps train.learning_rate higher."
        )


def _measure_others(
    recipe: FuseRecipe, run: RunFolder, display: Display, pieces: DomainPieces | None
) -> dict[str, Measured]:
    """What stands beside the trained models: target and sources as they were, their ensemble, their merged weights."""
    if pieces is None:
        return {}
    key = {"target": model_fingerprint(recipe.target)}
    found = {TARGET: measure_model(recipe, run, display, pieces, TARGET, recipe.target, key)}
    sources: dict[str, MeasuredSource] = {}
    if _measures_sources(recipe):
        for name, reference in zip(recipe.names, recipe.sources, strict=True):
            sources[name] = measure_source(recipe, run, display, pieces, name, reference)
            found[f"source/{name}"] = sources[name].losses
    if "ensemble" in recipe.controls:
        found["ensemble"] = measure_ensemble(pieces, list(sources.values()))
    if "merged" in recipe.controls:
        for settings in recipe.merged:
            found[f"merged/{settings.method}"] = measure_merged(recipe, run, display, pieces, settings)
    return found


def _train(
    recipe: FuseRecipe,
    run: RunFolder,
    display: Display,
    team: Team,
    lessons: dict[str, Lesson],
    pieces: DomainPieces | None,
) -> dict[str, list[ArmRun]]:
    """The main arm first, then its controls; each with all seeds, the first seed's result kept."""
    result = run.path / ("adapter" if recipe.train.method == "lora" else "model")
    seeds = [recipe.seed + n for n in range(recipe.n_seeds)]

    def trained(arm: str, lesson: Lesson, *, keeps: bool = False) -> list[ArmRun]:
        return [
            train_arm(
                recipe, run, display, team, arm, seed, lesson, pieces,
                result=result if keeps and seed == recipe.seed else None,
            )
            for seed in seeds
        ]  # fmt: skip

    arms: dict[str, list[ArmRun]] = {}
    if recipe.strategy == "together":
        arms[FUSED] = trained(FUSED, lessons[TOGETHER], keeps=True)
    elif recipe.strategy == CLM:
        arms[CLM] = trained(CLM, lessons[CLM], keeps=True)
    else:
        arms |= _pairwise(recipe, run, display, team, lessons, pieces, seeds, result)
    any_lesson = next(iter(lessons.values()))
    if "clm" in recipe.controls:
        arms[CLM] = trained(CLM, any_lesson)
    if "distilled" in recipe.controls:
        for name in recipe.names:
            arms[f"distilled/{name}"] = trained(f"distilled/{name}", lessons[f"{ONLY}{name}"])
    return arms


def _pairwise(
    recipe: FuseRecipe,
    run: RunFolder,
    display: Display,
    team: Team,
    lessons: dict[str, Lesson],
    pieces: DomainPieces | None,
    seeds: Sequence[int],
    result: Path,
) -> dict[str, list[ArmRun]]:
    """The target fused with each source apart, then the results merged: FuseChat, arXiv:2408.07990, section 3."""
    parts: dict[str, list[ArmRun]] = {f"fused-with/{name}": [] for name in recipe.names}
    merged: list[ArmRun] = []
    for seed in seeds:
        for name in recipe.names:
            kept = run.path / "parts" / f"{name}-seed-{seed}"
            parts[f"fused-with/{name}"].append(
                train_arm(
                    recipe,
                    run,
                    display,
                    team,
                    f"fused-with/{name}",
                    seed,
                    lessons[f"with-{name}"],
                    pieces,
                    result=kept,
                )
            )
        of_seed = {name: runs[-1] for name, runs in parts.items()}
        is_result = seed == recipe.seed
        merged.append(
            merge_arms(recipe, run, display, seed, of_seed, pieces, result=result if is_result else None)
        )
    return {merged[0].arm: merged, **parts}


def check_stop(stop_after: str | None) -> None:
    """Refuse a stage at which a fusion run cannot stop."""
    if stop_after not in (None, "pieces", "targets"):
        raise RecipeError(f"--stop-after: expected 'pieces' or 'targets', got {stop_after!r}.")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
