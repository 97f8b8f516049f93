"""What is kept of a teacher's layer: blocks of the student's shape, as low-rank factors, one file a layer.

A layer is extracted while its weights and scores are at hand, before anybody knows whether it will be chosen; what is
kept is so small that all layers can be.

Source: Zhong et al. 2024, arXiv:2310.11451, section 3. Differs: fused matrices (query, key and value in one) are cut
role by role, and put together in the student's layout; embeddings keep the student's vocabulary, row by row.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transfuse.tensors.low_rank import LowRank, truncated_svd
from transfuse.tensors.sub_matrices import REDUCTIONS, Cut, cut
from transfuse.transfer.architecture import Architecture, Module, Role
from transfuse.transfer.coupled import Marginals, marginals_of
from transfuse.transfer.sensitivity import LayerScores
from transfuse.transfer.settings import Reduce

VOCABULARY_ROLES: tuple[Role, ...] = ("embedding", "head")


class CutPart(NamedTuple):
    """Where one of the student's matrices stood in the teacher's."""

    role: Role
    rows: Int[Tensor, " rows"]
    """The teacher's rows, in the student's order; -1 where the teacher has none (tokens it does not know)."""
    columns: Int[Tensor, " columns"]
    score_share: float
    """Share of the teacher matrix's sensitivity that stands inside."""


class Extracted(NamedTuple):
    """Low-rank factors of one of the student's matrices."""

    factors: LowRank
    energy: float
    """Share of the block's squared norm that the low rank keeps, in 0..1."""


class Variant(NamedTuple):
    """One way of cutting a layer."""

    parts: dict[Role, CutPart]
    modules: dict[str, Extracted]
    """By the student's module name inside a layer (of embedding and head, the full name)."""


class LayerExtraction(NamedTuple):
    """What is kept of one layer."""

    layer: int | None
    """None for embedding and head."""
    scores: dict[Role, float]
    """Summed sensitivity of each of the teacher's matrices."""
    variants: dict[str, Variant]
    marginals: Marginals | None = None
    """Kept where cuts are chosen for all layers together."""


@dataclass(frozen=True)
class Wanted:
    """What is to be extracted; the same for every layer."""

    teacher: Architecture
    student: Architecture
    roles: frozenset[Role]
    reduce: Reduce
    rank: int
    token_rows: Int[Tensor, " student_vocab"] | None
    """The teacher's row of each of the student's tokens, -1 where there is none; None leaves embeddings out."""
    seed: int
    with_random_block: bool = False
    """Also cut a block at a drawn place: the control."""
    has_factors: bool = True
    """False keeps the places of the blocks only, for a student that takes them at full rank."""


def extract_layer(given: LayerScores, wanted: Wanted) -> LayerExtraction:
    """Blocks of the student's shape out of one layer, as low-rank factors.

    Args:
        given: weights and scores by the teacher's module names.
        wanted: what to extract.

    Returns:
        Scores of all matrices, and the blocks of the wanted roles; of `coupled` the marginals only, since its blocks
        are chosen for all layers together.
    """
    weights = role_matrices(wanted.teacher, given.weights)
    scores = role_matrices(wanted.teacher, given.scores)
    sums: dict[Role, float] = {
        role: float(matrix.sum(dtype=torch.float64)) for role, matrix in scores.items()
    }
    reductions: dict[str, str] = {} if wanted.reduce == "coupled" else {"method": wanted.reduce}
    if wanted.with_random_block:
        reductions["random-block"] = "random-block"
    variants: dict[str, Variant] = {}
    for name, reduction in reductions.items():
        generator = layer_generator(wanted.seed, given.layer, name)
        parts: dict[Role, CutPart] = {
            role: _chosen(scores[_source(role, scores)], role, reduction, wanted, generator)
            for role in roles_here(given.layer, scores, wanted)
        }
        variants[name] = cut_layer(weights, parts, given.layer, wanted, generator)
    marginals = marginals_of(wanted.teacher, scores) if wanted.reduce == "coupled" else None
    return LayerExtraction(given.layer, sums, variants, marginals)


def cut_layer(
    weights: Mapping[Role, Float[Tensor, "rows columns"]],
    parts: dict[Role, CutPart],
    layer: int | None,
    wanted: Wanted,
    generator: torch.Generator,
) -> Variant:
    """Low-rank factors of the student's matrices, each put together from its roles' blocks.

    Args:
        weights: the teacher's matrices.
        parts: where the blocks stand.
        layer: which of the teacher's layers; None for embedding and head.
        wanted: what to extract.
        generator: of the randomised decomposition.

    Returns:
        One entry for every module of the student that has a block; roles without one are zeros in a fused matrix.
    """
    modules: dict[str, Extracted] = {}
    for module in student_modules(layer, wanted.student) if wanted.has_factors else ():
        here: list[Role] = [role for role in module.roles if role in parts]
        if not here:
            continue
        blocks: dict[Role, Tensor] = {
            role: _block(weights[_source(role, weights)], parts[role]) for role in here
        }
        device = blocks[here[0]].device
        for role in module.roles:
            blocks.setdefault(role, torch.zeros(wanted.student.shape(role), device=device))
        matrix = wanted.student.join(module, blocks) if len(blocks) > 1 else blocks[module.roles[0]]
        modules[module.name] = _factored(matrix, wanted.rank, generator)
    return Variant(parts, modules)


def roles_here(layer: int | None, present: Collection[Role], wanted: Wanted) -> list[Role]:
    """The wanted roles that a layer of the teacher has, or embedding and head outside the layers."""
    roles = [role for module in student_modules(layer, wanted.student) for role in module.roles]
    return [role for role in roles if role in wanted.roles and _source(role, present) in present]


def student_modules(layer: int | None, student: Architecture) -> tuple[Module, ...]:
    """The student's modules inside a layer, or outside of them."""
    if layer is not None:
        return student.modules
    return (student.embedding,) if student.is_tied else (student.embedding, student.head)


def role_matrices(architecture: Architecture, by_module: Mapping[str, Tensor]) -> dict[Role, Tensor]:
    """A layer's matrices by role, fused ones taken apart."""
    known = {
        module.name: module for module in (*architecture.modules, architecture.embedding, architecture.head)
    }
    return {
        role: part
        for name, matrix in by_module.items()
        if name in known
        for role, part in architecture.split(known[name], matrix).items()
    }


def layer_generator(seed: int, layer: int | None, purpose: str) -> torch.Generator:
    """Draws that depend on the layer and what they are for, not on the order of work."""
    number = sum(purpose.encode()) * 1009 + (0 if layer is None else layer + 1)
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


def _source(role: Role, present: Collection[Role]) -> Role:
    """Where a role's weights are: of a teacher whose embeddings are tied, both uses are one matrix."""
    return "embedding" if role == "head" and "head" not in present else role


def _chosen(
    scores: Float[Tensor, "rows columns"],
    role: Role,
    reduction: str,
    wanted: Wanted,
    generator: torch.Generator,
) -> CutPart:
    n_rows, n_columns = wanted.student.shape(role)
    total = float(scores.sum(dtype=torch.float64))
    reduce = REDUCTIONS[reduction]  # type: ignore[index] - also the control's, which no recipe names
    if role in VOCABULARY_ROLES:
        assert wanted.token_rows is not None  # noqa: S101 - the role is wanted only where rows are known
        rows = wanted.token_rows
        column_sums = scores[rows[rows >= 0]].sum(0, dtype=torch.float64)
        columns = reduce(column_sums[None].float(), 1, n_columns, generator).columns
        return CutPart(role, rows, columns, _share(float(column_sums[columns].sum()), total))
    rows, columns = reduce(scores, n_rows, n_columns, generator)
    inside = float(cut(scores, Cut(rows, columns)).sum(dtype=torch.float64))
    return CutPart(role, rows, columns, _share(inside, total))


def _share(inside: float, total: float) -> float:
    return inside / total if total > 0 else 0.0


def _block(
    weight: Float[Tensor, "rows columns"], part: CutPart
) -> Float[Tensor, "student_rows student_columns"]:
    known = part.rows >= 0
    if bool(known.all()):
        return cut(weight, Cut(part.rows, part.columns)).float()
    block = torch.zeros(len(part.rows), len(part.columns), device=weight.device)
    block[known] = cut(weight, Cut(part.rows[known], part.columns)).float()
    return block


def _factored(matrix: Float[Tensor, "rows columns"], rank: int, generator: torch.Generator) -> Extracted:
    found = truncated_svd(matrix, min(rank, *matrix.shape), generator=generator)
    kept = float(found.values.double().square().sum())
    whole = kept + found.error**2
    return Extracted(found, kept / whole if whole > 0 else 0.0)
