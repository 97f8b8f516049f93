"""A task adapter's delta, carried from its teacher onto a student of any width, depth, architecture and tokenizer.

Where a teacher's matrix W_t has the delta B_t A_t, the student's takes B_s = T_out B_t and A_s = A_t M, with

    y_s ~= T_out y_t    from what the teacher's module gives to what the student's gives,
    x_t ~= M x_s        from what the student's module reads to what the teacher's reads,

both fitted on activations of the same texts. With orthogonal Procrustes, M is the transpose of the map T_in from the
teacher's inputs to the student's, so that A_s = A_t T_in^T; for a semi-orthogonal map, transpose and pseudo-inverse
are one. With ridge regression, M is fitted in its own direction, since neither transpose nor inverse of a regression
is the regression back. Means are taken off before fitting and then left out: a delta is linear, and the constant that
it adds to the mean input is carried like any other input.

Source:
    Theseus, arXiv:2602.12952 (task update = functional effect on activations; Procrustes maps; B_s = T_out B_t,
    A_s = A_t T_in^T).
    Written from that rule alone; what the paper does beside it may differ: roles in place of module names, fused
    modules carried role by role and joined, tokenizers paired by text, gate and up mapped as neurons (see
    `TransportSettings.neurons`), directions that calibration never showed left at zero, ridge, a scale, layers
    matched by similarity.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from transfuse.errors import DataError, ModelError
from transfuse.generate.local import context_tokens
from transfuse.tensors.activation_maps import MAPS, LinearMap, read_r2
from transfuse.transfer.activations import Calibration, pair_texts
from transfuse.transfer.adapter_deltas import CarriedDelta, adapter_deltas, delta_norm, joined_delta
from transfuse.transfer.architecture import Architecture, Role
from transfuse.transfer.families import architecture_of
from transfuse.transfer.space_maps import (
    SPACES,
    HeldOutMoments,
    LayerMatch,
    Reader,
    Space,
    gather_moments,
    is_held_out,
    layer_groups,
    match_by_depth,
    match_by_similarity,
)
from transfuse.transfer.transport_plan import PlannedDelta, TransportSettings, plan_transport, refuse_foreign
from transfuse.types import Dropped

__all__ = [
    "CarriedDelta",
    "TextModel",
    "TransportReport",
    "TransportSettings",
    "adapter_deltas",
    "carry_delta",
]

MIN_POSITIONS = 64
POSITIONS_PER_RANK = 4
"""A map is wanted only along the delta's own directions, as many as its rank; four positions for each are the fewest
on which a fit can be told from noise. Below that nothing is carried; below the width of a space, with a warning."""


class TextModel(NamedTuple):
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class CarriedPart:
    """One logical matrix whose delta was carried, and how well; shares are of held-out positions, None if undefined."""

    role: Role
    student_module: str
    teacher_module: str
    input_r2: float | None
    """Share of the teacher's inputs that the student's predict."""
    output_r2: float | None
    """Share of the student's outputs that the teacher's predict."""
    effect_r2: float | None
    """Share of what the delta adds that the student's inputs predict; what counts of `input_r2`."""
    input_scale: float
    """What the map of inputs lacks to predict best: the ratio of units that plain Procrustes leaves out; else 1."""
    output_scale: float
    input_penalty: float | None
    """Of ridge, in units of the mean eigenvalue."""
    output_penalty: float | None
    input_directions: int
    """Directions of the two spaces that the fit saw vary together."""
    output_directions: int
    kept_norm: float | None
    """Frobenius norm of the carried delta, at strength 1, over that of the teacher's."""


@dataclass(frozen=True, slots=True)
class TransportReport:
    """What was carried, how well, and what was not."""

    parts: list[CarriedPart]
    layers: list[LayerMatch]
    n_texts: int
    n_fit_positions: int
    n_held_out_positions: int
    n_cut: int
    """Texts of which only the beginning was read."""
    cut_norm: dict[str, float]
    """Student module to the share of its delta's norm that the greatest rank left out; only where some was."""
    dropped: list[Dropped]
    warnings: list[str]


def carry_delta(
    teacher: TextModel,
    deltas: Mapping[str, CarriedDelta],
    student: TextModel,
    texts: Sequence[str],
    settings: TransportSettings,
    *,
    on_text: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, CarriedDelta], TransportReport]:
    """The student's deltas for a teacher's task adapter; nothing is trained, and neither model is changed.

    Args:
        teacher: without its adapter.
        deltas: what the adapter adds, by the teacher's module names (`adapter_deltas`).
        student: the model that is to take them.
        texts: calibration texts, at least two; best of the task's kind, answers included.
        settings: see `TransportSettings`.
        on_text: called with the numbers of texts read and to read.

    Returns:
        Full module name of the student to delta, float32 on the CPU, and the report. The student with them is
        `attach_deltas(student, ...)`.

    Raises:
        ModelError: an unknown architecture, an adapter of another model, nothing that both models have, or
            activations that are not finite.
        DataError: too few paired positions.
    """
    ours = Reader(teacher.model, architecture_of(teacher.model.config, _names(teacher.model)))
    theirs = Reader(student.model, architecture_of(student.model.config, _names(student.model)))
    refuse_foreign(ours.architecture, deltas)
    calibration = _calibration(teacher, student, texts, settings)
    n_fit, n_held_out = _position_counts(calibration)
    _refuse_few_positions(n_fit, n_held_out, calibration, max(d.up.shape[1] for d in deltas.values()))
    layers = _match_layers(ours, theirs, calibration, settings)
    plan, dropped = plan_transport(ours.architecture, theirs.architecture, deltas, layers, settings)
    if not plan:
        raise ModelError(
            f"nothing can be carried: {'; '.join(f'{gone.what}: {gone.reason}' for gone in dropped)}."
        )
    wanted: dict[LayerMatch, tuple[Space, ...]] = {
        match: tuple(dict.fromkeys(s for each in parts for s in (each.input_space, each.output_space)))
        for match, parts in plan.items()
    }
    groups = list(layer_groups(wanted, ours, theirs, settings.memory_gib))
    n_texts = len(calibration.texts)
    carried: dict[str, CarriedDelta] = {}
    cut_norm: dict[str, float] = {}
    parts: list[CarriedPart] = []
    for n, group in enumerate(groups):

        def tell(done: int, n: int = n) -> None:
            on_text(n * n_texts + done, len(groups) * n_texts)

        sums = gather_moments(ours, theirs, calibration.texts, group, tell)
        for match in group:
            pieces, told = _carry_layer(theirs.architecture, match, plan[match], sums.pop(match), settings)
            parts += told
            for module in theirs.architecture.modules:
                own: dict[Role, CarriedDelta] = {
                    role: pieces[role] for role in module.roles if role in pieces
                }
                if own:
                    name = theirs.architecture.module_name(match.student, module)
                    carried[name], lost = joined_delta(theirs.architecture, module, own, settings.rank)
                    cut_norm |= {name: lost} if lost else {}
    report = TransportReport(
        parts=parts,
        layers=layers,
        n_texts=n_texts,
        n_fit_positions=n_fit,
        n_held_out_positions=n_held_out,
        n_cut=calibration.n_cut,
        cut_norm=cut_norm,
        dropped=calibration.dropped + dropped,
        warnings=_warnings(ours, theirs, wanted, n_fit),
    )
    return carried, report


def _names(model: PreTrainedModel) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def _calibration(
    teacher: TextModel, student: TextModel, texts: Sequence[str], settings: TransportSettings
) -> Calibration:
    contexts = [context_tokens(side.model) or settings.max_tokens for side in (teacher, student)]
    return pair_texts(teacher.tokenizer, student.tokenizer, texts, min(settings.max_tokens, *contexts))


def _position_counts(calibration: Calibration) -> tuple[int, int]:
    counts = [0, 0]
    for n, text in enumerate(calibration.texts):
        counts[is_held_out(n, len(calibration.texts))] += len(text.teacher_positions)
    return counts[0], counts[1]


def _refuse_few_positions(n_fit: int, n_held_out: int, calibration: Calibration, rank: int) -> None:
    least = max(MIN_POSITIONS, POSITIONS_PER_RANK * rank)
    if n_fit < least or not n_held_out:
        raise DataError(
            f"calibration texts: expected at least {least} positions at which both tokenizers cut (for a delta of rank "
            f"{rank}), and some more in another text to check the fit on; got {n_fit} and {n_held_out} in "
            f"{len(calibration.texts)} texts. Give more texts, at least two."
        )


def _match_layers(
    teacher: Reader, student: Reader, calibration: Calibration, settings: TransportSettings
) -> list[LayerMatch]:
    if settings.layer_match == "similarity":
        return match_by_similarity(teacher, student, calibration.texts)
    return match_by_depth(teacher.architecture.n_layers, student.architecture.n_layers)


def _carry_layer(
    student: Architecture,
    match: LayerMatch,
    planned: Sequence[PlannedDelta],
    sums: Mapping[Space, HeldOutMoments],
    settings: TransportSettings,
) -> tuple[dict[Role, CarriedDelta], list[CarriedPart]]:
    fitted: dict[tuple[Space, Literal["in", "out"]], LinearMap] = {}

    def fit(space: Space, side: Literal["in", "out"]) -> LinearMap:
        if (space, side) not in fitted:
            pair = sums[space]
            if side == "in":  # from the student to the teacher
                pair = HeldOutMoments(pair.fit.flipped(), pair.held_out.flipped())
            fitted[space, side] = MAPS[settings.maps](pair.fit, pair.held_out)
        return fitted[space, side]

    pieces: dict[Role, CarriedDelta] = {}
    told: list[CarriedPart] = []
    for each in planned:
        inputs, outputs = fit(each.input_space, "in"), fit(each.output_space, "out")
        up, down = each.delta.up.to(outputs.matrix), each.delta.down.to(inputs.matrix)
        pair = sums[each.input_space]
        effect = read_r2(
            down, up.T @ up, inputs.unit_scale * inputs.matrix, pair.fit.flipped(), pair.held_out.flipped()
        )
        carried = CarriedDelta(outputs.matrix @ up, down @ inputs.matrix)
        norm = delta_norm(each.delta)
        told.append(
            CarriedPart(
                role=each.role,
                student_module=student.module_name(match.student, student.module_of(each.role)),
                teacher_module=each.teacher_module,
                input_r2=_known(inputs.r2),
                output_r2=_known(outputs.r2),
                effect_r2=_known(effect),
                input_scale=inputs.unit_scale,
                output_scale=outputs.unit_scale,
                input_penalty=inputs.penalty,
                output_penalty=outputs.penalty,
                input_directions=inputs.n_directions,
                output_directions=outputs.n_directions,
                kept_norm=delta_norm(carried) / norm if norm else None,
            )
        )
        up = (settings.strength * carried.up).float().cpu()
        pieces[each.role] = CarriedDelta(up, carried.down.float().cpu())
    return pieces, told


def _warnings(
    teacher: Reader, student: Reader, wanted: Mapping[LayerMatch, Sequence[Space]], n_fit: int
) -> list[str]:
    spaces: set[Space] = {space for each in wanted.values() for space in each}
    wide: list[Space] = [
        space
        for space in SPACES
        if space in spaces and n_fit < max(teacher.width(space), student.width(space))
    ]
    if not wide:
        return []
    widest = max(max(teacher.width(space), student.width(space)) for space in wide)
    return [
        f"{n_fit} paired positions are fewer than the dimensions of {', '.join(wide)} (up to {widest}): maps between "
        "these know only part of them. Give more calibration texts."
    ]


def _known(share: float) -> float | None:
    return share if math.isfinite(share) else None
