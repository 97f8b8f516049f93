"""The settings of a fuse run in words."""

from transfuse.report.fuse_parts import Fuse
from transfuse.report.wording import NOTHING, duration_text

SETTING_MEANINGS = {
    "rule": {
        "min-ce": "the source with the least loss per token teaches",
        "avg-ce": "all sources teach, weighted by their loss per token",
        "fair-min-ce": "the source with the fewest bits per byte teaches",
        "fair-avg-ce": "all sources teach, weighted by their bits per byte",
    },
    "level": {
        "sequence": "sources are compared over a whole text",
        "chunk": "sources are compared on each stretch that all tokenizers cut cleanly",
    },
    "align": {
        "exact": "by the bytes that each token ends at",
        "min-edit": "by the least edit distance of the token sequences, as in the paper",
    },
    "map": {
        "exact": "only tokens that both vocabularies have",
        "min-edit": "each token to the nearest by edit distance",
        "retokenize": "each token to the first that the target cuts its text into",
    },
    "fallback": {
        "next-token": "where no source can teach, the text's own next token does",
        "current-token": "where no source can teach, the current token does, as in the published code",
    },
    "selection": {
        "top-k": "the likeliest of each state",
        "sampled": "drawn from the distribution",
    },
}
"""Setting to value to what it means."""


def fusion_settings(fuse: Fuse) -> list[tuple[str, str, str]]:
    """The settings of a fusion for people.

    Args:
        fuse: as the report has it.

    Returns:
        Label, value and meaning (empty where the value says it) of everything that is known, in order.
    """
    choices = [
        (label, value, SETTING_MEANINGS[field].get(value, ""))
        for label, field, value in (
            ("Rule", "rule", fuse.rule),
            ("Level", "level", fuse.level),
            ("Token alignment", "align", fuse.align),
            ("Vocabulary map", "map", fuse.map),
            ("Fallback", "fallback", fuse.fallback),
        )
        if value is not None
    ]
    plain = [
        ("Divergence", (fuse.divergence or "").replace("-", " ")),
        ("Loss", _loss_text(fuse.clm_weight)),
        ("Temperature", "" if fuse.temperature is None else f"{fuse.temperature:g}"),
    ]
    kept = f"{fuse.top_k:,} a token" if fuse.top_k is not None else ""
    selection = SETTING_MEANINGS["selection"].get(fuse.selection or "", fuse.selection or "")
    built = [("Texts", _texts_text(fuse)), ("Making the targets", _building_text(fuse))]
    return [
        *choices,
        *((label, value, "") for label, value in plain if value),
        *(
            [("Kept probabilities", kept or selection, selection if kept else "")]
            if kept or selection
            else []
        ),
        *((label, value, "") for label, value in built if value),
    ]


def _loss_text(clm_weight: float | None) -> str:
    if clm_weight is None:
        return ""
    return f"{clm_weight:g} × next-token loss + {round(1 - clm_weight, 6):g} × fusion"


def _texts_text(fuse: Fuse) -> str:
    parts = [
        f"{n:,} {thing}"
        for n, thing in (
            (fuse.n_texts, "texts"),
            (fuse.n_pieces, "pieces"),
            (fuse.n_target_tokens, "tokens of the target"),
        )
        if n is not None
    ]
    return ", ".join(parts)


def _building_text(fuse: Fuse) -> str:
    if fuse.targets is None or fuse.targets.seconds is None:
        return ""
    each = fuse.targets.us_per_token
    seconds = duration_text(fuse.targets.seconds)
    return seconds if seconds == NOTHING or each is None else f"{seconds}, {each:,.1f} µs a token"
