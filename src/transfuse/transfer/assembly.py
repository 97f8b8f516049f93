"""From extracted layers to the student's start: chosen layers in order become the student's."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from transfuse.io.files import atomic_file
from transfuse.tensors.sub_matrices import Cut
from transfuse.train.starting_factors import Factors
from transfuse.transfer.architecture import Architecture, Role
from transfuse.transfer.coupled import coupled_cuts
from transfuse.transfer.extraction import (
    VOCABULARY_ROLES,
    CutPart,
    Extracted,
    LayerExtraction,
    Variant,
    Wanted,
    cut_layer,
    layer_generator,
    role_matrices,
    roles_here,
    student_modules,
)
from transfuse.transfer.settings import ExtractionSettings

ReadLayer = Callable[[int | None], Mapping[str, Tensor]]
"""Weights of a layer by the teacher's module names; None for embedding and head."""


def layer_scores(extractions: Sequence[LayerExtraction]) -> list[float]:
    """Summed sensitivity of each layer's matrices, in the order given."""
    return [sum(each.scores.values()) for each in extractions]


def starting_factors(
    chosen: Sequence[LayerExtraction],
    outside: LayerExtraction | None,
    variant: str,
    student: Architecture,
    settings: ExtractionSettings,
) -> dict[str, Factors]:
    """The factors that the student starts from, by its full module names.

    Args:
        chosen: one extraction for each of the student's layers, in its order.
        outside: embedding and head, where they are extracted.
        variant: which way of cutting.
        student: its architecture.
        settings: where the singular values go, and the strength.

    Returns:
        Factors of every matrix that has a block.
    """
    found: dict[str, Factors] = {}
    for number, extraction in enumerate(chosen):
        for name, extracted in extraction.variants[variant].modules.items():
            found[f"{student.layers}.{number}.{name}"] = _factors(extracted, settings)
    if outside is not None and variant in outside.variants:
        for name, extracted in outside.variants[variant].modules.items():
            found[name] = _factors(extracted, settings)
    return found


def _factors(extracted: Extracted, settings: ExtractionSettings) -> Factors:
    left, values, right, _ = extracted.factors
    if settings.factors == "paper":
        return Factors(left * values * settings.strength, right)
    half = (values * settings.strength).sqrt()
    return Factors(left * half, half[:, None] * right)


def coupled_layers(
    chosen: Sequence[LayerExtraction],
    outside: LayerExtraction | None,
    wanted: Wanted,
    read_layer: ReadLayer,
) -> tuple[list[LayerExtraction], LayerExtraction | None]:
    """Cut chosen layers on indices that fit one another through the whole model; their weights are read again.

    Args:
        chosen: extractions with marginals, one for each of the student's layers.
        outside: embedding and head.
        wanted: what to extract.
        read_layer: gives a layer's weights.

    Returns:
        The same extractions with the variant `method` added.
    """
    everything = coupled_cuts(
        wanted.teacher,
        wanted.student,
        [each.marginals or {} for each in chosen],
        (outside.marginals or {}) if outside else {},
    )
    done = [
        _cut_again(extraction, cuts, wanted, read_layer)
        for extraction, cuts in zip(chosen, everything.layers, strict=True)
    ]
    if outside is None:
        return done, None
    return done, _cut_again(outside, everything.outside, wanted, read_layer)


def _cut_again(
    extraction: LayerExtraction, cuts: Mapping[Role, Any], wanted: Wanted, read_layer: ReadLayer
) -> LayerExtraction:
    weights = role_matrices(wanted.teacher, read_layer(extraction.layer))
    parts: dict[Role, CutPart] = {}
    for role in roles_here(extraction.layer, weights, wanted):
        rows, columns = cuts[role]
        if role in VOCABULARY_ROLES and wanted.token_rows is not None:
            rows = wanted.token_rows
        parts[role] = CutPart(role, rows, columns, float("nan"))
    generator = layer_generator(wanted.seed, extraction.layer, "method")
    variant = cut_layer(weights, parts, extraction.layer, wanted, generator)
    return extraction._replace(variants={**extraction.variants, "method": variant})


def block_records(
    chosen: Sequence[LayerExtraction], outside: LayerExtraction | None, wanted: Wanted
) -> list[dict[str, Any]]:
    """What `report.json` says of every block.

    Args:
        chosen: one extraction for each of the student's layers.
        outside: embedding and head.
        wanted: what was extracted.

    Returns:
        One record for each of the student's matrices and role.
    """
    records: list[dict[str, Any]] = []
    for number, extraction in enumerate(chosen):
        where = f"{wanted.student.layers}.{number}.", f"{wanted.teacher.layers}.{extraction.layer}."
        records += _records(extraction, extraction.variants["method"], where, wanted)
    if outside is not None and "method" in outside.variants:
        records += _records(outside, outside.variants["method"], ("", ""), wanted)
    return records


def _records(
    extraction: LayerExtraction, variant: Variant, where: tuple[str, str], wanted: Wanted
) -> list[dict[str, Any]]:
    records = []
    for module in student_modules(extraction.layer, wanted.student):
        for role in module.roles:
            part = variant.parts.get(role)
            if part is None:
                continue
            extracted = variant.modules.get(module.name)
            source = "embedding" if role == "head" and role not in extraction.scores else role
            records.append(
                {
                    "student": where[0] + module.name,
                    "role": role,
                    "teacher": where[1] + wanted.teacher.module_of(source).name,
                    "teacher_shape": list(wanted.teacher.shape(source)),
                    "student_shape": list(wanted.student.shape(role)),
                    "first_row": _first(part.rows),
                    "first_column": _first(part.columns),
                    "score_share": None if part.score_share != part.score_share else part.score_share,
                    "energy": extracted.energy if extracted is not None else None,
                }
            )
    return records


def save_cuts(chosen: Sequence[LayerExtraction], outside: LayerExtraction, path: Path) -> None:
    """Write where the student's matrices stood in the teacher's, one entry for each layer of the student."""
    tensors: dict[str, Tensor] = {}
    for number, extraction in [*enumerate(chosen), (-1, outside)]:
        for role, part in extraction.variants["method"].parts.items() if extraction.variants else ():
            tensors[f"{number}|rows|{role}"] = part.rows.clone()
            tensors[f"{number}|columns|{role}"] = part.columns.clone()
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"n_layers": str(len(chosen))})


def load_cuts(path: Path) -> tuple[list[dict[Role, Cut]], dict[Role, Cut]]:
    """Cuts of each of the student's layers, and of embedding and head."""
    with safe_open(path, framework="pt") as opened:
        n_layers = int((opened.metadata() or {})["n_layers"])
        cuts: dict[int, dict[Role, Cut]] = {number: {} for number in range(-1, n_layers)}
        for name in opened.keys():  # noqa: SIM118 - not a dict
            number, side, role = name.split("|")
            if side == "rows":
                rows, columns = (opened.get_tensor(f"{number}|{part}|{role}") for part in ("rows", "columns"))
                cuts[int(number)][role] = Cut(rows, columns)  # type: ignore[index]
    return [cuts[number] for number in range(n_layers)], cuts[-1]


def _first(indices: Tensor) -> int | None:
    """Where a contiguous range begins; None where the indices have gaps."""
    first = int(indices[0])
    is_range = first >= 0 and bool((indices[1:] - indices[:-1] == 1).all())
    return first if is_range else None
