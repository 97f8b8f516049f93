"""Bits per byte of a fusion run's models, all on the same pieces of the same texts."""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from transfuse.baselines.merging import merge_models
from transfuse.baselines.merging_settings import WITHOUT_BASE, AnyMerge
from transfuse.evaluate.bits_per_byte import text_losses
from transfuse.fuse.distributions import write_distributions
from transfuse.fuse.settings import DistributionSettings
from transfuse.io.chat import prompt_format
from transfuse.io.distribution_cache import DistributionCache
from transfuse.io.fingerprint import model_fingerprint
from transfuse.io.jsonl import read_jsonl, write_jsonl
from transfuse.io.models import LoadedModel, load_model
from transfuse.io.run_folder import RunFolder
from transfuse.recipes.fuse_pieces import DomainPieces
from transfuse.recipes.fuse_schema import FuseRecipe
from transfuse.recipes.inject_model import without_note
from transfuse.recipes.progress import Display
from transfuse.tensors.ensemble import SourceStates, ensemble_loss
from transfuse.tensors.intervals import RatioGroup, averaged_ratio, averaged_ratio_difference
from transfuse.types import Estimate

MEASURE_VERSION = 1
AVERAGE = "average"
"""Name of the mean over domains."""

OBSERVED_ONLY = DistributionSettings(k=0, value_bits=32)
"""What an eval pass keeps: the exact log-probability of each token that came."""


class PieceLoss(NamedTuple):
    """What one eval piece cost a model."""

    domain: str
    text: int
    """Which text of its domain it is of."""
    nll_nats: float
    n_bytes: int
    """Of the predicted tokens."""


Measured = list[PieceLoss]
"""Of all pieces; of several trainings one after the other."""


class MeasuredSource(NamedTuple):
    """A source's losses, and what it said of every token."""

    losses: Measured
    cache: DistributionCache
    key: str


def estimates(measured: Measured, seed: int) -> dict[str, Estimate]:
    """Bits per byte of each domain, and their mean, by the name that the report gives them."""
    groups = _groups(measured)
    found = {f"bits_per_byte/{name}": averaged_ratio([group], seed) for name, group in groups.items()}
    if len(groups) > 1:
        found[f"bits_per_byte/{AVERAGE}"] = averaged_ratio(list(groups.values()), seed)
    return found


def differences(ours: Measured, theirs: Measured, seed: int) -> dict[str, Estimate]:
    """Bits per byte of the first minus those of the second, by metric; whole texts are drawn for both together."""
    first, second = _groups(ours), _groups(theirs)
    names = [name for name in first if name in second]
    found = {
        f"bits_per_byte/{name}": averaged_ratio_difference([first[name]], [second[name]], seed)
        for name in names
    }
    if len(names) > 1:
        pairs = [first[name] for name in names], [second[name] for name in names]
        found[f"bits_per_byte/{AVERAGE}"] = averaged_ratio_difference(*pairs, seed)
    return found


def _groups(measured: Measured) -> dict[str, RatioGroup]:
    """Bits and bytes of each domain; pieces of which nothing is predicted keep their place with 0 bytes."""
    groups: dict[str, RatioGroup] = {}
    for domain in dict.fromkeys(loss.domain for loss in measured):
        own = [loss for loss in measured if loss.domain == domain]
        groups[domain] = RatioGroup(
            np.array([loss.nll_nats for loss in own]) / math.log(2),
            np.array([loss.n_bytes for loss in own], dtype=float),
            np.array([loss.text for loss in own]),
        )
    return {name: group for name, group in groups.items() if group.denominators.sum() > 0}


def losses_of(
    loaded: LoadedModel, model: nn.Module, pieces: DomainPieces, display: Display, name: str
) -> Measured:
    """Losses of a model, or of another one with its tokenizer (the same with an adapter), on the eval pieces."""
    prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
    with display.bar(f"bits per byte, {name}") as advance:
        found = text_losses(model, prompts, pieces.texts, loaded.precision, without_note(advance))
    return [
        PieceLoss(domain, text, loss.nll_nats, loss.n_bytes)
        for domain, text, loss in zip(pieces.domains, pieces.sources, found, strict=True)
    ]


def measure_model(
    recipe: FuseRecipe,
    run: RunFolder,
    display: Display,
    pieces: DomainPieces,
    name: str,
    reference: str,
    key: Mapping[str, Any],
) -> Measured:
    """Measure a model from its files, in the numbers that training computes in, or read what was measured before.

    Args:
        recipe: says how to load it.
        run: the run folder; the measurement has a stage of its own.
        display: progress.
        pieces: of the eval texts.
        name: of the stage.
        reference: a model reference.
        key: changes with the model.

    Returns:
        Losses of every piece.

    Raises:
        ModelError: the model cannot be loaded.
    """
    full_key = {"pieces": pieces.key, "precision": recipe.precision, **key}
    with run.stage(f"measured/{name}", full_key, version=MEASURE_VERSION) as stage:
        if not stage.is_done:
            loaded = load_model(
                reference,
                precision=recipe.precision,
                trust_remote_code=recipe.trust_remote_code,
                trainable=True,
            )
            save_losses(stage.folder, losses_of(loaded, loaded.model, pieces, display, name))
        return load_losses(stage.folder)


def measure_source(
    recipe: FuseRecipe, run: RunFolder, display: Display, pieces: DomainPieces, name: str, reference: str
) -> MeasuredSource:
    """Measure a source, and keep what each token cost it, for the ensemble."""
    key = {"model": model_fingerprint(reference), "pieces": pieces.key, "precision": recipe.precision}
    with run.stage(f"measured/source/{name}", key, version=MEASURE_VERSION) as stage:
        folder = stage.folder / "cache"
        if not stage.is_done:
            loaded = load_model(
                reference, precision=recipe.precision, trust_remote_code=recipe.trust_remote_code
            )
            with display.bar(f"bits per byte, {name}") as advance:
                write_distributions(
                    loaded, pieces.texts, folder, OBSERVED_ONLY, rebuild=True, on_tokens=without_note(advance)
                )
    cache = DistributionCache.open(folder)
    losses = [
        PieceLoss(domain, text, *observed_loss(cache, n))
        for n, (domain, text) in enumerate(zip(pieces.domains, pieces.sources, strict=True))
    ]
    return MeasuredSource(losses, cache, stage.key)


def measure_ensemble(pieces: DomainPieces, sources: Sequence[MeasuredSource]) -> Measured:
    """Losses when the sources' probabilities are averaged between bytes that all of them cut at."""
    found: Measured = []
    for n, (domain, text) in enumerate(zip(pieces.domains, pieces.sources, strict=True)):
        loss = ensemble_loss([_states(each.cache, n) for each in sources])
        found.append(PieceLoss(domain, text, loss.nll_nats, loss.n_bytes))
    return found


def measure_merged(
    recipe: FuseRecipe,
    run: RunFolder,
    display: Display,
    pieces: DomainPieces,
    settings: AnyMerge,
) -> Measured:
    """Merge the weights of the sources, measure the result, and throw it away."""
    base = None if settings.method in WITHOUT_BASE else recipe.target
    key = {
        "models": [model_fingerprint(each) for each in recipe.sources],
        "base": model_fingerprint(base) if base else None,
        "merge": settings.model_dump(mode="json"),
        "pieces": pieces.key,
        "precision": recipe.precision,
    }
    name = f"merged-{settings.method}"
    with run.stage(f"measured/{name}", key, version=MEASURE_VERSION) as stage:
        if not stage.is_done:
            with scratch_model(stage.folder / "model") as folder:
                with display.bar(f"merging, {settings.method}") as advance:
                    merge_models(recipe.sources, settings, folder, base=base, on_tensor=advance)
                loaded = load_model(str(folder), precision=recipe.precision, trainable=True)
                save_losses(stage.folder, losses_of(loaded, loaded.model, pieces, display, name))
        return load_losses(stage.folder)


@contextmanager
def scratch_model(folder: Path) -> Iterator[Path]:
    """A model folder that is removed when the block ends."""
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save_losses(folder: Path, losses: Measured) -> None:
    """Write losses into a stage's folder."""
    write_jsonl(folder / "losses.jsonl", [loss._asdict() for loss in losses])


def load_losses(folder: Path) -> Measured:
    """Read what `save_losses` wrote."""
    return [PieceLoss(**line.value) for line in read_jsonl(folder / "losses.jsonl")]


def _states(cache: DistributionCache, number: int) -> SourceStates:
    said = cache.text(number)
    return SourceStates(said.ends, said.observed_log_probs)


def observed_loss(cache: DistributionCache, number: int) -> tuple[float, int]:
    """What one text cost the model that was passed: nats and bytes of all tokens but the first."""
    states = _states(cache, number)
    if len(states.ends) < 2:
        return 0.0, 0
    return -float(states.observed_log_probs[:-1].sum(dtype=np.float64)), int(states.ends[-1] - states.ends[0])
