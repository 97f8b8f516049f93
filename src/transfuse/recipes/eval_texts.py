"""Bits per byte of texts: of one model, or of an ensemble whatever the tokenizers of its members."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfuse.evaluate.bits_per_byte import text_losses
from transfuse.evaluate.scores import ItemScore
from transfuse.fuse.distributions import text_distributions
from transfuse.fuse.pieces import cut_texts
from transfuse.fuse.settings import DistributionSettings
from transfuse.io.configs import load_config
from transfuse.io.models import LoadedModel, load_tokenizer
from transfuse.recipes.eval_outcome import Outcome, resumed
from transfuse.recipes.eval_system import System
from transfuse.recipes.inject_model import without_note
from transfuse.recipes.progress import Display
from transfuse.tensors.ensemble import SourceStates, ensemble_loss

TEXTS_A_PORTION = 32
"""Texts whose losses are written down together."""

MAX_PIECE_TOKENS = 1024
"""Longest piece that the members of an ensemble read, in tokens of whichever cuts finest."""

OBSERVED_ONLY = DistributionSettings(k=0, value_bits=32)


def measure_texts(system: System, name: str, texts: Sequence[str], folder: Path, display: Display) -> Outcome:
    """What each text costs a system.

    Args:
        system: that reads them.
        name: of the texts.
        texts: plain texts.
        folder: of the stage.
        display: progress.

    Returns:
        `bits_per_byte/NAME`; numbers of texts, from 0, are the items.
    """
    with display.bar(f"text '{name}', {system.row}") as advance:
        if system.is_mixed:
            rows = _mixed_losses(system, texts, folder, without_note(advance))
        else:

            def measure(start: int, end: int) -> list[dict[str, Any]]:
                asked = system.load()
                losses = text_losses(asked.model, asked.prompts, texts[start:end], asked.precision)
                advance(end, len(texts), "")
                return [loss._asdict() for loss in losses]

            rows = resumed(folder / "losses.jsonl", len(texts), measure, TEXTS_A_PORTION)
    metric = f"bits_per_byte/{name}"
    scores = [
        ItemScore(metric, str(n), str(n), row["nll_nats"] / math.log(2), float(row["n_bytes"]))
        for n, row in enumerate(rows)
        if row["n_bytes"]
    ]
    notes = [f"{len(rows) - len(scores)} texts have no predicted byte"] if len(scores) < len(rows) else []
    return Outcome(scores, notes=notes)


def _mixed_losses(
    system: System, texts: Sequence[str], folder: Path, on_pieces: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """Losses when probabilities are averaged between bytes that all members cut at; one member is loaded at a time."""
    trust = system.trust_remote_code
    tokenizers = [load_tokenizer(each, trust_remote_code=trust) for each in system.references]
    pieces = cut_texts(list(texts), tokenizers, _piece_limit(system))
    read = [
        _readings(system, n, [piece.text for piece in pieces], folder, on_pieces)
        for n in range(len(system.references))
    ]
    totals: list[dict[str, Any]] = [{"nll_nats": 0.0, "n_bytes": 0} for _ in texts]
    for n, piece in enumerate(pieces):
        loss = ensemble_loss([own[n] for own in read])
        totals[piece.source]["nll_nats"] += loss.nll_nats
        totals[piece.source]["n_bytes"] += loss.n_bytes
    return totals


def _readings(
    system: System, number: int, texts: Sequence[str], folder: Path, on_pieces: Callable[[int, int], None]
) -> list[SourceStates]:
    """What one member says of every token of the texts."""
    members: list[LoadedModel] = []

    def read(start: int, end: int) -> list[dict[str, Any]]:
        if not members:
            members.append(system.load_member(number))
        found = text_distributions(members[0], texts[start:end], OBSERVED_ONLY)
        on_pieces(end, len(texts))
        # What the last state predicts is not in the text.
        return [
            {"ends": each.ends.tolist(), "log_probs": [*each.observed_log_probs[:-1].tolist(), 0.0]}
            for each in found
        ]

    rows = resumed(folder / f"member-{number}.jsonl", len(texts), read, TEXTS_A_PORTION)
    return [SourceStates(np.array(row["ends"]), np.array(row["log_probs"], dtype=np.float32)) for row in rows]


def _piece_limit(system: System) -> int:
    """Longest piece that every member reads whole."""
    limits = [MAX_PIECE_TOKENS]
    for reference in system.references:
        config = load_config(reference, trust_remote_code=system.trust_remote_code).get_text_config()
        context = getattr(config, "max_position_embeddings", None)
        limits += [context] if isinstance(context, int) and context > 0 else []
    return min(limits)
