"""What the judgements of single items say of two systems, and of their judge."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from transfuse.evaluate.judging import Judgement
from transfuse.evaluate.judging_settings import JudgeSettings
from transfuse.evaluate.scores import ItemScore
from transfuse.tensors.intervals import cluster_bootstrap
from transfuse.tensors.win_rates import length_controlled_win_rate
from transfuse.types import Estimate

MIN_AGREEMENT = 0.5
"""A judge that agrees with itself on a smaller share of the items is warned of."""


def win_scores(judgements: Sequence[Judgement], settings: JudgeSettings) -> list[ItemScore]:
    """The scorable items as scores of `win_rate/NAME`."""
    metric = f"win_rate/{settings.set_name}"
    return [
        ItemScore(metric, each.item, each.item, each.score, 1.0)
        for each in judgements
        if each.score is not None
    ]


def win_estimates(judgements: Sequence[Judgement], settings: JudgeSettings, seed: int) -> dict[str, Estimate]:
    """The win rate and its length-controlled value, by the metric's name.

    Args:
        judgements: those without a score are left out.
        settings: name the instructions.
        seed: of the bootstraps.

    Returns:
        `win_rate/NAME` and `win_rate_length_controlled/NAME`, each in 0..1.
    """
    scored = [each for each in judgements if each.score is not None]
    scores = np.array([each.score for each in scored], dtype=float)
    raw = cluster_bootstrap(scores, np.ones(len(scored)), np.arange(len(scored)), seed)
    controlled = length_controlled_win_rate(scores, _length_differences(scored), seed)
    name = settings.set_name
    return {f"win_rate/{name}": raw, f"win_rate_length_controlled/{name}": controlled.win_rate}


def judging_summary(judgements: Sequence[Judgement], seed: int) -> dict[str, Any]:
    """How the judgements came about: how often the judge agrees with itself, what position and length weigh.

    Args:
        judgements: of all items.
        seed: of the bootstraps.

    Returns:
        JSON values; `agreement` is the share of judged items whose two orders name the same winner, `first_share` the
        share of verdicts with a winner that name the reply shown first (0.5: position means nothing), `length_slope`
        the log-odds that a far longer reply gains, `warnings` what makes the win rate worth little.
    """
    scored = [each for each in judgements if each.score is not None]
    judged = [each for each in judgements if each.is_judged]
    scores = np.array([each.score for each in scored], dtype=float)
    controlled = length_controlled_win_rate(scores, _length_differences(scored), seed, n_resamples=1)
    agree = np.array([len(set(each.winners)) == 1 for each in judged], dtype=float)
    agreement = cluster_bootstrap(agree, np.ones(len(judged)), np.arange(len(judged)), seed)
    first_share = _first_share(judged, seed)
    return {
        "n_items": len(judgements),
        "n_scored": len(scored),
        "n_identical": len(scored) - len(judged),
        "n_asked_again": sum(each.n_asked_again for each in judgements),
        "n_won": int((scores > 0.5).sum()),
        "n_tied": int((scores == 0.5).sum()),
        "n_lost": int((scores < 0.5).sum()),
        "agreement": agreement._asdict(),
        "first_share": first_share._asdict(),
        "length_slope": controlled.slope,
        "mean_characters": {
            "ours": float(np.mean([len(each.ours) for each in scored])) if scored else None,
            "theirs": float(np.mean([len(each.theirs) for each in scored])) if scored else None,
        },
        "unscorable": [
            {"item": each.item, "reason": each.reason} for each in judgements if each.score is None
        ],
        "warnings": _warnings(agreement, first_share),
    }


def _first_share(judged: Sequence[Judgement], seed: int) -> Estimate:
    """Mean over items of how many of an item's verdicts that name a winner name the reply shown first."""
    shares: list[float] = []
    for each in judged:
        named = [
            winner == first
            for winner, first in zip(each.winners, ("ours", "theirs"), strict=True)
            if winner != "tie"
        ]
        if named:
            shares.append(sum(named) / len(named))
    values = np.array(shares, dtype=float)
    return cluster_bootstrap(values, np.ones(len(values)), np.arange(len(values)), seed)


def _warnings(agreement: Estimate, first_share: Estimate) -> list[str]:
    found: list[str] = []
    if agreement.value is not None and agreement.value < MIN_AGREEMENT:
        found.append(
            f"the judge names the same winner in both orders for {agreement.value:.0%} of {agreement.n} items only: "
            f"its win rate says little; take a stronger judge."
        )
    if (
        first_share.low is not None
        and first_share.high is not None
        and not first_share.low <= 0.5 <= first_share.high
    ):
        place = "first" if first_share.low > 0.5 else "second"
        found.append(
            f"the judge leans to the reply shown {place} (it names the first in {first_share.value:.0%} of its "
            f"verdicts); both orders are averaged, so the win rate leans to neither, but towards a draw."
        )
    return found


def _length_differences(judgements: Sequence[Judgement]) -> Float[np.ndarray, " items"]:
    """Ours minus theirs, in characters."""
    return np.array([len(each.ours) - len(each.theirs) for each in judgements], dtype=float)
