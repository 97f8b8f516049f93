"""What the site has beyond docs/: pages of the repository's root, one reference page a room, and links between them.

Pages in docs/ link as a browser of the repository needs it: `../benchmarks/LOG.md`, `../src/transfuse/fuse/targets.py`.
On the site the first is the page made of that file, the second the module's place in the reference, and any other file
of the repository is copied under `files/`. A link to nothing is left as it is, for mkdocs to refuse.
"""

import inspect
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = PurePosixPath("src/transfuse")
MIRRORED = {
    "benchmarks/LOG.md": "measurements.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Markdown outside docs/ that the site shows as pages of its own."""
SAME = {"README.md": "index.md"}
"""Files whose place on the site another page takes."""
COPIES = "files/"
"""Folder of the site for other files that pages link to; Markdown is shown there as it is written."""

_LINK = re.compile(r"(?P<before>\]\()(?P<target>[^()\s]+)(?P<after>(?:\s+\"[^\"]*\")?\))")
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the rooms' pages at the end of the navigation's Reference."""
    for part in config.nav or []:
        if "Reference" in part:
            part["Reference"].insert(0, "reference/commands.md")
            part["Reference"].append({"Modules": [f"reference/{name}.md" for name in _rooms()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that have no file in docs/."""
    for outside, page in MIRRORED.items():
        files.append(File.generated(config, page, content=(ROOT / outside).read_text(encoding="utf-8")))
    for inside in sorted(_copied(files.documentation_pages())):
        copy = _goal(inside, "") or ""
        files.append(File.generated(config, copy, abs_src_path=str(ROOT / inside)))
    files.append(File.generated(config, "reference/commands.md", content=_commands_page()))
    for name, modules in _rooms().items():
        text = "\n".join([f"# {name}", "", *(f"::: {module}\n" for module in modules)])
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that leave docs/ into links within the site."""
    name = page.file.src_uri
    if name.startswith("reference/"):
        return markdown

    def replaced(match: re.Match[str]) -> str:
        target = match["target"]
        inside = _in_repository(target, name)
        goal = None if inside is None else _goal(inside, target)
        if goal is not None:
            target = os.path.relpath(goal, PurePosixPath(name).parent)
        return match["before"] + target + match["after"]

    return "".join(
        line if is_code else _LINK.sub(replaced, line) for line, is_code in _lines_with_code(markdown)
    )


def _copied(pages: Iterable[File]) -> set[str]:
    """Files of the repository that pages link to and that are no pages of the site."""
    copied: set[str] = set()
    for file in pages:
        for match in _LINK.finditer(file.content_string):
            inside = _in_repository(match["target"], file.src_uri)
            if inside is not None and (_goal(inside, "") or "").startswith(COPIES):
                copied.add(inside)
    return copied


def _in_repository(target: str, page: str) -> str | None:
    """Which file of the repository a page's link means; None where it means none."""
    if re.match(r"[a-z][a-z0-9+.-]*:|#|/", target, re.IGNORECASE):
        return None
    place = {goal: outside for outside, goal in MIRRORED.items()}.get(page, f"docs/{page}")
    inside = os.path.normpath(PurePosixPath(place).parent / unquote(target.partition("#")[0]))
    return None if inside.startswith("..") else inside


def _goal(inside: str, target: str) -> str | None:
    """Where the site has a file of the repository, with the link's anchor; None where it has not."""
    mark = "".join(target.partition("#")[1:])
    if inside.startswith("docs/"):
        return inside.removeprefix("docs/") + mark
    if inside in MIRRORED or inside in SAME:
        return (MIRRORED | SAME)[inside] + mark
    if PurePosixPath(inside).is_relative_to(PACKAGE) and (ROOT / inside).exists():
        return _in_reference(PurePosixPath(inside))
    if (ROOT / inside).is_file():
        return f"{COPIES}{inside}" + (".txt" if inside.endswith(".md") else "")
    return None


def _in_reference(path: PurePosixPath) -> str:
    """Page and anchor of a module or a room."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    room = parts[0] if (ROOT / PACKAGE / parts[0]).is_dir() else "transfuse"
    if len(parts) == 1 and room != "transfuse":
        return f"reference/{room}.md"
    return f"reference/{room}.md#{'.'.join(('transfuse', *parts))}"


def _rooms() -> dict[str, list[str]]:
    """Public modules, room by room: `transfuse` has the ground floor's, and commands have a page of their own."""
    source = ROOT / PACKAGE
    rooms = {"transfuse": source, **{each.name: each for each in sorted(source.iterdir()) if each.is_dir()}}
    del rooms["cli"]
    found: dict[str, list[str]] = {}
    for name, folder in rooms.items():
        modules = [path.stem for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]
        prefix = "transfuse" if name == "transfuse" else f"transfuse.{name}"
        if modules:
            found[name] = [f"{prefix}.{module}" for module in modules]
    return found


def _commands_page() -> str:
    """Every command with its arguments and options, from the command line itself."""
    from typer.main import get_command

    from transfuse.cli.main import app

    return "# Commands\n\n" + "\n".join(_command_parts("transfuse", get_command(app)))


def _command_parts(name: str, command: Any) -> Iterator[str]:
    yield f"## {name}\n\n{inspect.cleandoc(command.help or '')}\n"
    rows = [_parameter_row(parameter) for parameter in command.params]
    if rows and name != "transfuse":
        yield "\n".join(["| argument or option | | meaning |", "|---|---|---|", *rows]) + "\n"
    for child, inner in getattr(command, "commands", {}).items():
        yield from _command_parts(f"{name} {child}", inner)


def _parameter_row(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    names = (
        ", ".join(f"`{each}`" for each in parameter.opts)
        if is_option
        else f"`{parameter.metavar or parameter.name}`"
    )
    about = "required" if parameter.required else ""
    if not parameter.required and parameter.default not in (None, False, [], ()):
        about = f"`{parameter.default}`"
    return f"| {names} | {about} | {(parameter.help or '').replace('|', chr(92) + '|')} |"


def _lines_with_code(markdown: str) -> Iterator[tuple[str, bool]]:
    """Lines, and whether each stands in a fenced block."""
    fence: str | None = None
    for line in markdown.splitlines(keepends=True):
        match = _FENCE.match(line)
        is_code = fence is not None or match is not None
        if match and fence is None:
            fence = match[1]
        elif match and fence is not None and match[1].startswith(fence):
            fence = None
        yield line, is_code
