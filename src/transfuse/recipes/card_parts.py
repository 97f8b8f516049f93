"""Parts of model cards that all recipes share: models as the world knows them, licences, files, rows of a report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load

from transfuse.errors import ModelError
from transfuse.generate.references import RECORDED
from transfuse.generate.settings import GeneratorSettings, endpoint_reference
from transfuse.io.files import file_sha256
from transfuse.io.listing import UNKNOWN, describe_model
from transfuse.io.model_cards import CARD_FILE, CardDifference, CardRow, DataFile
from transfuse.io.references import resolve_model
from transfuse.recipes.fuse_schema import short_name
from transfuse.train.settings import TrainSettings
from transfuse.types import Estimate

UNFINISHED = (
    "Not measured when this card was written: the run had not come to its end, when it writes "
    "its figures here."
)
ONLY_THE_DATA = (
    "They hold for the named data alone: nothing is said of other abilities, other languages, safety or bias."
)
INTERVALS = (
    "The intervals say how far the value would move with other items of the same kind, not with other data, other "
    "settings or another model."
)
LOCAL_BASE = (
    "`adapter_config.json` names the base by its place on the machine where this was trained: before the folder is "
    "published, write there where others find the base."
)

Figures = Mapping[str, Any]
"""A run's `report.json`."""


def named(reference: str) -> str:
    """A model as anybody can know it, without its place on this machine."""
    source = resolve_model(reference)
    if source.kind == "bundled":
        return f"`{source.hub_id}` (weights quantised to 4 bits, the bundled `{source.reference}`)"
    if source.path is not None:
        return f"`{source.path.resolve().name}` (local {'file' if source.kind == 'gguf' else 'folder'})"
    return f"`{source.hub_id}`"


def plain_name(reference: str) -> str:
    """The same for a title."""
    source = resolve_model(reference)
    return short_name(source.hub_id or str(source.path.resolve() if source.path else reference)) or "model"


def writer_name(generator: GeneratorSettings) -> str:
    """Who writes text; of an endpoint the model's name alone, not where it runs."""
    place = endpoint_reference(generator.reference)
    if place is not None:
        return f"`{place.model}`" if place.model else "a model behind an endpoint"
    return "recorded replies" if generator.reference.startswith(RECORDED) else named(generator.reference)


def hub_ids(references: Sequence[str]) -> tuple[str, ...]:
    """Hub ids of the models, each once; none at all where one of them has no id."""
    ids = [resolve_model(each).hub_id for each in references]
    known = [each for each in ids if each is not None]
    return tuple(dict.fromkeys(known)) if len(known) == len(ids) else ()


def licence_of(references: Sequence[str], adapters: Sequence[Path] = ()) -> tuple[str | None, str]:
    """The licence of what was made from models, stated only where that of each is known and all agree.

    Args:
        references: of the models.
        adapters: PEFT folders that it was made from as well; one without a card says nothing and is passed over.

    Returns:
        The Hub's name of the licence or None, and a note.
    """
    known = {named(each): _known_licence(each) for each in dict.fromkeys(references)}
    known |= {f"`{each.name}`": licence for each in adapters if (licence := _stated(each)) is not None}
    told = ", ".join(f"{name}: {licence or 'not known here'}" for name, licence in known.items())
    licences = set(known.values())
    if len(licences) == 1 and None not in licences:
        return licences.pop(), f"That of what it was made from ({told})."
    return (
        None,
        f"Not stated; whoever publishes this is bound by the licences of what it was made from ({told}).",
    )


def taught_by(teacher: str | None, student: str) -> tuple[str, str | None, str]:
    """The teacher in words, and the licence of what was made from it and its student, with a note.

    Args:
        teacher: a reference, perhaps of an earlier run, so that nothing lies there any more; None where nobody knows.
        student: a reference.

    Returns:
        Name, licence and note; no licence where the teacher is not to be found.
    """
    try:
        if teacher is not None:
            return named(teacher), *licence_of([student, teacher])
    except ModelError:
        pass
    name = f"`{Path(teacher).name}`" if teacher else "not named in this run"
    makers = f"{named(student)} and of the teacher ({name})"
    return name, None, f"Not stated; whoever publishes this is bound by the licences of {makers}."


def data_files(paths: Sequence[tuple[str, Path | None]]) -> list[DataFile]:
    """Files with what they were used for, their rows and digests.

    Args:
        paths: use and file (or folder of files); None stands for a text that comes with the package.

    Returns:
        One each, in order; those of a folder by their path in it.
    """
    found: list[DataFile] = []
    for use, path in paths:
        if path is None:
            found.append(DataFile("generic text of the package", use))
        elif path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name[0] != "."]
            found += [_data_file(file, str(file.relative_to(path)), use) for file in files]
        elif path.is_file():
            found.append(_data_file(path, path.name, use))
    return found


def given(*paths: tuple[str, Path | None]) -> list[tuple[str, Path | None]]:
    """Those of the files that were named."""
    return [(use, path) for use, path in paths if path is not None]


def base_of(reference: str, kind: str) -> str:
    """What a result was made from, in words: `kind` is `adapter` or `model`."""
    if kind == "model":
        return f"{named(reference)}, all of whose weights were trained."
    advice = "" if hub_ids([reference]) else f" {LOCAL_BASE}"
    return f"A LoRA adapter for {named(reference)}, whose own weights are untouched.{advice}"


def command_of(report: Figures | None) -> str:
    """The command as typed; none before there is a report."""
    return str(report["command"]) if report else ""


def training_settings(train: TrainSettings, learning_rate: float | None = None) -> dict[str, Any]:
    """Settings of the training loop that a result depends on, flat."""
    told = train.model_dump(mode="json", exclude={"checkpoint_s", "report_to"})
    lora = told.pop("lora")
    told["learning_rate"] = learning_rate or train.peak_learning_rate
    return {**told, **(lora if train.method == "lora" else {})}


def prefixed(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A group of settings under its dotted names."""
    return {f"{name}.{key}": value for key, value in settings.items()}


def card_rows(report: Figures | None) -> list[CardRow]:
    """The rows of a report; none where there is no report yet."""
    rows = report["rows"] if report else []
    return [
        CardRow(row["name"], {metric: _estimate(value) for metric, value in row["metrics"].items()})
        for row in rows
    ]


def card_differences(report: Figures | None, row: str) -> list[CardDifference]:
    """What a report's comparisons say of a row."""
    return [
        CardDifference(each["metric"], each["against"], _estimate(each["difference"]), each["verdict"])
        for each in (report.get("comparisons", []) if report else [])
        if each["method"] == row
    ]


def _estimate(value: Mapping[str, Any]) -> Estimate:
    return Estimate(value["value"], value["low"], value["high"], value["n"])


def _known_licence(reference: str) -> str | None:
    try:
        licence = describe_model(reference).licence
    except ModelError:
        return None
    # `other` names a licence of its own, whose text is not here.
    return None if licence in (UNKNOWN, "other") else licence.lower()


def _stated(folder: Path) -> str | None:
    """The licence in a folder's card."""
    card = folder / CARD_FILE
    licence = (metadata_load(card) or {}).get("license") if card.is_file() else None
    return licence.lower() if isinstance(licence, str) else None


def _data_file(path: Path, name: str, use: str) -> DataFile:
    n_rows = None
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            n_rows = sum(bool(line.strip()) for line in file)
    return DataFile(name, use, n_rows, file_sha256(path))
