"""The passages of an index on disk: one JSON line each, and where each line begins."""

import json
from collections.abc import Sequence
from itertools import accumulate
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Int64

from transfuse.io.files import atomic_file
from transfuse.io.jsonl import write_jsonl
from transfuse.knowledge.records import Passage

PASSAGES_FILE, OFFSETS_FILE = "passages.jsonl", "offsets.npy"


def save_passages(folder: Path, passages: Sequence[Passage]) -> None:
    """Write the passages; row n is line n.

    Args:
        folder: where the files are written.
        passages: in the order of their rows.

    Raises:
        RunFolderError: the files cannot be written.
    """
    write_jsonl(folder / PASSAGES_FILE, (_row(passage) for passage in passages))
    with (folder / PASSAGES_FILE).open("rb") as file:
        offsets = [0, *accumulate(len(line) for line in file)]
    with atomic_file(folder / OFFSETS_FILE) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(offsets, dtype=np.int64))


def _row(passage: Passage) -> dict[str, Any]:
    return {
        "id": passage.id,
        "document": passage.document,
        "heading_path": passage.heading_path,
        "text": passage.text,
        "span": passage.span,
        "page": passage.page,
    }


@final
class PassageFile:
    """The passages of an index, memory-mapped; one is parsed when it is asked for."""

    def __init__(self, lines: mmap | bytes, offsets: Int64[np.ndarray, " ends"]) -> None:
        self._lines = lines
        self._offsets = offsets

    @classmethod
    def load(cls, folder: Path) -> "PassageFile":
        """Map the files that `save_passages` wrote.

        Args:
            folder: holds them; may be removed afterwards.

        Returns:
            The passages.

        Raises:
            OSError: a file is missing.
            ValueError: the files do not fit one another.
        """
        offsets = np.load(folder / OFFSETS_FILE, mmap_mode="r", allow_pickle=False)
        with (folder / PASSAGES_FILE).open("rb") as file:
            n_bytes = file.seek(0, 2)
            lines = mmap(file.fileno(), 0, access=ACCESS_READ) if n_bytes else b""
        if offsets.ndim != 1 or not len(offsets) or int(offsets[-1]) != n_bytes:
            raise ValueError(f"{OFFSETS_FILE} does not fit {PASSAGES_FILE}")
        return cls(lines, offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> Passage:
        if not 0 <= row < len(self):
            raise IndexError(row)
        found = json.loads(self._lines[int(self._offsets[row]) : int(self._offsets[row + 1])])
        start, end = found["span"]
        return Passage(
            id=found["id"],
            document=found["document"],
            heading_path=tuple(found["heading_path"]),
            text=found["text"],
            span=(start, end),
            page=found["page"],
        )
