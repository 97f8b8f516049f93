"""What became of every fact and section that questions were asked for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from transfuse.errors import GenerationError
from transfuse.types import Dropped, QAPair

Fate = Literal["covered", "short", "skipped", "failed"]
"""All pairs that were asked for; fewer; the generator declined, and said why; none."""
FATES: tuple[Fate, ...] = ("covered", "short", "skipped", "failed")

SURPLUS = "more than the scale asks for"
"""Why a pair that passed every check is left out: there were enough; a greater scale takes it."""


@dataclass(frozen=True, slots=True)
class SourceFate:
    """What became of one fact or section."""

    kind: Literal["fact", "section"]
    id: str
    """The fact's id or the section's title."""
    fate: Fate
    reason: str
    """Why it is not covered; empty where it is."""
    n_train: int
    n_eval: int
    n_dropped: int
    """Pairs that were written for it and not kept."""


@dataclass(frozen=True, slots=True)
class PairSheet:
    """Pairs with the account of how they came about."""

    pairs: list[QAPair]
    fates: list[SourceFate]
    """One a source, in the order given."""
    dropped: list[Dropped]
    stopped: GenerationError | None = None
    """Why no further request could succeed; what was there by then is in the sheet."""


def ledger_rows(sheet: PairSheet) -> list[dict[str, Any]]:
    """The ledger as rows of a JSONL file: every source with its fate, then everything dropped with its reason."""
    fates = [asdict(fate) for fate in sheet.fates]
    return fates + [
        {"kind": drop.kind, "what": drop.what, "fate": "dropped", "reason": drop.reason}
        for drop in sheet.dropped
    ]


def summary(sheet: PairSheet) -> dict[str, int]:
    """Number of sources by fate, every fate named."""
    counts = Counter(fate.fate for fate in sheet.fates)
    return {fate: counts[fate] for fate in FATES}


def counted_reasons(reasons: Sequence[str]) -> str:
    """Reasons with their counts, the most frequent first; particulars after a colon are left out."""
    counts = Counter(reason.split(":")[0] for reason in reasons)
    return ", ".join(f"{n} x {reason}" for reason, n in counts.most_common())
