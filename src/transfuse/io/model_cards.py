"""Model cards in the Hub's format: what a saved model or adapter is, so that its folder can be pushed as it is."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from transfuse import __version__
from transfuse.io.files import write_text
from transfuse.types import Estimate

CARD_FILE = "README.md"
SHOWN_FILES = 20
"""Files of the data that a card lists; the others are counted."""

_PACKAGES = ("torch", "transformers", "peft")
_DIGEST_CHARACTERS = 16
_MASK = "***"
_SECRET_NAME = r"(?:api[-_]?key|token|secret|password|passwd)"  # noqa: S105 - names of secrets, no secret
_SECRETS = (
    re.compile(r"\b(?:sk|pk|hf|gsk|xai|ghp|glpat)[-_][A-Za-z0-9_-]{12,}"),
    re.compile(r"(?<=\bBearer )\S+", re.IGNORECASE),
    re.compile(r"(?<=://)[^\s/@:]+:[^\s/@]+(?=@)"),
    re.compile(
        rf"(--[\w-]*{_SECRET_NAME}(?:=|\s+)|\b[\w.-]*{_SECRET_NAME}=)(?!{re.escape(_MASK)})[^\s'\"]+",
        re.IGNORECASE,
    ),
)
_SECRET_VARIABLE = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)$")
_SHORTEST_SECRET = 8


class DataFile(NamedTuple):
    """A file that a result was made of, or measured on."""

    name: str
    """Without its place on the machine."""
    use: str
    """What it was for, in a word or two."""
    n_rows: int | None = None
    """None where it has no rows."""
    sha256: str | None = None


class CardRow(NamedTuple):
    """One row of the results: this model, or something beside it."""

    name: str
    metrics: Mapping[str, Estimate]


class CardDifference(NamedTuple):
    """This model held against another row on the same items."""

    metric: str
    against: str
    difference: Estimate
    verdict: str


@dataclass(frozen=True)
class CardContent:
    """Everything that a card says."""

    title: str
    kind: Literal["adapter", "model"]
    base: str
    """What it was made from, in words."""
    method: str
    """How, in words."""
    route: str
    """Of the recipe: `inject`, `transfer`, `fuse`, `merge`."""
    load: str
    """Python that loads it."""
    base_models: Sequence[str] = ()
    """Hub ids; none where the base is known on this machine alone."""
    relation: Literal["adapter", "finetune", "merge"] | None = None
    """To the base models, as the Hub calls it."""
    arxiv: Sequence[str] = ()
    """Numbers of the papers."""
    data: Sequence[DataFile] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    row: str = ""
    """Which of `rows` is this model."""
    rows: Sequence[CardRow] = ()
    differences: Sequence[CardDifference] = ()
    unmeasured: str = "Nothing was measured."
    """What stands where there are no rows."""
    limits: Sequence[str] = ()
    """What the figures do not say."""
    command: str = ""
    licence: str | None = None
    """As the Hub writes it, where it is known."""
    licence_note: str = ""


def write_card(folder: Path, content: CardContent) -> None:
    """Write a folder's card in the place of any other; one that says the same already is left untouched.

    Args:
        folder: of a saved model or adapter.
        content: what to say.

    Raises:
        RunFolderError: the folder cannot be written, or the disk is full.
    """
    text = card_text(content)
    path = folder / CARD_FILE
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def card_text(content: CardContent) -> str:
    """A card as a file holds it: YAML for the Hub, then Markdown for people.

    Args:
        content: what to say.

    Returns:
        The text; nothing in it looks like a key.
    """
    parts = [
        f"# {_line(content.title)}",
        f"## What it was made from\n\n{content.base}",
        f"## Method\n\n{_method(content)}",
        f"## Data\n\n{_data_table(content.data)}",
        f"## Settings\n\n{_settings_table(content.settings)}",
        f"## Results\n\n{_results(content)}",
        "## What the figures do not say\n\n" + "\n".join(f"- {limit}" for limit in content.limits),
        f"## How it was made\n\n{_origin(content)}",
        f"## How to load it\n\n```python\n{content.load.strip()}\n```",
        f"## Licence\n\n{content.licence_note}",
    ]
    body = without_secrets("\n\n".join(parts))
    return str(ModelCard(f"---\n{_metadata(content).to_yaml()}\n---\n\n{body}\n"))


def without_secrets(text: str) -> str:
    """The text with everything masked that looks like a key, or is one of this process's environment."""
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.search(name.upper()) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, _MASK)
    for pattern in _SECRETS:
        text = pattern.sub(lambda found: (found[1] if found.re.groups else "") + _MASK, text)
    return text


def _metadata(content: CardContent) -> ModelCardData:
    own = next((row for row in content.rows if row.name == content.row), None)
    results = [
        _eval_result(metric, estimate)
        for metric, estimate in (own.metrics if own else {}).items()
        if estimate.value is not None
    ]
    tuned = "lora" if content.kind == "adapter" else "full-model"
    return ModelCardData(
        base_model=list(content.base_models) or None,
        base_model_relation=content.relation if content.base_models else None,
        library_name="peft" if content.kind == "adapter" else "transformers",
        license=content.licence,
        pipeline_tag="text-generation",
        tags=["transfuse", content.route, tuned, *(f"arxiv:{number}" for number in content.arxiv)],
        model_name=_line(content.title) if results else None,
        eval_results=results or None,
    )


def _eval_result(metric: str, estimate: Estimate) -> EvalResult:
    name, _, on = metric.partition("/")
    bounds = (
        f"95 %: {_number(estimate.low)} to {_number(estimate.high)}, " if estimate.low is not None else ""
    )
    return EvalResult(
        task_type="text-generation",
        dataset_type="local",
        dataset_name=on or "eval items of the run",
        dataset_config=on or "eval",  # the Hub tells results of one data set's type apart by it
        metric_type=name,
        metric_value=round(float(estimate.value or 0.0), 6),
        metric_name=f"{metric} ({bounds}n = {estimate.n})",
    )


def _method(content: CardContent) -> str:
    papers = ", ".join(f"[arXiv:{number}](https://arxiv.org/abs/{number})" for number in content.arxiv)
    return f"{content.method}\n\nPapers: {papers}." if papers else content.method


def _data_table(files: Sequence[DataFile]) -> str:
    if not files:
        return "No data of its own: weights alone."
    lines = ["| file | used for | rows | SHA-256 begins |", "| --- | --- | ---: | --- |"]
    for each in files[:SHOWN_FILES]:
        digest = f"`{each.sha256[:_DIGEST_CHARACTERS]}`" if each.sha256 else "–"
        n_rows = f"{each.n_rows:,}" if each.n_rows is not None else "–"
        lines.append(f"| {_cell(each.name)} | {_cell(each.use)} | {n_rows} | {digest} |")
    n_left = len(files) - SHOWN_FILES
    return "\n".join(lines) + (f"\n\nand {n_left} more files." if n_left > 0 else "")


def _settings_table(settings: Mapping[str, Any]) -> str:
    if not settings:
        return "None."
    rows = [f"| {_cell(name)} | {_cell(_setting(value))} |" for name, value in settings.items()]
    return "\n".join(["| setting | value |", "| --- | --- |", *rows])


def _results(content: CardContent) -> str:
    rows = [row for row in content.rows if row.metrics]
    if not rows:
        return content.unmeasured
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.metrics))
    lines = [f"| | {' | '.join(map(_cell, metrics))} |", f"| --- |{' --- |' * len(metrics)}"]
    for row in rows:
        name = f"**{_cell(row.name)}**" if row.name == content.row else _cell(row.name)
        cells = " | ".join(_estimate(row.metrics.get(metric)) for metric in metrics)
        lines.append(f"| {name} | {cells} |")
    told = (
        f"Values with their 95 % intervals; n counts items. This {content.kind} is the row **{content.row}**."
    )
    parts = [told, "\n".join(lines)]
    if content.differences:
        parts.append(f"Differences on the same items ({content.row} minus the other):")
        head = ["| against | metric | difference | verdict |", "| --- | --- | --- | --- |"]
        parts.append(
            "\n".join(
                head
                + [
                    f"| {_cell(each.against)} | {_cell(each.metric)} | {_estimate(each.difference)} | {each.verdict} |"
                    for each in content.differences
                ]
            )
        )
    return "\n\n".join(parts)


def _origin(content: CardContent) -> str:
    versions = [f"transfuse {__version__}", *(f"{name} {_version(name)}" for name in _PACKAGES)]
    made = f"```\n{content.command}\n```\n\n" if content.command else ""
    return f"{made}Versions: {', '.join(versions)}."


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "–"
    bounds = f" [{_number(estimate.low)}, {_number(estimate.high)}]" if estimate.low is not None else ""
    return f"{_number(estimate.value)}{bounds}, n = {estimate.n}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _setting(value: Any) -> str:
    """A setting as text, without places on this machine."""
    if isinstance(value, str | Path):
        return Path(value).name if Path(value).is_absolute() else str(value)
    if isinstance(value, list | tuple):
        shown = [_setting(each) for each in value[:SHOWN_FILES]]
        return ", ".join(shown) + (
            f" and {len(value) - SHOWN_FILES} more" if len(value) > SHOWN_FILES else ""
        )
    return "none" if value is None else str(value)


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
