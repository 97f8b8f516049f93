"""Recipes: one strict YAML file is one run."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator
from pydantic.fields import FieldInfo

from transfuse.baselines.rag_settings import RagSettings
from transfuse.errors import RecipeError
from transfuse.generate import settings as generator_settings
from transfuse.generate.settings import GeneratorSettings
from transfuse.inject.fact_writing import FactSettings
from transfuse.inject.pair_settings import PairSettings
from transfuse.inject.prompt_distillation import DistillationSettings
from transfuse.inject.records import RecordSettings
from transfuse.io.precision import Precision
from transfuse.recipes.compare_schema import CompareRecipe
from transfuse.recipes.eval_schema import EvalRecipe
from transfuse.recipes.fuse_schema import FuseRecipe
from transfuse.recipes.recipe_paths import absolute_paths
from transfuse.recipes.transfer_schema import TransferRecipe
from transfuse.train.settings import TrainSettings
from transfuse.types import Basis, StrictModel


class EvaluateSettings(StrictModel):
    """What is measured before and after."""

    max_new_tokens: PositiveInt = 64
    """An answer that has not ended by then is cut."""
    oracle: bool = True
    """Also ask the base model with the right section in its context."""
    texts: dict[str, Path | None] = {"generic": None}
    """Texts for bits per byte, by name: JSONL of `{"text"}`; none means those that come with the package."""


class ProbeSettings(StrictModel):
    """What the model knows already, asked before training."""

    n_questions: NonNegativeInt = 0
    """Training questions of each fact put to the untouched model; it knows a fact if it answers half of them. 0
    asks nothing. Basis `fact` only."""
    known_scale: PositiveInt = 1
    """N of the facts that it knows."""


class CoverageSettings(StrictModel):
    """How it is found which facts the training pairs carry."""

    embedder: str | None = "minilm-l6-v2"
    """Embedding model: a sentence-transformers folder, a Hub id, or the packaged `minilm-l6-v2` (extra
    `embeddings`); none leaves similarity out."""
    near_duplicate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Written questions whose cosine to an earlier one of the same fact or section is at least this are dropped;
    none compares wordings only."""


class WritingSettings(StrictModel):
    """How a generator turns documents into facts, and facts into questions."""

    facts: FactSettings = FactSettings()
    pairs: PairSettings = PairSettings()


class InjectRecipe(StrictModel):
    """Teach a model a document."""

    kind: Literal["inject"] = "inject"
    model: str
    """Model reference: a Hub id, a folder, a .gguf file or a bundled name."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Of everything that is drawn; a run without one is refused."""
    documents: Path
    """A file or a folder."""
    include: list[str] = []
    """Patterns of sections to use, matched against heading paths; none means all."""
    exclude: list[str] = []
    """Patterns of sections to leave out."""
    facts: Path | None = None
    """JSONL of facts; none has the generator break the documents into facts."""
    qa: Path | None = None
    """JSONL of questions and answers; none has the generator write them."""
    generator: GeneratorSettings | None = None
    """Who writes what is not given as a file."""
    writing: WritingSettings = WritingSettings()
    method: Literal["sft", "prompt-distillation"] = "sft"
    """Learn the answers of the pairs, or what the model itself says of the questions with the section before it."""
    basis: Basis = "fact"
    """Which pairs to use: N questions a fact, or N times the section's tokens."""
    scale: PositiveInt = 10
    """N."""
    kept_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of the facts (basis `token`: sections) that training never sees: the control for answer style."""
    kept_out_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Of the choice of what is kept out, where several seeds are to train on the same facts; none means `seed`."""
    precision: Precision = "auto"
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    probe: ProbeSettings = ProbeSettings()
    records: RecordSettings = RecordSettings()
    distillation: DistillationSettings = DistillationSettings()
    train: TrainSettings = TrainSettings()
    coverage: CoverageSettings = CoverageSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    rag: RagSettings | None = RagSettings()
    """The passages that a search finds, put before each question: rows to compare training with; none (`--no-rag`)
    leaves them out."""

    @model_validator(mode="after")
    def _knowledge_has_a_source(self) -> "InjectRecipe":
        if self.qa is not None and self.facts is None:
            raise ValueError("qa is given without facts, which its rows name; give both files")
        if self.qa is None and self.generator is None:
            raise ValueError(
                "expected facts and questions, or someone to write them; give both files (--facts FILE --qa FILE), "
                "or a generator (--generator openai:MODEL@URL, or a model reference such as smollm2-135m)"
            )
        if self.writing.pairs.paraphrases and not self.records.fact_texts:
            raise ValueError(
                "writing.pairs.paraphrases are learned as texts; set records.fact_texts as well, to how many of each "
                "fact's wordings to learn"
            )
        if self.probe.n_questions and self.basis == "token":
            raise ValueError("probe.n_questions asks fact by fact; use it with basis 'fact'")
        return self


Recipe = InjectRecipe | TransferRecipe | FuseRecipe | EvalRecipe | CompareRecipe
"""Every kind of recipe; told apart by `kind`."""

Settings = TypeVar("Settings", bound=StrictModel)

_RECIPES: dict[str, type[Recipe]] = {
    "inject": InjectRecipe,
    "transfer": TransferRecipe,
    "fuse": FuseRecipe,
    "eval": EvalRecipe,
    "compare": CompareRecipe,
}
_BY_TYPE = frozenset({"eval", "compare"})
"""Kinds whose paths are known by the types of their fields."""
_PATHS = (
    "documents",
    "facts",
    "qa",
    "records.replay_texts",
    "records.chats",
    "task",
    "train_file",
    "eval_file",
    "extraction",
    "task_adapter",
)

WITHOUT_EFFECT = frozenset(f"generator.{name}" for name in generator_settings.WITHOUT_EFFECT)
"""Keys that change no result; a run may go on with others."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe file with overrides applied; relative paths in it are relative to its own folder.

    Args:
        path: a YAML file.
        overrides: `key=value` with dotted keys; values are YAML, paths relative to the working folder.

    Returns:
        The checked recipe, its paths absolute.

    Raises:
        RecipeError: no such file, no YAML, an unknown key, a missing seed, a value of the wrong kind.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except OSError as err:
        raise RecipeError(f"{path}: expected a recipe file, got '{err.strerror}'; check the path.") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise RecipeError(f"{path}: expected YAML: {' '.join(str(err).split())}; mend the file.") from err
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: expected a recipe with keys and values, got {type(tree).__name__}.")
    _absolute(tree, path.resolve().parent)
    return make_recipe(tree, overrides, where=str(path))


def make_recipe(tree: dict[str, Any], overrides: Sequence[str] = (), *, where: str = "recipe") -> Recipe:
    """A recipe from keys and values, with overrides applied.

    Args:
        tree: the recipe's keys and values; changed in place.
        overrides: `key=value` with dotted keys.
        where: what to name in errors.

    Returns:
        The checked recipe, its paths absolute.

    Raises:
        RecipeError: an unknown key, a missing seed, a value of the wrong kind.
    """
    for override in overrides:
        _set(tree, override)
    _absolute(tree, Path.cwd())
    kind = tree.get("kind", "inject")
    if not isinstance(kind, str) or kind not in _RECIPES:
        raise RecipeError(f"{where}: kind: expected one of {sorted(_RECIPES)}, got {kind!r}.")
    try:
        return _RECIPES[kind].model_validate(tree)
    except ValidationError as err:
        raise RecipeError(_complaints(err, where, _RECIPES[kind])) from err


def make_settings(
    kind: type[Settings], tree: dict[str, Any], overrides: Sequence[str], *, where: str
) -> Settings:
    """Settings that are no recipe, from keys and values, with overrides applied.

    Args:
        kind: class of the settings.
        tree: keys and values; changed in place.
        overrides: `key=value` with dotted keys.
        where: what to name in errors.

    Returns:
        The checked settings.

    Raises:
        RecipeError: an unknown key, or a value of the wrong kind.
    """
    for override in overrides:
        _set(tree, override)
    try:
        return kind.model_validate(tree)
    except ValidationError as err:
        raise RecipeError(_complaints(err, where, kind)) from err


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON values, every default written out."""
    return recipe.model_dump(mode="json")


def _complaints(err: ValidationError, where: str, kind: type[BaseModel]) -> str:
    lines: list[str] = []
    for error in err.errors():
        name = ".".join(str(part) for part in error["loc"])
        at = f"{where}: {name}" if name else where
        if error["type"] == "missing":
            hint = (
                ": a run without a seed cannot be repeated; add one, such as `seed: 17`"
                if name == "seed"
                else ""
            )
            lines.append(f"{at}: is missing{hint}")
        elif error["type"] == "extra_forbidden":
            known = _field_names(kind)
            near = get_close_matches(name, known, n=1)
            listed = (
                "`docs/recipes.md` lists the known ones"
                if "seed" in known
                else f"known are {', '.join(known)}"
            )
            hint = f"did you mean {near[0]!r}?" if near else listed
            lines.append(f"{at}: unknown key; {hint}")
        elif error["type"] == "value_error" and "ctx" in error:  # our own: says what came by itself
            lines.append(f"{at}: {error['ctx']['error']}")
        else:
            lines.append(f"{at}: {error['msg']}, got {error['input']!r}")
    return "\n".join(lines)


def _field_names(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all keys of a recipe, groups included."""
    names: list[str] = []
    for name, field in kind.model_fields.items():
        names.append(prefix + name)
        if inner := settings_class(field):
            names += _field_names(inner, f"{prefix}{name}.")
    return names


def settings_class(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a group of keys, also of one that may be none; None where the field is a single key."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _set(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise RecipeError(f"--set {override!r}: expected key=value, such as train.n_epochs=6.")
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as err:
        raise RecipeError(f"--set {override!r}: the value is no YAML: {' '.join(str(err).split())}.") from err
    branch: Any = tree
    *path, leaf = name.strip().split(".")
    for part in path:
        branch = branch.setdefault(part, {})
        if not isinstance(branch, dict):
            raise RecipeError(f"--set {override!r}: {part!r} holds a value, no further keys.")
    branch[leaf] = value


class _Loader(yaml.SafeLoader):
    """YAML 1.2 where it matters: `1e-3` is a number, and `on`, `off`, `yes`, `no` are words."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _absolute(tree: dict[str, Any], folder: Path) -> None:
    """Make the paths of a recipe absolute, in place; a model is a path where there is such a file or folder."""
    kind = tree.get("kind")
    if isinstance(kind, str) and kind in _BY_TYPE:
        absolute_paths(_RECIPES[kind], tree, folder)
        return
    generator, coverage, rag = (tree.get(name) for name in ("generator", "coverage", "rag"))
    models = [(tree, name) for name in ("model", "teacher", "student", "target")]
    models += [(generator, "reference")]
    models += [(coverage, "embedder"), (rag, "embedder"), (rag, "reranker")]
    for group, name in models:
        value = group.get(name) if isinstance(group, dict) else None
        if isinstance(group, dict) and isinstance(value, str) and value:
            lead = "recorded:" if value.startswith("recorded:") else ""
            path = folder / Path(value.removeprefix(lead)).expanduser()
            group[name] = f"{lead}{path}" if lead or path.exists() else value
    for name in _PATHS:
        branch: Any = tree
        *path, leaf = name.split(".")
        for part in path:
            branch = branch.get(part) if isinstance(branch, Mapping) else None
        if isinstance(branch, dict) and isinstance(branch.get(leaf), str | Path):
            branch[leaf] = str(folder / Path(branch[leaf]).expanduser())
    evaluate = tree.get("evaluate")
    for group, name in ((evaluate, "texts"), (tree, "texts"), (tree, "caches")):
        paths = group.get(name) if isinstance(group, dict) else None
        if isinstance(paths, dict):
            for key, path in paths.items():
                paths[key] = str(folder / Path(path).expanduser()) if isinstance(path, str | Path) else path
    sources = tree.get("sources")
    if isinstance(sources, list):
        for n, source in enumerate(sources):
            path = folder / Path(str(source)).expanduser()
            sources[n] = str(path) if path.exists() else source
