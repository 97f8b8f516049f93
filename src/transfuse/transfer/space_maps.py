"""Which spaces of two models' layers correspond, and the maps between them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from transfuse.errors import ModelError
from transfuse.tensors.activation_maps import PairedMoments, empty_moments
from transfuse.tensors.layer_similarity import linear_cka, monotone_assignment
from transfuse.transfer.activations import PairedText, Tap, read_activations
from transfuse.transfer.architecture import AXES, Architecture, Role

Space = Literal[
    "attention inputs",
    "queries",
    "keys",
    "values",
    "heads",
    "attention results",
    "mlp inputs",
    "gates",
    "ups",
    "neurons",
    "mlp results",
]
"""A place in a layer that decoders of every family have."""

SPACES: dict[Space, tuple[Role, Literal["input", "output"]]] = {
    "attention inputs": ("query", "input"),
    "queries": ("query", "output"),
    "keys": ("key", "output"),
    "values": ("value", "output"),
    "heads": ("output", "input"),
    "attention results": ("output", "output"),
    "mlp inputs": ("up", "input"),
    "gates": ("gate", "output"),
    "ups": ("up", "output"),
    "neurons": ("down", "input"),
    "mlp results": ("down", "output"),
}
"""Where each space is read: at a role's matrix, before or after it."""

INPUT_SPACES: dict[Role, Space] = {
    "query": "attention inputs",
    "key": "attention inputs",
    "value": "attention inputs",
    "output": "heads",
    "gate": "mlp inputs",
    "up": "mlp inputs",
    "down": "neurons",
}

OUTPUT_SPACES: dict[Role, Space] = {
    "query": "queries",
    "key": "keys",
    "value": "values",
    "output": "attention results",
    "gate": "gates",
    "up": "ups",
    "down": "mlp results",
}

CHUNK_POSITIONS = 512
"""Positions whose activations are held at once, at least."""

SIMILARITY_POSITIONS = 1024
"""Positions on which layers are compared."""

HOLD_OUT_EVERY = 5
"""One text in so many is held out; with fewer texts, the last one."""


class Reader(NamedTuple):
    """A model and where its matrices lie."""

    model: PreTrainedModel
    architecture: Architecture

    def tap(self, layer: int, space: Space) -> Tap:
        """Where a space of a layer is read."""
        role, side = SPACES[space]
        return Tap(self.architecture.module_name(layer, self.architecture.module_of(role)), side)

    def width(self, space: Space) -> int:
        """Dimensions of a space."""
        role, side = SPACES[space]
        return self.architecture.size(AXES[role][side == "input"])

    def part(self, space: Space, read: Float[Tensor, "pos module"]) -> Float[Tensor, "pos width"]:
        """A space's dimensions among those of the physical module at which it is read."""
        role, side = SPACES[space]
        if side == "input" or len(self.architecture.module_of(role).roles) == 1:
            return read
        return read[:, self.architecture.physical_rows(role).to(read.device)]


class HeldOutMoments(NamedTuple):
    """Paired sums of one space, teacher on the left."""

    fit: PairedMoments
    held_out: PairedMoments


@dataclass(frozen=True, slots=True)
class LayerMatch:
    """Which layer of the teacher a student's layer corresponds to."""

    student: int
    teacher: int
    similarity: float | None
    """Linear CKA of the two layers' outputs; None where layers are matched by depth."""


def is_held_out(text: int, n_texts: int) -> bool:
    """Whether a text is kept from the fit; whole texts are, since positions of one text resemble each other."""
    return text % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1 or text == n_texts - 1 < HOLD_OUT_EVERY - 1


def match_by_depth(n_teacher: int, n_student: int) -> list[LayerMatch]:
    """The layer at the same share of the depth; first with first, last with last."""
    steps = max(1, n_student - 1)
    return [
        LayerMatch(layer, (2 * layer * (n_teacher - 1) + steps) // (2 * steps), None)
        for layer in range(n_student)
    ]


def match_by_similarity(teacher: Reader, student: Reader, texts: Sequence[PairedText]) -> list[LayerMatch]:
    """The layers whose outputs are most alike in sum, their order kept.

    Args:
        teacher: the model that deltas come from.
        student: the model that takes them.
        texts: read until there are `SIMILARITY_POSITIONS` pairs, which are all that is held.

    Returns:
        One match a student layer; no teacher layer serves two, unless there are fewer of them.
    """
    held: list[PairedText] = []
    while len(held) < len(texts) and sum(len(t.teacher_positions) for t in held) < SIMILARITY_POSITIONS:
        held.append(texts[len(held)])
    taps = [
        [Tap(f"{side.architecture.layers}.{n}", "output") for n in range(side.architecture.n_layers)]
        for side in (teacher, student)
    ]
    ours, theirs = _read_chunk(teacher, student, held, *taps)
    similarity = torch.tensor([[linear_cka(ours[t], theirs[s]) for t in taps[0]] for s in taps[1]])
    return [
        LayerMatch(layer, column, float(similarity[layer, column]))
        for layer, column in enumerate(monotone_assignment(similarity))
    ]


def layer_groups(
    wanted: Mapping[LayerMatch, Sequence[Space]], teacher: Reader, student: Reader, memory_gib: float
) -> Iterator[dict[LayerMatch, Sequence[Space]]]:
    """Layers whose sums fit into memory together; each group takes one more reading of the texts.

    Args:
        wanted: the spaces of each pair of layers.
        teacher: the model that deltas come from.
        student: the model that takes them.
        memory_gib: a group of one layer may exceed it.

    Yields:
        Parts of `wanted`, in its order.
    """
    group: dict[LayerMatch, Sequence[Space]] = {}
    total = 0.0
    for match, spaces in wanted.items():
        widths = [(teacher.width(space), student.width(space)) for space in spaces]
        # Two sets of sums (fit, held out), 8 bytes each.
        gib = sum(16 * (t * t + s * s + t * s) for t, s in widths) / 2**30
        if group and total + gib > memory_gib:
            yield group
            group, total = {}, 0.0
        group[match] = spaces
        total += gib
    if group:
        yield group


def gather_moments(
    teacher: Reader,
    student: Reader,
    texts: Sequence[PairedText],
    wanted: Mapping[LayerMatch, Sequence[Space]],
    on_text: Callable[[int], None],
) -> dict[LayerMatch, dict[Space, HeldOutMoments]]:
    """Sums of products of two models' activations, over all texts, of some spaces of some layers.

    Args:
        teacher: the model that deltas come from.
        student: the model that takes them.
        texts: read once by each model.
        wanted: the spaces of each pair of layers.
        on_text: called with the number of texts done.

    Returns:
        Sums for the fit and for what is held out.

    Raises:
        ModelError: an activation is not finite.
    """
    device = next(student.model.parameters()).device
    sums: dict[LayerMatch, dict[Space, HeldOutMoments]] = {
        match: {
            space: HeldOutMoments(
                *(empty_moments(teacher.width(space), student.width(space), device) for _ in range(2))
            )
            for space in spaces
        }
        for match, spaces in wanted.items()
    }
    places: list[tuple[HeldOutMoments, Space, Tap, Tap]] = [
        (sums[match][space], space, teacher.tap(match.teacher, space), student.tap(match.student, space))
        for match, spaces in wanted.items()
        for space in spaces
    ]
    teacher_taps = list(dict.fromkeys(place[2] for place in places))
    student_taps = list(dict.fromkeys(place[3] for place in places))
    done = 0
    for chunk, is_held in _chunks(texts):
        ours, theirs = _read_chunk(teacher, student, chunk, teacher_taps, student_taps)
        for tap, rows in (*ours.items(), *theirs.items()):
            _refuse_not_finite(tap, rows)
        for moments, space, teacher_tap, student_tap in places:
            left = teacher.part(space, ours[teacher_tap]).to(device)
            moments[is_held].add(left, student.part(space, theirs[student_tap]).to(left.dtype))
        done += len(chunk)
        on_text(done)
    return sums


def _chunks(texts: Sequence[PairedText]) -> Iterator[tuple[list[PairedText], bool]]:
    """Texts in lots of at least `CHUNK_POSITIONS` pairs: those of the fit, then those held out."""
    for is_held in (False, True):
        chunk: list[PairedText] = []
        for n, text in enumerate(texts):
            if is_held_out(n, len(texts)) == is_held:
                chunk.append(text)
            if sum(len(each.teacher_positions) for each in chunk) >= CHUNK_POSITIONS:
                yield chunk, is_held
                chunk = []
        if chunk:
            yield chunk, is_held


def _read_chunk(
    teacher: Reader,
    student: Reader,
    texts: Sequence[PairedText],
    teacher_taps: Sequence[Tap],
    student_taps: Sequence[Tap],
) -> tuple[dict[Tap, Tensor], dict[Tap, Tensor]]:
    ours = [read_activations(teacher.model, t.teacher_ids, t.teacher_positions, teacher_taps) for t in texts]
    theirs = [
        read_activations(student.model, t.student_ids, t.student_positions, student_taps) for t in texts
    ]
    return (
        {tap: torch.cat([each[tap] for each in ours]) for tap in teacher_taps},
        {tap: torch.cat([each[tap] for each in theirs]) for tap in student_taps},
    )


def _refuse_not_finite(tap: Tap, rows: Float[Tensor, "pos width"]) -> None:
    if not torch.isfinite(rows).all():
        raise ModelError(
            f"{tap.module}: expected finite activations on the calibration texts, got NaN or infinity; "
            "load the model in float32, or check its weights."
        )
