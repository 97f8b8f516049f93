"""Which delta of a teacher's adapter goes where in the student, and what goes nowhere."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import PositiveFloat, PositiveInt

from transfuse.errors import ModelError
from transfuse.tensors.activation_maps import MapKind
from transfuse.transfer.adapter_deltas import CarriedDelta
from transfuse.transfer.architecture import Architecture, Role
from transfuse.transfer.space_maps import INPUT_SPACES, OUTPUT_SPACES, LayerMatch, Space
from transfuse.types import Dropped, StrictModel


class TransportSettings(StrictModel):
    """How a delta is carried."""

    maps: MapKind = "procrustes"
    """Between activations: `procrustes` (rotations, the published rule), `scaled-procrustes` (times a fitted factor,
    where the two models measure in different units), or `ridge` (regressions)."""
    layer_match: Literal["depth", "similarity"] = "depth"
    """Which teacher layer a student layer takes its delta from: the one at the same share of the depth, or that with
    the most similar outputs, in order."""
    neurons: Literal["states", "outputs"] = "states"
    """Where maps of gate and up are fitted: on the neurons' states after the activation (what `down` reads), or on the
    outputs of gate and up. Those vary only along as many directions as the residual stream has, so that a map fitted
    on them knows nothing about the others, in which most of a delta lies."""
    rank: PositiveInt | None = None
    """Greatest rank of a carried delta; none keeps all, which in a fused module is up to three times the adapter's."""
    strength: PositiveFloat = 1.0
    """Multiplies the carried delta."""
    max_tokens: PositiveInt = 256
    """Of each calibration text; what follows is not read."""
    memory_gib: PositiveFloat = 4.0
    """For sums of activations; where the layers need more, the texts are read several times."""


class PlannedDelta(NamedTuple):
    """The delta of one logical matrix, and the spaces it is carried through."""

    role: Role
    teacher_module: str
    delta: CarriedDelta
    """Of this role's rows alone."""
    input_space: Space
    output_space: Space


def plan_transport(
    teacher: Architecture,
    student: Architecture,
    deltas: Mapping[str, CarriedDelta],
    layers: Sequence[LayerMatch],
    settings: TransportSettings,
) -> tuple[dict[LayerMatch, list[PlannedDelta]], list[Dropped]]:
    """Which role of which layer goes where.

    Args:
        teacher: whose modules the deltas belong to.
        student: takes them.
        deltas: by full module name.
        layers: a teacher layer may serve several of the student's, or none.
        settings: where neurons are compared.

    Returns:
        What each pair of layers carries, pairs without anything left out; and what is carried nowhere.
    """
    plan: dict[LayerMatch, list[PlannedDelta]] = {match: [] for match in layers}
    dropped = [
        Dropped("delta", name, "its rows are tokens, which no map of activations carries")
        for name in (teacher.embedding.name, teacher.head.name)
        if name in deltas
    ]
    for layer in range(teacher.n_layers):
        takers = [match for match in layers if match.teacher == layer]
        for module in teacher.modules:
            name = teacher.module_name(layer, module)
            if name in deltas and not takers:
                reason = f"no layer of the student is matched with layer {layer}"
                dropped.append(Dropped("delta", name, reason))
            elif name in deltas:
                for planned in _roles(teacher, name, deltas[name], module.roles, settings):
                    if planned.role not in student.roles:
                        reason = f"the student ({student.family}) has no {planned.role}"
                        dropped.append(Dropped("delta", f"{name} ({planned.role})", reason))
                        continue
                    for match in takers:
                        plan[match].append(planned)
    return {match: parts for match, parts in plan.items() if parts}, dropped


def _roles(
    teacher: Architecture,
    name: str,
    delta: CarriedDelta,
    roles: Sequence[Role],
    settings: TransportSettings,
) -> list[PlannedDelta]:
    """A physical module's delta by its logical matrices."""
    planned: list[PlannedDelta] = []
    for role, up in teacher.split(teacher.module_of(roles[0]), delta.up).items():
        is_neuron = role in ("gate", "up") and settings.neurons == "states"
        output: Space = "neurons" if is_neuron else OUTPUT_SPACES[role]
        planned.append(PlannedDelta(role, name, CarriedDelta(up, delta.down), INPUT_SPACES[role], output))
    return planned


def refuse_foreign(teacher: Architecture, deltas: Mapping[str, CarriedDelta]) -> None:
    """Refuse deltas that do not fit the teacher, or none at all.

    Args:
        teacher: the model that they should belong to.
        deltas: by full module name.

    Raises:
        ModelError: no delta, an unknown module, or another shape.
    """
    if not deltas:
        raise ModelError("expected deltas of a task adapter, got none; train the adapter on linear layers.")
    shapes = teacher.named_shapes()
    for name, delta in deltas.items():
        shape = (delta.up.shape[0], delta.down.shape[1])
        if shapes.get(name) != shape:
            raise ModelError(
                f"adapter: {name}: its delta is {shape}, the teacher ({teacher.family}) has "
                f"{shapes.get(name, 'no such module')}; give the model that the adapter was trained on as teacher."
            )
