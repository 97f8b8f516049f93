"""What `report.json` says of a fusion run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from transfuse import __version__
from transfuse.evaluate.questions import estimate_json
from transfuse.io.distribution_cache import DistributionCache
from transfuse.io.hardware import hardware_text
from transfuse.io.run_folder import StageRecord
from transfuse.recipes.comparisons import comparison
from transfuse.recipes.fuse_arms import ArmRun
from transfuse.recipes.fuse_check import Pairs
from transfuse.recipes.fuse_lessons import ONLY, CachedSource, Lesson
from transfuse.recipes.fuse_measure import Measured, differences, estimates, observed_loss
from transfuse.recipes.fuse_pieces import DomainPieces
from transfuse.recipes.fuse_schema import FuseRecipe, short_name
from transfuse.recipes.loading_code import loading_code


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that a run found out."""

    pieces: DomainPieces
    pairs: Pairs
    caches: Mapping[str, CachedSource]
    lessons: Mapping[str, Lesson]
    others: Mapping[str, Measured]
    """By row."""
    arms: Mapping[str, list[ArmRun]]
    """The main one first."""


def report_json(
    recipe: FuseRecipe, stages: Sequence[StageRecord], command: str, found: Findings
) -> dict[str, Any]:
    """The report of a run.

    Args:
        recipe: as run.
        stages: met so far.
        command: as typed.
        found: what came of it.

    Returns:
        JSON values.
    """
    measured = {**found.others, **{name: _pooled(runs) for name, runs in found.arms.items()}}
    measured = {name: losses for name, losses in measured.items() if losses}
    learned = ", ".join(recipe.texts if recipe.strategy == "clm" else recipe.names)
    return {
        "kind": "fuse",
        "model": recipe.target,
        "seed": recipe.seed,
        "title": f"{learned} into {short_name(recipe.target) or recipe.target}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "hardware": hardware_text(),
        "command": command,
        "rows": [
            {"name": name, "metrics": estimate_json(estimates(losses, recipe.seed))}
            for name, losses in measured.items()
        ],
        "stages": [asdict(stage) for stage in stages],
        "fuse": _fusion(recipe, found) if recipe.strategy != "clm" else None,
        "arms": [_arm_json(name, runs, recipe) for name, runs in found.arms.items()],
        "comparisons": _comparisons(next(iter(found.arms)), measured, recipe.seed),
        "training": _training(recipe, found.arms),
        "dropped": [],
        "warnings": _warnings(recipe, found),
        "result": _result(recipe),
    }


def _pooled(runs: Sequence[ArmRun]) -> Measured:
    return [loss for each in runs for loss in each.measured]


def _comparisons(main: str, measured: Mapping[str, Measured], seed: int) -> list[dict[str, Any]]:
    """The main arm against every other row, text by text."""
    if main not in measured:
        return []
    return [
        comparison(metric, main, against, difference, is_better_lower=True)
        for against, theirs in measured.items()
        if against != main
        for metric, difference in differences(measured[main], theirs, seed).items()
    ]


def _arm_json(name: str, runs: Sequence[ArmRun], recipe: FuseRecipe) -> dict[str, Any]:
    is_trained = bool(runs[0].told["curve"])
    return {
        "name": name,
        "learning_rate": recipe.train.peak_learning_rate if is_trained else None,
        "seeds": [each.seed for each in runs],
        "n_tokens": runs[0].told["n_tokens"],
        "tried": [],
        "runs": [
            {
                "seed": each.seed,
                "seconds": each.told["seconds"],
                "final_loss": each.told.get("final_loss"),
                "curve": each.told["curve"],
                "metrics": estimate_json(estimates(each.measured, recipe.seed)) if each.measured else {},
            }
            for each in runs
        ],
    }


def _fusion(recipe: FuseRecipe, found: Findings) -> dict[str, Any]:
    settings = recipe.fusion
    fused = [lesson for name, lesson in found.lessons.items() if not name.startswith(ONLY)]
    main = fused[0]
    n_tokens = main.rows().counts(len(main.sources)).n_tokens
    seconds = sum(lesson.seconds for lesson in fused)
    return {
        "target": recipe.target,
        "sources": [_source_json(recipe, each, found.pieces) for each in found.caches.values()],
        "rule": settings.rule,
        "level": settings.level,
        "align": settings.align,
        "map": settings.map,
        "fallback": settings.fallback,
        "divergence": settings.divergence
        + (f" of beta {settings.jsd_beta:g}" if settings.divergence == "jsd" else ""),
        "clm_weight": settings.clm_weight,
        "temperature": recipe.distributions.temperature,
        "top_k": recipe.distributions.k,
        "selection": recipe.distributions.selection,
        "strategy": recipe.strategy,
        "n_texts": len({(d, s) for d, s in zip(found.pieces.domains, found.pieces.sources, strict=True)}),
        "n_pieces": len(found.pieces.texts),
        "n_target_tokens": n_tokens,
        "pairs": found.pairs.told,
        "chosen": [
            row for lesson in fused for row in _chosen(lesson, found.pieces, is_one_of_several=len(fused) > 1)
        ],
        "targets": {"seconds": seconds, "us_per_token": 1e6 * seconds / max(1, n_tokens * len(fused))},
    }


def _source_json(recipe: FuseRecipe, source: CachedSource, pieces: DomainPieces) -> dict[str, Any]:
    header = source.cache.header
    references = dict(zip(recipe.names, recipe.sources, strict=True))
    return {
        "name": source.name,
        "reference": references.get(source.name, recipe.target),
        "n_vocab": header.n_vocab,
        "n_tokens": header.n_tokens,
        "seconds": source.seconds,
        "tokens_per_s": header.n_tokens / source.seconds if source.seconds else None,
        "n_bytes": sum(shard.n_bytes for shard in header.shards),
        "bytes_per_token": source.cache.bytes_per_token,
        "bits_per_byte": {domain: _training_bits(source.cache, pieces.of(domain)) for domain in pieces.names},
    }


def _training_bits(cache: DistributionCache, numbers: Sequence[int]) -> float | None:
    """Bits per byte of the pieces to learn; None where nothing of them is predicted."""
    losses = [observed_loss(cache, number) for number in numbers]
    nats, n_bytes = (sum(column) for column in zip(*losses, strict=True)) if losses else (0.0, 0)
    return nats / float(np.log(2)) / n_bytes if n_bytes else None


def _chosen(lesson: Lesson, pieces: DomainPieces, *, is_one_of_several: bool) -> list[dict[str, Any]]:
    """Which source teaches how much of each domain; of pairwise fusion, in each pair."""
    rows, told = lesson.rows(), []
    for domain in pieces.names:
        counts = rows.counts(len(lesson.sources), np.array(pieces.of(domain)))
        n_tokens = max(1, counts.n_tokens)
        shares = {name: n / n_tokens for name, n in zip(lesson.sources, counts.by_source, strict=True)}
        told.append(
            {
                "text": f"{domain}, {lesson.name}" if is_one_of_several else domain,
                "n_tokens": counts.n_tokens,
                "shares": shares if any(shares.values()) else {},
                "untaught": counts.n_untaught / n_tokens,
            }
        )
    return told


def _training(recipe: FuseRecipe, arms: Mapping[str, list[ArmRun]]) -> dict[str, Any] | None:
    """The first training of the main arm, or of its first part, as reports of every kind have it."""
    trained = next((runs[0] for runs in arms.values() if runs[0].told["curve"]), None)
    if trained is None:
        return None
    settings: dict[str, Any] = recipe.train.model_dump(mode="json")
    settings["learning_rate"] = recipe.train.peak_learning_rate
    lora: dict[str, Any] = settings.pop("lora")
    return {
        "method": recipe.train.method,
        "n_records": trained.told["n_records"],
        "n_tokens": trained.told["n_tokens"],
        "seconds": trained.told["seconds"],
        "tokens_per_s": trained.told["tokens_per_s"],
        "settings": {**(lora if recipe.train.method == "lora" else {}), **settings},
        "curve": trained.told["curve"],
    }


def _warnings(recipe: FuseRecipe, found: Findings) -> list[str]:
    noted = dict.fromkeys(
        note for runs in found.arms.values() for each in runs for note in each.told["warnings"]
    )
    if recipe.fusion.fallback == "current-token":
        noted[
            "fusion.fallback is 'current-token': where no source speaks, the target learns the token it has just read."
        ] = None
    return list(noted)


def _result(recipe: FuseRecipe) -> dict[str, Any]:
    kind = "adapter" if recipe.train.method == "lora" else "model"
    base = recipe.target if kind == "adapter" else None
    return {
        "path": Path(kind).name,
        "kind": kind,
        "base_model": base,
        "load": loading_code(recipe.target, kind),
    }
