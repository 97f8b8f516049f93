"""Which of the teacher's layers stand for the student's."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from transfuse.errors import ModelError, RecipeError

NamedChoice = Literal["sensitive", "proportional", "first", "last", "random"]

LayerChoice = NamedChoice | list[int]
"""A way to choose, or the teacher's layers themselves in the student's order."""


def choose_layers(
    choice: LayerChoice, scores: Sequence[float], n_student: int, generator: torch.Generator
) -> list[int]:
    """One of the teacher's layers for each of the student's.

    Args:
        choice: `sensitive` takes the layers of greatest score (of equal ones the lower), `proportional` the layers
            round(i * (n_teacher - 1) / (n_student - 1)), halves upwards, so that the first and the last are among
            them (the middle one for a student of one layer), `first` and `last` those at the ends, `random` drawn
            ones. A list is taken as it stands.
        scores: summed sensitivity of each of the teacher's layers; only their number counts unless `sensitive`.
        n_student: layers of the student.
        generator: draws the `random` ones.

    Returns:
        Distinct layers of the teacher: ascending, as in the teacher, or in the order of the given list.

    Raises:
        ModelError: the student has more layers than the teacher.
        RecipeError: the list does not name as many distinct layers of the teacher as the student has.

    Source:
        Zhong et al. 2024, arXiv:2310.11451, section 3 (`sensitive`).
    """
    n_teacher = len(scores)
    if n_student > n_teacher:
        raise ModelError(
            f"expected a teacher with at least as many layers as the student: the teacher has {n_teacher}, "
            f"the student {n_student}. Choose a deeper teacher or a shallower student."
        )
    if isinstance(choice, list):
        return _given(choice, n_teacher, n_student)
    return sorted(CHOICES[choice](scores, n_student, generator))


def _given(choice: list[int], n_teacher: int, n_student: int) -> list[int]:
    wrong = [layer for layer in choice if not 0 <= layer < n_teacher]
    if len(choice) != n_student or len(set(choice)) != len(choice) or wrong:
        raise RecipeError(
            f"layers: expected {n_student} different numbers in 0..{n_teacher - 1} (one for each of the student's "
            f"layers), got {choice}; correct the list, or name a way to choose ({', '.join(CHOICES)})."
        )
    return list(choice)


def _sensitive(scores: Sequence[float], n_student: int, _: torch.Generator) -> Sequence[int]:
    return sorted(range(len(scores)), key=lambda layer: -scores[layer])[:n_student]


def _proportional(scores: Sequence[float], n_student: int, _: torch.Generator) -> Sequence[int]:
    last = len(scores) - 1
    if n_student == 1:
        return [last // 2]
    steps = n_student - 1
    return [(2 * i * last + steps) // (2 * steps) for i in range(n_student)]


def _first(_: Sequence[float], n_student: int, __: torch.Generator) -> Sequence[int]:
    return range(n_student)


def _last(scores: Sequence[float], n_student: int, _: torch.Generator) -> Sequence[int]:
    return range(len(scores) - n_student, len(scores))


def _random(scores: Sequence[float], n_student: int, generator: torch.Generator) -> Sequence[int]:
    return torch.randperm(len(scores), generator=generator)[:n_student].tolist()


CHOICES: dict[NamedChoice, Callable[[Sequence[float], int, torch.Generator], Sequence[int]]] = {
    "sensitive": _sensitive,
    "proportional": _proportional,
    "first": _first,
    "last": _last,
    "random": _random,
}
