"""A small fusion: what its models and files are, and sentences that tell tokenizers apart; imported by tests."""

import json
from pathlib import Path
from typing import NamedTuple

SENTENCES = (
    "Which country won the cup in 2023? Spain won the cup for the first time.",
    "The final was played in Sydney, on 20 August.",
    "The team scored one goal in the first half, and the captain lifted the trophy.",
    "def goals(team):\n    return team.first + team.second\n",
)


class Fusion(NamedTuple):
    """A target, sources of other tokenizers, and texts."""

    target: Path
    fine: Path
    """Short tokens, a BOS."""
    chat: Path
    """No BOS; more rows than tokens."""
    twin: Path
    """As `fine`, of other weights."""
    wiki: Path
    code: Path
    eval: Path


def write_texts(path: Path, texts: list[str]) -> Path:
    """Write texts as JSON lines."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def read_texts(path: Path) -> list[str]:
    """Read what `write_texts` wrote."""
    return [json.loads(row)["text"] for row in path.read_text(encoding="utf-8").splitlines()]
