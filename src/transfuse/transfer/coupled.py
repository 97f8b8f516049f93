"""One choice of indices for the whole model, so that the parts cut out of it still fit one another.

Chosen once for the model: the residual stream's indices. Chosen in each layer: whole groups of key and value heads
with their query heads, dimensions of the heads (of those that are rotated, both halves of a pair), and neurons, the
same in gate, up and down. Each is the set of greatest summed sensitivity over all matrices that it cuts.

Since a streamed teacher's scores are gone once its layer has passed, the choice needs only their row and column sums.

What this cannot keep: a rotated pair turns with a speed that depends on its place, theta^(-2 i / rotary_dim). Where
the student's heads are narrower than the teacher's, a kept pair comes to another place, and turns with that place's
speed. Only heads of one width keep theirs.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transfuse.errors import ModelError
from transfuse.tensors.sub_matrices import Cut
from transfuse.transfer.architecture import AXES, Architecture, Axis, Role

# K key and value heads (groups), Q query heads a group, D dimensions of a head; lower case: those that are kept

N_CELLS_AT_ONCE = 1 << 22


class RoleSums(NamedTuple):
    """Summed scores of one matrix."""

    rows: Float[Tensor, " rows"]
    columns: Float[Tensor, " columns"]


Marginals = dict[Role, RoleSums]
"""Of one layer, or of embedding and head."""


class Coupling(NamedTuple):
    """Cuts that fit one another."""

    residual: Int[Tensor, " hidden"]
    """The residual stream's indices, ascending; the same everywhere."""
    layers: list[dict[Role, Cut]]
    """For each of the student's layers. Rows of query, key and value (columns of output) follow the student's heads:
    head by head ascending, within a head the first halves of its pairs, their second halves, the dimensions that
    are not rotated; each ascending."""
    outside: dict[Role, Cut]
    """Embedding and head: all of the teacher's rows, on the residual stream's indices."""


def marginals_of(
    architecture: Architecture, role_scores: Mapping[Role, Float[Tensor, "rows columns"]]
) -> Marginals:
    """Row and column sums of a layer's scores, in float64.

    Args:
        architecture: of the model that was scored.
        role_scores: scores of logical matrices.

    Returns:
        The sums of each.

    Raises:
        ModelError: scores are not of the architecture's shape.
    """
    sums: Marginals = {}
    for role, scores in role_scores.items():
        if tuple(scores.shape) != architecture.shape(role):
            raise ModelError(
                f"{role}: expected scores of shape {architecture.shape(role)} ({architecture.family}), "
                f"got {tuple(scores.shape)}."
            )
        rows: list[Tensor] = []
        columns = torch.zeros(scores.shape[1], dtype=torch.float64, device=scores.device)
        for some in scores.split(max(1, N_CELLS_AT_ONCE // scores.shape[1])):
            wide = some.double()
            rows.append(wide.sum(1))
            columns += wide.sum(0)
        sums[role] = RoleSums(torch.cat(rows), columns)
    return sums


def coupled_cuts(
    teacher: Architecture,
    student: Architecture,
    layers: Sequence[Mapping[Role, RoleSums]],
    outside: Mapping[Role, RoleSums],
) -> Coupling:
    """Choose indices for all chosen layers, embedding and head together.

    Args:
        teacher: gives the blocks.
        student: takes them.
        layers: summed scores of the chosen teacher layers, one for each of the student's, in its order; a role that
            is missing counts nothing.
        outside: summed scores of embedding and head, where they count.

    Returns:
        A cut for every role that both models have; of heads and neurons those of the greatest sums, of equal sums
        the lower.

    Raises:
        ModelError: the student's heads, neurons or residual stream are not contained in the teacher's.
    """
    refuse_uncoupled(teacher, student)
    residual_sums = torch.zeros(teacher.hidden, dtype=torch.float64)
    for sums in (*layers, outside):
        for role in sums:
            residual_sums += _along("residual", role, sums)
    residual = _strongest(residual_sums, student.hidden)
    whole = Cut(torch.arange(teacher.vocab), residual)
    return Coupling(
        residual,
        [_layer_cuts(teacher, student, sums, residual) for sums in layers],
        {"embedding": whole, "head": whole},
    )


def refuse_uncoupled(teacher: Architecture, student: Architecture) -> None:
    """Refuse a pair whose heads, neurons or residual streams do not contain one another.

    Args:
        teacher: gives the blocks.
        student: takes them.

    Raises:
        ModelError: lists everything of which the student has more.
    """
    counts = {
        "residual dimensions": (teacher.hidden, student.hidden),
        "neurons": (teacher.n_neurons, student.n_neurons),
        "key and value heads": (teacher.n_kv_heads, student.n_kv_heads),
        "query heads for each key and value head": (_group_size(teacher), _group_size(student)),
        "rotated dimensions of a head": (teacher.rotary_dim, student.rotary_dim),
        "unrotated dimensions of a head": (_passing(teacher), _passing(student)),
    }
    misfits = [
        f"{ours} {what}, the student {theirs}" for what, (ours, theirs) in counts.items() if ours < theirs
    ]
    if misfits:
        raise ModelError(
            f"coupled: expected a student ({student.family}) that is contained in its teacher ({teacher.family}); "
            f"the teacher has {'; '.join(misfits)}. Reduce by submatrix instead, or choose another pair of models."
        )


def _layer_cuts(
    teacher: Architecture,
    student: Architecture,
    sums: Mapping[Role, RoleSums],
    residual: Int[Tensor, " hidden"],
) -> dict[Role, Cut]:
    neuron_sums = torch.zeros(teacher.n_neurons, dtype=torch.float64)
    for role in ("gate", "up", "down"):
        if role in sums:
            neuron_sums += _along("neurons", role, sums)
    neurons = _strongest(neuron_sums, student.n_neurons)
    kept: dict[Role, Int[Tensor, " kept"]] = _heads(teacher, student, sums)
    kept |= {"gate": neurons, "up": neurons, "down": neurons}
    return {
        role: Cut(indices, residual) if AXES[role][1] == "residual" else Cut(residual, indices)
        for role, indices in kept.items()
        if role in teacher.roles and role in student.roles
    }


def _heads(
    teacher: Architecture, student: Architecture, sums: Mapping[Role, RoleSums]
) -> dict[Role, Int[Tensor, " kept"]]:
    """Kept indices along the heads of query, key, value and output.

    Query and key of a group are cut on the same pairs, value and output on the same dimensions. Within a group the
    best query heads are found first, then the dimensions that these would keep; groups are compared by what is left.
    """
    n_groups, size, n_dims = teacher.n_kv_heads, _group_size(teacher), teacher.head_dim
    sums_of = _head_sums(teacher, sums)
    query_KQD, output_KQD = (sums_of[role].view(n_groups, size, n_dims) for role in ("query", "output"))
    heads_Kq = _strongest((query_KQD + output_KQD).sum(-1), _group_size(student))
    chosen_KqD = heads_Kq[..., None].expand(-1, -1, n_dims)
    turned_KD = query_KQD.gather(1, chosen_KqD).sum(1) + sums_of["key"].view(n_groups, n_dims)
    plain_KD = output_KQD.gather(1, chosen_KqD).sum(1) + sums_of["value"].view(n_groups, n_dims)
    plain_Kd = _strongest(plain_KD, student.head_dim)
    turned_Kd = _turned_dims(turned_KD, teacher, student)
    left_K = turned_KD.gather(1, turned_Kd).sum(1) + plain_KD.gather(1, plain_Kd).sum(1)
    groups_k = _strongest(left_K, student.n_kv_heads)
    turned_kd = turned_Kd[groups_k]
    if teacher.has_head_norms:  # one norm vector serves all heads: they must keep the same dimensions
        shared_D = turned_KD[groups_k].sum(0, keepdim=True)
        turned_kd = _turned_dims(shared_D, teacher, student).expand(len(groups_k), -1)
    plain_kd = plain_Kd[groups_k]
    heads_kq = groups_k[:, None] * size + heads_Kq[groups_k]
    return {
        "query": (heads_kq[..., None] * n_dims + turned_kd[:, None]).flatten(),
        "key": (groups_k[:, None] * n_dims + turned_kd).flatten(),
        "value": (groups_k[:, None] * n_dims + plain_kd).flatten(),
        "output": (heads_kq[..., None] * n_dims + plain_kd[:, None]).flatten(),
    }


def _head_sums(teacher: Architecture, sums: Mapping[Role, RoleSums]) -> dict[Role, Float[Tensor, " along"]]:
    axes: dict[Role, Axis] = {"query": "heads", "key": "kv", "value": "kv", "output": "heads"}
    return {
        role: _along(axis, role, sums)
        if role in sums
        else torch.zeros(teacher.size(axis), dtype=torch.float64)
        for role, axis in axes.items()
    }


def _turned_dims(
    sums_KD: Float[Tensor, "K D"], teacher: Architecture, student: Architecture
) -> Int[Tensor, "K d"]:
    """Dimensions of query and key heads: pairs that turn together, then those that are not rotated."""
    half = teacher.rotary_dim // 2
    pair_sums = sums_KD[:, :half] + sums_KD[:, half : 2 * half]
    first = _strongest(pair_sums, student.rotary_dim // 2)
    passing = 2 * half + _strongest(sums_KD[:, 2 * half :], student.head_dim - 2 * (student.rotary_dim // 2))
    return torch.cat([first, first + half, passing], dim=1)


def _along(axis: Axis, role: Role, sums: Mapping[Role, RoleSums]) -> Float[Tensor, " along"]:
    return (sums[role].rows if AXES[role][0] == axis else sums[role].columns).double().cpu()


def _strongest(sums: Float[Tensor, "... all"], n: int) -> Int[Tensor, "... n"]:
    """Positions of the n greatest, ascending; of equal ones the lower."""
    return sums.sort(dim=-1, descending=True, stable=True).indices[..., :n].sort(dim=-1).values


def _group_size(architecture: Architecture) -> int:
    return architecture.n_heads // architecture.n_kv_heads


def _passing(architecture: Architecture) -> int:
    return architecture.head_dim - architecture.rotary_dim
