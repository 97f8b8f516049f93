"""What `report.json` says of how facts and questions were written, and which facts they carry."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from transfuse.inject.ledger import FATES, SURPLUS
from transfuse.inject.writing_plan import Work
from transfuse.recipes.inject_coverage import Covered
from transfuse.recipes.inject_writing import Written
from transfuse.recipes.schema import InjectRecipe


def writing_report(recipe: InjectRecipe, written: Written, covered: Covered) -> dict[str, Any]:
    """The parts `writing` (none where both files were given) and `coverage`.

    Args:
        recipe: names the generator and its prices.
        written: counts and the ledger.
        covered: which facts the training questions carry.

    Returns:
        JSON values, to be added to the report.
    """
    parts: dict[str, Any] = {"coverage": covered.summary}
    if recipe.generator is None or not written.ledger:
        return parts
    rows = written.ledger
    sentences = [row for row in rows if row["kind"] == "sentence"]
    sources = [row for row in rows if row["kind"] in ("fact", "section") and row.get("fate") in FATES]
    dropped = [row for row in rows if row["kind"] == "pair"]
    fates = Counter(row["fate"] for row in sources)
    reasons = Counter(row["reason"].split(":")[0] for row in dropped)
    parts["writing"] = {
        "generator": recipe.generator.reference,
        "stages": written.counts,
        "cost": _cost(recipe, written.counts),
        "n_sentences": len(sentences),
        "sentences_without_fact": [
            {"section": row["section"], "text": row["text"], "reason": row["reason"]}
            for row in sentences
            if row["fate"] != "facts"
        ],
        "fates": {fate: fates[fate] for fate in FATES if fates[fate]},
        "n_pairs": sum(row["n_train"] + row["n_eval"] for row in sources),
        "n_surplus_pairs": reasons[SURPLUS],
        "n_dropped_pairs": len(dropped) - reasons[SURPLUS],
        "drop_reasons": {reason: n for reason, n in reasons.most_common() if reason != SURPLUS},
    }
    return parts


def add_to_facts(facts: list[dict[str, Any]], written: Written, covered: Covered, known: Any) -> None:
    """Write each fact's fate, coverage and whether it was known into the report's facts, in place."""
    fates: Mapping[str, Mapping[str, Any]] = {
        row["id"]: row for row in written.ledger if row["kind"] in ("fact", "section") and "id" in row
    }
    for fact in facts:
        fate = fates.get(fact["id"])
        if fate is not None:
            fact |= {"fate": fate["fate"], "fate_reason": fate["reason"]}
        found = covered.by_fact.get(fact["id"])
        if found is not None:
            fact |= {name: found[name] for name in ("n_by_answer", "n_by_similarity")}
        if known is not None and not fact["kept_out"]:
            fact["known"] = fact["id"] in known


def _cost(recipe: InjectRecipe, counts: Mapping[str, Mapping[str, int]]) -> float | None:
    settings = recipe.generator
    if settings is None or settings.price_in is None or settings.price_out is None:
        return None
    spent = Work(
        0,
        sum(count["n_prompt_tokens"] for count in counts.values()),
        sum(count["n_reply_tokens"] for count in counts.values()),
    )
    if not spent.n_prompt_tokens and any(count["n_sent"] for count in counts.values()):
        return None  # the endpoint does not say what it counts
    return spent.cost(settings.price_in, settings.price_out)
