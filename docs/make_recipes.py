"""Write docs/recipes.md from the recipe classes: `python docs/make_recipes.py`; a unit test holds it current."""

from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from transfuse.recipes.compare_schema import CompareRecipe
from transfuse.recipes.eval_schema import EvalRecipe
from transfuse.recipes.fuse_schema import FuseRecipe
from transfuse.recipes.schema import InjectRecipe, settings_class
from transfuse.recipes.transfer_schema import TransferRecipe

TARGET = Path(__file__).with_name("recipes.md")
HEAD = """# Recipes

One YAML file is one run: `transfuse run recipe.yaml --out RUN`. Unknown keys are refused and `seed` is required.
Any key can be overridden: `--set train.n_epochs=6 --set train.method=full`. Relative paths in a file are relative to
the file, those given on the command line to the working folder. This page is made from the code.
"""


def recipe_page() -> str:
    """The page, from the classes' fields, defaults and docstrings."""
    lines = [HEAD.rstrip()]
    kinds = {
        "inject": InjectRecipe,
        "transfer": TransferRecipe,
        "fuse": FuseRecipe,
        "eval": EvalRecipe,
        "compare": CompareRecipe,
    }
    for name, kind in kinds.items():
        lines += ["", f"## {name}", "", "| key | default | meaning |", "|---|---|---|", *_rows(kind, "")]
    return "\n".join(lines) + "\n"


def _rows(kind: type[BaseModel], prefix: str, defaults: BaseModel | None = None) -> list[str]:
    rows: list[str] = []
    for name, field in kind.model_fields.items():
        default = field.default if defaults is None else getattr(defaults, name)
        inner = settings_class(field)
        meaning = _meaning(field)
        if inner and meaning:  # a group that may be left out says so itself
            rows.append(
                f"| `{prefix}{name}` | {'none' if field.default is None else 'as follows'} | {meaning} |"
            )
        if isinstance(field.discriminator, str):
            rows += _choice_rows(field, f"{prefix}{name}.", default)
        elif inner:
            each = "NAME." if get_origin(field.annotation) is dict else ""
            rows += _rows(
                inner, f"{prefix}{name}.{each}", default if isinstance(default, BaseModel) else None
            )
        else:
            rows.append(f"| `{prefix}{name}` | {_default(default)} | {meaning} |")
    return rows


def _choice_rows(field: FieldInfo, prefix: str, default: BaseModel) -> list[str]:
    """Keys of a group that is one of several classes: which one, then each key with the choices that have it."""
    choice = str(field.discriminator)
    kinds: list[type[BaseModel]] = list(get_args(field.annotation))
    names = [kind.model_fields[choice].default for kind in kinds]
    told = " ".join(
        f"`{name}`: {' '.join((kind.__doc__ or '').split())}" for name, kind in zip(names, kinds, strict=True)
    )
    rows = [f"| `{prefix}{choice}` | {_default(getattr(default, choice))} | {told} |"]
    having: dict[tuple[str, str, str], list[str]] = {}
    for chosen, kind in zip(names, kinds, strict=True):
        for name, each in kind.model_fields.items():
            if name != choice:
                having.setdefault((name, _default(each.default), _meaning(each)), []).append(f"`{chosen}`")
    for (name, value, meaning), owners in having.items():
        owned = "" if len(owners) == len(kinds) else f"({', '.join(owners)}) "
        rows.append(f"| `{prefix}{name}` | {value} | {owned}{meaning} |")
    return rows


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, list):
        value = [_plain(each) for each in value]
    return "none" if value is None else f"`{value}`"


def _plain(value: Any) -> Any:
    """Settings in a list, as a recipe would name them: what tells their class, and what is not its default."""
    if not isinstance(value, BaseModel):
        return value
    fields = type(value).model_fields
    kept = {name for name in fields if name == "method" or getattr(value, name) != fields[name].default}
    return value.model_dump(mode="json", include=kept)


if __name__ == "__main__":
    TARGET.write_text(recipe_page(), encoding="utf-8")
