"""Of near questions the first stays, within one source and among training questions only."""

import numpy as np

from transfuse.inject.near_questions import screen_near_questions
from transfuse.types import QAPair

ANGLES = {"when": 0.0, "at what time": 0.1, "which hour": 0.2, "who": 1.5}


def embed(texts) -> np.ndarray:
    angles = np.array([ANGLES[text] for text in texts])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def pair(n: int, question: str, source: str = "f1", split="train") -> QAPair:
    return QAPair(f"q{n}", "fact", source, split, question, "noon")


def test_the_first_of_near_questions_stays():
    pairs = [pair(1, "when"), pair(2, "at what time"), pair(3, "which hour"), pair(4, "who")]
    kept, dropped = screen_near_questions(pairs, embed, float(np.cos(0.15)))
    assert [each.question for each in kept] == [
        "when",
        "which hour",
        "who",
    ]  # near to a dropped one is not near
    assert [(each.what, each.reason) for each in dropped] == [
        ("at what time", "says the same as an earlier question: when")
    ]


def test_other_sources_and_eval_questions_are_left_alone():
    pairs = [pair(1, "when"), pair(2, "when", "f2"), pair(3, "at what time", split="eval")]
    assert screen_near_questions(pairs, embed, 0.9) == (pairs, [])
