"""The documentation says what the code does."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_recipe_page_is_the_one_the_code_makes():
    made = runpy.run_path(str(ROOT / "docs" / "make_recipes.py"))["recipe_page"]()
    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8") == made, (
        "run: python docs/make_recipes.py"
    )
