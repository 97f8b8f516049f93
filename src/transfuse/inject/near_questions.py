"""Training questions that say the same as an earlier one of their fact or section in other words."""

from collections.abc import Callable, Sequence

import numpy as np

from transfuse.tensors.near_duplicates import near_duplicates
from transfuse.types import Dropped, QAPair


def screen_near_questions(
    pairs: Sequence[QAPair], embed: Callable[[Sequence[str]], np.ndarray], threshold: float
) -> tuple[list[QAPair], list[Dropped]]:
    """Keep the first of each set of training questions that are near to one another.

    Args:
        pairs: eval pairs are kept as they are.
        embed: gives one row of L2 norm 1 for each text.
        threshold: cosine from which two questions of one source count as the same.

    Returns:
        The kept pairs in order; the others with the question that they repeat.
    """
    trained = [pair for pair in pairs if pair.split == "train"]
    if len(trained) < 2:
        return list(pairs), []
    sources = {source: number for number, source in enumerate(dict.fromkeys(pair.source for pair in trained))}
    groups = np.array([sources[pair.source] for pair in trained])
    earlier = near_duplicates(embed([pair.question for pair in trained]), threshold, groups=groups)
    repeats = {
        pair.id: trained[first].question for pair, first in zip(trained, earlier, strict=True) if first >= 0
    }
    dropped = [
        Dropped("pair", pair.question, f"says the same as an earlier question: {repeats[pair.id]}")
        for pair in trained
        if pair.id in repeats
    ]
    return [pair for pair in pairs if pair.id not in repeats], dropped
