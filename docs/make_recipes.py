"""Write docs/recipes.md from the recipe classes: `python docs/make_recipes.py`; a unit test holds it current."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

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
    for name, kind in (("inject", InjectRecipe), ("transfer", TransferRecipe)):
        lines += ["", f"## {name}", "", "| key | default | meaning |", "|---|---|---|", *_rows(kind, "")]
    return "\n".join(lines) + "\n"


def _rows(kind: type[BaseModel], prefix: str, defaults: BaseModel | None = None) -> list[str]:
    rows: list[str] = []
    for name, field in kind.model_fields.items():
        default = field.default if defaults is None else getattr(defaults, name)
        inner = settings_class(field)
        meaning = " ".join((field.description or "").split())
        if inner and meaning:  # a group that may be left out says so itself
            rows.append(
                f"| `{prefix}{name}` | {'none' if field.default is None else 'as follows'} | {meaning} |"
            )
        if inner:
            rows += _rows(inner, f"{prefix}{name}.", default if isinstance(default, BaseModel) else None)
        else:
            rows.append(f"| `{prefix}{name}` | {_default(default)} | {meaning} |")
    return rows


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    return "none" if value is None else f"`{value}`"


if __name__ == "__main__":
    TARGET.write_text(recipe_page(), encoding="utf-8")
