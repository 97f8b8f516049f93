"""Text that is wherever Python is: source of the standard library, and what installed packages say in docstrings.

    python benchmarks/python_texts.py --held-out DATA/text

Read where it is installed, never copied: source files as they are (PSF licence), and the docstrings of other packages'
modules, each module's in one text (each under its own licence). A text that shares lines with a held-out one is left
out, since the held-out code comes from the standard library too. Prints what there is.
"""

import argparse
import ast
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from transfuse.evaluate.bits_per_byte import load_texts

SHORTEST_LINE, MOST_SHARED_LINES, SHORTEST_TEXT = 30, 3, 400
LEFT_OUT = (
    "test",
    "tests",
    "idlelib",
    "turtledemo",
    "lib2to3",
    "__pycache__",
    "site-packages",
    "dist-packages",
)


def library_texts() -> Iterator[str]:
    """Source files of the standard library without its tests, in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if not set(path.relative_to(root).parts) & set(LEFT_OUT):
            yield from _read(path)


def documentation_texts(n_bytes: int) -> Iterator[str]:
    """Docstrings of installed packages, package by package, until so many bytes are there."""
    root = Path(sysconfig.get_paths()["purelib"])
    seen: set[str] = set()
    n_left = n_bytes
    for path in sorted(root.rglob("*.py")):
        if set(path.relative_to(root).parts) & {"test", "tests"}:
            continue
        told = [text for source in _read(path) for text in _docstrings(source) if text not in seen]
        seen.update(told)
        whole = "\n\n".join(told)
        if len(whole) >= SHORTEST_TEXT:
            yield whole
            n_left -= len(whole.encode())
        if n_left <= 0:
            return


def apart_from(texts: Iterable[str], held_out: Iterable[str]) -> tuple[list[str], int]:
    """Texts that hardly share a line with any held-out text, and how many others there were."""
    lines = {line for text in held_out for line in _long_lines(text)}
    kept: list[str] = []
    n_shared = 0
    for text in texts:
        if len(lines & _long_lines(text)) > MOST_SHARED_LINES:
            n_shared += 1
        else:
            kept.append(text)
    return kept, n_shared


def _long_lines(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if len(line.strip()) >= SHORTEST_LINE}


def _read(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    if len(text) >= SHORTEST_TEXT:
        yield text


def _docstrings(source: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= 80:
                yield text


def main() -> None:
    """Count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--documentation-bytes", type=int, default=12_000_000)
    options = parser.parse_args()
    held_out = [text for path in sorted(options.held_out.glob("*.eval.jsonl")) for text in load_texts(path)]
    for name, texts in (
        ("standard library", library_texts()),
        ("docstrings", documentation_texts(options.documentation_bytes)),
    ):
        kept, n_shared = apart_from(texts, held_out)
        n_bytes = sum(len(text.encode()) for text in kept)
        print(
            f"{name}: {len(kept)} texts, {n_bytes:,} bytes; {n_shared} left out for lines shared with held-out texts"
        )


if __name__ == "__main__":
    main()
