"""The documentation says what the code does."""

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from transfuse.cli.main import app
from transfuse.recipes.schema import make_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
REGENERATE = runpy.run_path(str(ROOT / "docs" / "regenerate.py"))
COMMAND = get_command(app)

_SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"<<'?(\w+)'?(?P<rest>[^\n]*)\n.*?^\1$", re.MULTILINE | re.DOTALL)
_KEY = re.compile(r"`([a-z_]+(?:\.(?:[a-z_0-9]+|NAME))*)`")


def transfuse_commands(page: str) -> Iterator[list[str]]:
    """Arguments of every call of transfuse in the shell blocks of a page, also those under accelerate."""
    for block in _SHELL.findall(page):
        text = _HEREDOC.sub(r"\g<rest>", block).replace("\\\n", " ")
        for line in text.splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            lexer.commenters = "#"
            call: list[str] = []
            for token in [*lexer, ";"]:
                if set(token) <= set(";|&><"):
                    yield from _arguments(call)
                    call = []
                else:
                    call.append(token)


def _arguments(call: list[str]) -> Iterator[list[str]]:
    while call and re.fullmatch(r"[A-Z_]+=.*", call[0]):
        call = call[1:]
    if call and call[0] == "transfuse":
        yield call[1:]
    elif "transfuse.cli" in call:
        yield call[call.index("transfuse.cli") + 1 :]


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The command that the arguments name, and what they give it; nothing is run."""
    command: Any = COMMAND
    context = command.make_context("transfuse", list(arguments), resilient_parsing=False)
    names: list[str] = []
    while getattr(command, "commands", None) and (rest := [*context._protected_args, *context.args]):
        if rest == ["..."]:
            return " ".join(names), {}
        name, command, rest = command.resolve_command(context, rest)
        names.append(name)
        if rest == ["..."]:
            return " ".join(names), {}
        context = command.make_context(name, rest, parent=context)
    return " ".join(names), context.params


def test_the_recipe_page_is_the_one_the_code_makes():
    made = runpy.run_path(str(ROOT / "docs" / "make_recipes.py"))["recipe_page"]()
    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8") == made, (
        "run: python docs/make_recipes.py"
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_a_page_shows_is_one(path):
    for arguments in transfuse_commands(path.read_text(encoding="utf-8")):
        try:
            parse(arguments)
        except Exception as err:  # click's own, under any of its names
            pytest.fail(f"transfuse {' '.join(arguments)}: {getattr(err, 'message', err)}")


def test_the_pages_show_commands_of_every_kind():
    shown = {
        parse(each)[0] for path in PAGES for each in transfuse_commands(path.read_text(encoding="utf-8"))
    }
    assert {
        "inject",
        "transfer",
        "transfer extract",
        "fuse",
        "fuse check",
        "index build",
        "merge",
        "ask",
    } <= shown


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_setting_that_a_page_shows_exists(path):
    recipes = set(_KEY.findall((ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")))
    index = set(_KEY.findall((ROOT / "docs" / "knowledge-index.md").read_text(encoding="utf-8")))
    groups = {"merge": "merge.", "fuse distributions": "distributions."}
    for arguments in transfuse_commands(path.read_text(encoding="utf-8")):
        name, given = parse(arguments)
        for setting in given.get("settings") or []:
            key = setting.partition("=")[0]
            known = index if name == "index build" else recipes
            asked = f"{groups.get(name, '')}{key}"
            named = re.sub(r"^(\w+)\.[\w-]+\.", r"\1.NAME.", asked)  # `questions.islands.n_items`
            assert asked in known or named in known, f"transfuse {' '.join(arguments)}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_that_a_page_shows_is_one(path):
    for block in re.findall(
        r"^```yaml\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        tree = yaml.safe_load(block)
        if "kind" in tree:
            assert make_recipe(tree, [], where=str(path)).kind == tree["kind"]


def test_a_wrong_option_is_found():
    page = "```sh\nFOO=1 transfuse ask --modle m 'Who?' | head  # comment\n```\n"
    (arguments,) = transfuse_commands(page)
    assert arguments == ["ask", "--modle", "m", "Who?"]
    with pytest.raises(Exception, match="--modle"):
        parse(arguments)


def test_heredocs_and_continued_lines_are_read_as_the_shell_reads_them():
    page = (
        "```sh\npython - <<'END'\ntransfuse nonsense\nEND\n"
        "accelerate launch -m transfuse.cli ask \\\n    --model m q &\n```\n"
    )
    assert list(transfuse_commands(page)) == [["ask", "--model", "m", "q"]]


@pytest.mark.parametrize("name", REGENERATE["PAGES"])
def test_shown_output_is_that_of_the_commands_shown(name):
    page = (ROOT / name).read_text(encoding="utf-8")
    assert REGENERATE["stamped_digest"](page) == REGENERATE["commands_digest"](page), (
        f"the commands have changed since their output was made; run: python docs/regenerate.py {name}"
    )


def test_every_output_in_tutorials_and_how_tos_comes_from_a_command():
    for path in PAGES:
        if path.parent.name not in ("tutorials", "how-to"):
            continue
        page = path.read_text(encoding="utf-8")
        n_marked = sum(block.is_output for block in REGENERATE["marked_blocks"](page))
        assert len(re.findall(r"^```text$", page, re.MULTILINE)) == n_marked, path
        assert n_marked == 0 or str(path.relative_to(ROOT)) in REGENERATE["PAGES"], path


def test_outputs_are_replaced_by_what_the_commands_print(tmp_path, capfd):
    page = (
        "<!-- regenerated old -->\nold\n<!-- end -->\n\n"
        "<!-- run -->\n```sh\necho one; echo two\n```\n\n<!-- output -->\n```text\nold\n```\n\n"
        "<!-- output: echo three | tr a-z A-Z -->\n```text\n```\nend\n"
    )
    made = REGENERATE["regenerated"](page, tmp_path)
    assert "```text\none\ntwo\n```" in made
    assert "```text\nTHREE\n```\nend\n" in made
    assert REGENERATE["stamped_digest"](made) == REGENERATE["commands_digest"](page)
    with pytest.raises(SystemExit, match="exit status 3"):
        REGENERATE["regenerated"]("<!-- run -->\n```sh\nexit 3\n```\n", tmp_path)
