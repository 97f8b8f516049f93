"""Run the commands that the pages show and put what they print into the pages.

    python docs/regenerate.py                          every page, in an empty scratch folder (make docs-output)
    python docs/regenerate.py docs/tutorials/fuse.md   that page, in the scratch folder as others left it

In a page, a comment before a fenced block says what it is:

    <!-- run -->                the shell commands of the block are run, all with `bash -euo pipefail`
    <!-- output -->             the block is what the last block that was run printed
    <!-- output: COMMAND -->    the block is what COMMAND prints
    <!-- regenerated ... -->    from here to `<!-- end -->` stands the page's stamp: machine, versions, date

The stamp has a digest of the page's commands, so that a unit test can tell a page whose commands have changed since its
output was made. Commands run in `runs/docs`, which has the repository's `examples/`; pages come in the order of PAGES,
and a later page may use what an earlier one made.
"""

import argparse
import datetime
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "docs/tutorials/inject.md",
    "docs/tutorials/transfer.md",
    "docs/tutorials/fuse.md",
    "docs/tutorials/index-and-rag.md",
    "docs/eval.md",
    "docs/compare.md",
    "docs/how-to/own-documents.md",
    "docs/how-to/transfer-13b-to-7b.md",
    "docs/how-to/fuse-three-7b.md",
    "docs/how-to/push-to-the-hub.md",
)
"""Pages with output, in the order in which they are run."""

_BLOCK = re.compile(
    r"^<!-- (?P<what>run|output)(?:: (?P<command>[^\n]*?))? -->\n```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_STAMP = re.compile(r"^<!-- regenerated (?P<digest>\w+) -->\n.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A marked block of a page."""

    start: int
    """Place of its body in the page."""
    end: int
    command: str | None
    """What is run for it; None takes what the block before printed."""
    is_output: bool


def marked_blocks(page: str) -> list[Block]:
    """The blocks that the comments of a page mark, in order."""
    return [
        Block(
            match.start("body"),
            match.end("body"),
            match["body"] if match["what"] == "run" else match["command"],
            match["what"] == "output",
        )
        for match in _BLOCK.finditer(page)
    ]


def commands_digest(page: str) -> str:
    """What the page's stamp has to say: a digest of all that is run for it."""
    commands = [block.command or "" for block in marked_blocks(page)]
    return hashlib.sha256("\0".join(commands).encode()).hexdigest()[:12]


def stamped_digest(page: str) -> str | None:
    """What the page's stamp does say; None without a stamp."""
    found = _STAMP.search(page)
    return found["digest"] if found else None


def regenerated(page: str, folder: Path) -> str:
    """The page with what its commands print now.

    Args:
        page: Markdown.
        folder: where they run.

    Returns:
        The page; only outputs and stamp differ.

    Raises:
        SystemExit: a command failed.
    """
    parts: list[str] = []
    place, printed, began = 0, "", time.perf_counter()
    load = os.getloadavg()[0]
    for block in marked_blocks(page):
        if block.command is not None:
            printed = _printed(block.command, folder)
        if block.is_output:
            parts += [page[place : block.start], printed]
            place = block.end
    page = "".join(parts) + page[place:]
    seconds = round(time.perf_counter() - began)
    return _STAMP.sub(lambda _: _stamp(page, seconds, load), page)


def _printed(command: str, folder: Path) -> str:
    print(command.rstrip(), flush=True)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "NO_COLOR": "1",
            "COLUMNS": "100",
            "HF_HUB_OFFLINE": "1",
        },
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(done.stdout)
        raise SystemExit(f"exit status {done.returncode}: {command}")
    if "```" in done.stdout:
        raise SystemExit(f"the output holds a code fence, which would end its block: {command}")
    lines = [line.rstrip() for line in done.stdout.replace(f"{folder}/", "").splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


def _stamp(page: str, seconds: int, load: float) -> str:
    import torch

    from transfuse import __version__

    minutes, rest = divmod(seconds, 60)
    shared = f", beside other work (load {load:.0f})" if load >= 1 else ""
    return (
        f"<!-- regenerated {commands_digest(page)} -->\n"
        f"*What the commands printed is as they printed it: transfuse {__version__}, torch {torch.__version__}, "
        f"{_machine()}{shared}, {datetime.datetime.now(tz=datetime.UTC):%-d %B %Y}; all of them together took "
        f"{minutes} min {rest:02d} s. `python docs/regenerate.py` runs them again.*\n"
        "<!-- end -->"
    )


def _machine() -> str:
    processor = "unknown processor"
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        processor = found[1] if found else processor
    n_threads = os.environ.get("OMP_NUM_THREADS")
    threads = f", OMP_NUM_THREADS={n_threads}" if n_threads else ""
    return f"{len(os.sched_getaffinity(0))} cores ({processor}){threads}, no GPU"


def main(arguments: Sequence[str] | None = None) -> None:
    """Regenerate the named pages, or all."""
    parser = argparse.ArgumentParser(
        description="Run the pages' commands and put what they print into the pages."
    )
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "docs", help="scratch folder")
    options = parser.parse_args(arguments)
    folder: Path = options.work.resolve()
    if not options.pages:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    examples = folder / "examples"
    if not examples.exists():
        examples.symlink_to(ROOT / "examples")
    for path in options.pages or [ROOT / page for page in PAGES]:
        shutil.rmtree(folder / path.stem, ignore_errors=True)  # a page writes into a folder of its own name
        page = regenerated(path.read_text(encoding="utf-8"), folder)
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
