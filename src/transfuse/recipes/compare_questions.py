"""What a comparison asks and learns: the same questions for every row, and what is kept back to choose on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transfuse.errors import DataError, RecipeError
from transfuse.inject.knowledge import pair_row
from transfuse.io.files import file_sha256, write_text
from transfuse.io.jsonl import read_jsonl, write_jsonl
from transfuse.io.run_folder import RunFolder
from transfuse.recipes.compare_routes import ROUTES, Materials, is_trained, nested, training_recipe
from transfuse.recipes.compare_schema import WITH_TUNING, CompareRecipe
from transfuse.recipes.inject_knowledge import Knowledge, read_sections, select_knowledge
from transfuse.recipes.schema import InjectRecipe, make_recipe
from transfuse.types import QAPair

QUESTIONS_VERSION, SPLIT_VERSION = 1, 1
DIRECT, REWORDED, KEPT_OUT, DEVELOPMENT, TUNING = "direct", "reworded", "kept-out", "development", "tuning"
ASKED = (DIRECT, REWORDED, KEPT_OUT)
"""Sets that the table shows."""
MOST_SCALE = 1_000_000
"""As many training questions of each fact as there are."""


@dataclass(frozen=True)
class Questions:
    """Files of questions by name of the set, and how many stand in each."""

    files: dict[str, Path]
    counts: dict[str, int]
    development: str = ""
    """What learning rates of the document route are chosen on, in words; empty where none are."""


@dataclass(frozen=True)
class DevelopmentItems:
    """Samples and texts that no row trains on, by the name of their set."""

    samples: Path | None
    texts: dict[str, Path]


def knowledge_rows(recipe: CompareRecipe) -> list[str]:
    """Names of the rows that train on questions about the documents."""
    return [
        name
        for name, row in recipe.rows.items()
        if is_trained(row) and "documents" in ROUTES[row.route].needs
    ]


def selecting_recipe(recipe: CompareRecipe, files: Materials) -> InjectRecipe:
    """The recipe of the document route by which questions are selected for all rows alike.

    Args:
        recipe: the comparison.
        files: facts and questions.

    Returns:
        One of the rows' own recipes, or the route's defaults where no row trains on the documents.

    Raises:
        RecipeError: rows whose `basis` differs: what one keeps out, the other trains on.
    """
    bases: dict[str, str] = {}
    for name in knowledge_rows(recipe):
        bases.setdefault(str(nested(recipe.rows[name].set).get("basis", "fact")), name)
    if len(bases) > 1:
        (one, first), (other, second) = list(bases.items())[:2]
        raise RecipeError(
            f"rows.{first} has basis {one!r}, rows.{second} basis {other!r}: what one keeps out, the other trains on; "
            f"compare them in recipes of their own."
        )
    basis = next(iter(bases), "fact")
    made = make_recipe(
        {
            "kind": "inject",
            "model": recipe.student,
            "documents": str(recipe.knowledge.documents),
            "include": recipe.knowledge.include,
            "exclude": recipe.knowledge.exclude,
            "facts": str(files.facts),
            "qa": str(files.qa),
            "kept_out_share": recipe.knowledge.kept_out_share,
            "seed": recipe.seed,
            "basis": basis,
            "scale": MOST_SCALE,
            "coverage": {"embedder": None},
            "trust_remote_code": recipe.trust_remote_code,
        },
        where="knowledge",
    )
    assert isinstance(made, InjectRecipe)  # noqa: S101 - by its kind
    return made


def select_questions(recipe: CompareRecipe, files: Materials) -> dict[str, list[QAPair]]:
    """The questions of every set, by the selection that the document route makes for itself.

    Args:
        recipe: the comparison.
        files: facts and questions.

    Returns:
        `direct` (the first training question of each trained fact, word for word), `reworded` (eval questions of the
        trained facts), `kept-out` (of the others), `tuning` (training questions, to choose how many passages to
        retrieve); and, where learning rates are tuned, `development`: one training question of each fact that no row
        trains on, or where there are none the direct ones.

    Raises:
        TransfuseError: documents, facts or questions do not fit one another.
    """
    selecting = selecting_recipe(recipe, files)
    assert selecting.facts is not None  # noqa: S101 - filled in above
    assert selecting.qa is not None  # noqa: S101 - likewise
    _, sections, dropped = read_sections(selecting)
    knowledge, _ = select_knowledge(selecting, sections, dropped, selecting.facts, selecting.qa)
    by_source = knowledge.train_by_source()
    direct = [pairs[0] for pairs in by_source.values()]
    sets = {
        DIRECT: direct,
        REWORDED: list(knowledge.selection.evaluate),
        KEPT_OUT: list(knowledge.selection.evaluate_kept_out),
    }
    sets = {name: _drawn(pairs, recipe.evaluate.n_questions, recipe.seed) for name, pairs in sets.items()}
    found = {name: pairs for name, pairs in sets.items() if pairs}
    found[TUNING] = [pair for pairs in by_source.values() for pair in pairs[:1]]
    if WITH_TUNING & set(recipe.budget.tables):
        found[DEVELOPMENT] = _development(recipe, knowledge) or direct
    return found


def _development(recipe: CompareRecipe, knowledge: Knowledge) -> list[QAPair]:
    """The last training question of each fact, where every row's scale leaves it out; none where one does not."""
    files = Materials.given(recipe)
    scales = [
        made.scale
        for name in knowledge_rows(recipe)
        if isinstance(made := training_recipe(recipe, name, files, seed=recipe.seed), InjectRecipe)
        and made.basis == "fact"
    ]
    most = max(scales, default=0)
    by_source = knowledge.train_by_source()
    if not scales or any(len(pairs) <= most for pairs in by_source.values()):
        return []
    return [pairs[-1] for pairs in by_source.values()]


def _drawn(pairs: Sequence[QAPair], n: int | None, seed: int) -> list[QAPair]:
    if n is None or n >= len(pairs):
        return list(pairs)
    chosen = np.random.default_rng(seed).choice(len(pairs), size=n, replace=False)
    return [pairs[place] for place in sorted(chosen.tolist())]


def write_questions(recipe: CompareRecipe, run: RunFolder, files: Materials) -> Questions:
    """The question files of a run, the same for every row.

    Args:
        recipe: the comparison; one without documents asks none.
        run: the run folder.
        files: facts and questions.

    Returns:
        Where they are.

    Raises:
        TransfuseError: documents, facts or questions do not fit one another.
    """
    if recipe.knowledge.documents is None or files.qa is None:
        return Questions({}, {})
    sets = select_questions(recipe, files)
    rows = {name: [pair_row(pair) for pair in pairs] for name, pairs in sets.items()}
    development = ""
    if DEVELOPMENT in sets:
        is_direct = not _is_apart(sets)
        development = (
            "training questions as every row has learned them (no wording is left over)"
            if is_direct
            else "training questions whose wording no row has learned"
        )
    with run.stage("questions", {"sets": rows}, version=QUESTIONS_VERSION) as stage:
        if not stage.is_done:
            for name, lines in rows.items():
                write_jsonl(stage.folder / f"{name}.jsonl", lines)
    return Questions(
        {name: stage.folder / f"{name}.jsonl" for name in rows},
        {name: len(lines) for name, lines in rows.items()},
        development,
    )


def _is_apart(sets: dict[str, list[QAPair]]) -> bool:
    trained = {pair.id for pair in sets[TUNING]}
    return not trained & {pair.id for pair in sets[DEVELOPMENT]}


def split_for_development(
    recipe: CompareRecipe, run: RunFolder, files: Materials
) -> tuple[Materials, DevelopmentItems]:
    """Training samples and texts without those that learning rates are chosen on.

    Args:
        recipe: the comparison; one that tunes nothing keeps nothing back.
        run: the run folder.
        files: as given.

    Returns:
        What every row trains on, and what was kept back.

    Raises:
        DataError: a file has too few lines to keep any back.
    """
    if not WITH_TUNING & set(recipe.budget.tables) or (files.train_file is None and not files.texts):
        return files, DevelopmentItems(None, {})
    named = {**({"samples": files.train_file} if files.train_file is not None else {})}
    named |= {f"text-{name}": path for name, path in files.texts.items()}
    key: dict[str, Any] = {
        "files": {name: file_sha256(path) for name, path in named.items()},
        "share": recipe.budget.development_share,
        "seed": recipe.seed,
    }
    with run.stage("development", key, version=SPLIT_VERSION) as stage:
        if not stage.is_done:
            for name, path in named.items():
                _split(path, stage.folder / name, recipe.budget.development_share, recipe.seed)

    def part(name: str, of: str) -> Path:
        return stage.folder / f"{name}.{of}.jsonl"

    has_samples = files.train_file is not None
    kept = Materials(
        files.facts,
        files.qa,
        part("samples", "train") if has_samples else None,
        {name: part(f"text-{name}", "train") for name in files.texts},
    )
    return kept, DevelopmentItems(
        part("samples", "development") if has_samples else None,
        {name: part(f"text-{name}", "development") for name in files.texts},
    )


def _split(path: Path, stem: Path, share: float, seed: int) -> None:
    lines = [json.dumps(line.value, ensure_ascii=False) for line in read_jsonl(path)]
    n_kept_back = max(1, round(share * len(lines)))
    if len(lines) <= n_kept_back:
        raise DataError(f"{path}: expected at least 2 lines to keep some back for tuning, got {len(lines)}.")
    kept_back = set(np.random.default_rng(seed).permutation(len(lines))[:n_kept_back].tolist())
    for of, is_kept_back in (("train", False), ("development", True)):
        chosen = [line for n, line in enumerate(lines) if (n in kept_back) == is_kept_back]
        write_text(stem.with_name(f"{stem.name}.{of}.jsonl"), "".join(f"{line}\n" for line in chosen))
