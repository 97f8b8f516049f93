"""Paths of a recipe made absolute, wherever they stand in it, by the types of its fields."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from transfuse.types import IS_MODEL_REFERENCE

RECORDED = "recorded:"
"""Begins a reference to recorded replies, whose rest is a file."""


def absolute_paths(kind: type[BaseModel], tree: dict[str, Any], folder: Path) -> None:
    """Make paths absolute, in place; a model reference is a path only where there is such a file or folder.

    Args:
        kind: class of the settings: a `Path` is a path, a `ModelReference` perhaps one, also in groups, lists and
            mappings.
        tree: keys and values, not yet checked; what does not fit the class is left as it is.
        folder: what relative paths are relative to.
    """
    for name, field in kind.model_fields.items():
        if name in tree:
            tree[name] = _absolute(field.annotation, field.metadata, tree[name], folder)


def _absolute(annotation: Any, metadata: list[Any], value: Any, folder: Path) -> Any:
    """The value with its paths absolute; groups are changed in place."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _absolute(inner, [*metadata, *more], value, folder)
    if isinstance(value, str | Path) and annotation is Path:
        return str(folder / Path(value).expanduser())
    if isinstance(value, str) and IS_MODEL_REFERENCE in metadata:
        return _reference(value, folder)
    if isinstance(value, dict) and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        absolute_paths(annotation, value, folder)
        return value
    arguments, origin = get_args(annotation), get_origin(annotation)
    if isinstance(value, dict) and isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _absolute(arguments[1], [], each, folder) for key, each in value.items()}
    if isinstance(value, list) and origin in (list, tuple):
        return [_absolute(arguments[0], [], each, folder) for each in value]
    if not isinstance(annotation, type):  # a union: whichever of its members fits
        for member in arguments:
            value = _absolute(member, metadata, value, folder)
    return value


def _reference(value: str, folder: Path) -> str:
    lead = RECORDED if value.startswith(RECORDED) else ""
    path = folder / Path(value.removeprefix(lead)).expanduser()
    return f"{lead}{path}" if value and (lead or path.exists()) else value
