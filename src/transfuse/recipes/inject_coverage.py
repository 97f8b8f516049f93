"""Which facts the training questions of a document run carry."""

import json
from dataclasses import dataclass
from typing import Any

from transfuse.errors import MissingExtraError
from transfuse.inject.coverage import Coverage, coverage
from transfuse.io.files import write_json
from transfuse.io.run_folder import RunFolder
from transfuse.recipes.embedding import cached_embedder
from transfuse.recipes.inject_knowledge import Knowledge
from transfuse.recipes.schema import InjectRecipe
from transfuse.types import Fact, QAPair

COVERAGE_VERSION = 1


@dataclass(frozen=True)
class Covered:
    """The coverage of the trained facts, as JSON values."""

    by_fact: dict[str, dict[str, Any]]
    summary: dict[str, Any]


def measure_coverage(recipe: InjectRecipe, run: RunFolder, knowledge: Knowledge) -> Covered:
    """Count the training questions that carry each fact, facts that are kept out left aside.

    Args:
        recipe: names the embedding model.
        run: the run folder.
        knowledge: facts and training pairs.

    Returns:
        Counts by fact and in all. Without the extra `embeddings` there is no similarity, and the summary says so.
    """
    facts = [fact for fact in knowledge.facts if fact.id not in knowledge.selection.kept_out]
    if recipe.basis == "token":
        facts = [fact for fact in knowledge.facts if fact.section not in knowledge.selection.kept_out]
    pairs = knowledge.selection.train
    if not facts:
        return Covered({}, {"n_facts": 0, "note": "There are no facts to look for."})
    reference = recipe.coverage.embedder
    key = {
        "facts": [(fact.id, fact.fact) for fact in facts],
        "pairs": [(pair.id, pair.source, pair.question, pair.answer) for pair in pairs],
        "embedder": reference,
    }
    with run.stage("coverage", key, version=COVERAGE_VERSION) as stage:
        path = stage.folder / "coverage.json"
        if not stage.is_done:
            found, note = _coverage(facts, pairs, reference, recipe.trust_remote_code)
            write_json(path, {**found.to_json(), "note": note, "embedder": None if note else reference})
    told = json.loads(path.read_text(encoding="utf-8"))
    by_fact = {each["fact_id"]: each for each in told["facts"]}
    similar = [each["n_by_similarity"] for each in told["facts"]]
    summary = {
        "n_facts": len(facts),
        "n_by_answer": sum(each["n_by_answer"] > 0 for each in told["facts"]),
        "n_by_similarity": None if None in similar else sum(n > 0 for n in similar),
        "embedder": told["embedder"],
        "note": told["note"],
    }
    return Covered(by_fact, summary)


def _coverage(
    facts: list[Fact], pairs: list[QAPair], reference: str | None, trust_remote_code: bool
) -> tuple[Coverage, str]:
    if reference is None:
        return coverage(facts, pairs, embed=None), "No embedding model was asked for."
    try:
        embed = cached_embedder(reference, trust_remote_code=trust_remote_code).embed
    except MissingExtraError as err:
        return coverage(facts, pairs, embed=None), f"Similarity was not measured: {err}"
    return coverage(facts, pairs, embed=embed), ""
