"""Facts and Q&A files: read, checked, every fault named with its file and line."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from transfuse.errors import DataError
from transfuse.io.jsonl import JsonLine, read_jsonl
from transfuse.text.wording import question_key
from transfuse.types import Fact, PairKind, QAPair

N_SHOWN = 5
"""How many offenders an error message lists."""

_FACT_FIELDS = {"id", "section", "fact", "span", "paraphrases"}
_PAIR_FIELDS = {"basis", "fact", "section", "split", "question", "answer", "aliases", "kind", "also"}
_SOURCE_FIELDS: Mapping[str, str] = {"fact": "fact", "token": "section"}
"""Basis to the field that names a pair's source."""


def load_facts(path: Path) -> list[Fact]:
    """Facts of a JSONL file with rows `{"id", "section", "fact"}`, perhaps `"span"` and `"paraphrases"`.

    Args:
        path: the file.

    Returns:
        The facts in file order; at least one.

    Raises:
        DataError: broken line, missing or unknown field, id used twice, no fact at all.
    """
    facts: list[Fact] = []
    seen: dict[str, str] = {}
    for line in read_jsonl(path):
        _refuse_unknown(line, _FACT_FIELDS)
        fact = Fact(
            *(_string(line, name) for name in ("id", "section", "fact")),
            span=_span(line),
            paraphrases=_strings(line, "paraphrases"),
        )
        if fact.id in seen:
            raise DataError(
                f"{line.where}: fact id {fact.id!r} was already used in {seen[fact.id]}; ids are unique."
            )
        seen[fact.id] = line.where
        facts.append(fact)
    if not facts:
        raise DataError(
            f'{path}: expected facts, one {{"id", "section", "fact"}} a line; the file holds none.'
        )
    return facts


def load_pairs(path: Path, facts: Sequence[Fact] | None) -> list[QAPair]:
    """Question-answer pairs of a JSONL file, in the format of `docs/formats.md`.

    Args:
        path: the file.
        facts: what the pairs of basis `fact` refer to; None takes their ids as they stand.

    Returns:
        The pairs in file order; at least one.

    Raises:
        DataError: broken line, missing or unknown field, unknown fact id, no pair at all.
    """
    known = {fact.id for fact in facts or ()}
    pairs: list[QAPair] = []
    strangers: dict[str, str] = {}
    for line in read_jsonl(path):
        _refuse_unknown(line, _PAIR_FIELDS)
        pair = _pair(line)
        named = (pair.source, *pair.also) if pair.basis == "fact" else pair.also
        for name in named:
            if facts is not None and name not in known:
                strangers.setdefault(name, line.where)
        pairs.append(pair)
    if strangers:
        listed = ", ".join(f"{name!r} ({where})" for name, where in list(strangers.items())[:N_SHOWN])
        raise DataError(
            f"{path}: {len(strangers)} fact ids are not in the facts file: {listed}; "
            f"known are {sorted(known)[0]!r} to {sorted(known)[-1]!r}. Add the facts or delete the rows."
        )
    if not pairs:
        raise DataError(f"{path}: expected question-answer pairs, one a line; the file holds none.")
    return pairs


def fact_row(fact: Fact) -> dict[str, Any]:
    """The fact as a row of a facts file; optional fields only where they hold something."""
    row: dict[str, Any] = {"id": fact.id, "section": fact.section, "fact": fact.fact}
    if fact.span is not None:
        row["span"] = list(fact.span)
    if fact.paraphrases:
        row["paraphrases"] = list(fact.paraphrases)
    return row


def pair_row(pair: QAPair) -> dict[str, Any]:
    """The pair as a row of a Q&A file; its id is the line that it will stand in, and not written."""
    row: dict[str, Any] = {
        "basis": pair.basis,
        _SOURCE_FIELDS[pair.basis]: pair.source,
        "split": pair.split,
        "question": pair.question,
        "answer": pair.answer,
    }
    if pair.aliases:
        row["aliases"] = list(pair.aliases)
    if pair.kind != "direct":
        row["kind"] = pair.kind
    if pair.also:
        row["also"] = list(pair.also)
    return row


def refuse_leaks(pairs: Sequence[QAPair], where: str) -> None:
    """Raise DataError where a question stands in both splits: it would measure memory of the wording."""
    trained = {question_key(pair.question): pair for pair in pairs if pair.split == "train"}
    leaks = [
        (pair, trained[key])
        for pair in pairs
        if pair.split == "eval" and (key := question_key(pair.question)) in trained
    ]
    if leaks:
        shown = "".join(
            f"\n  {evaluated.id} and {train.id}: {evaluated.question!r}"
            for evaluated, train in leaks[:N_SHOWN]
        )
        more = f"\n  and {len(leaks) - N_SHOWN} more" if len(leaks) > N_SHOWN else ""
        raise DataError(
            f"{where}: {len(leaks)} eval questions are training questions as well; reword or delete one of "
            f"each pair (line numbers after q):{shown}{more}"
        )


def repeated_questions(pairs: Sequence[QAPair]) -> list[QAPair]:
    """Training pairs whose question, of the same fact or section, stood earlier in the file."""
    counts: Counter[tuple[str, str]] = Counter()
    repeats: list[QAPair] = []
    for pair in pairs:
        key = (pair.source, question_key(pair.question))
        counts[key] += 1
        if counts[key] > 1:
            repeats.append(pair)
    return repeats


def _pair(line: JsonLine) -> QAPair:
    basis = _choice(line, "basis", ("fact", "token"))
    split = _choice(line, "split", ("train", "eval"))
    kind = _choice(line, "kind", get_args(PairKind)) if "kind" in line.value else "direct"
    return QAPair(
        id=f"q{line.number}",
        basis=basis,  # type: ignore[arg-type] - one of the two by the check above
        source=_string(line, _SOURCE_FIELDS[basis]),
        split=split,  # type: ignore[arg-type]
        question=_string(line, "question"),
        answer=_string(line, "answer"),
        aliases=_strings(line, "aliases"),
        kind=kind,  # type: ignore[arg-type]
        also=_strings(line, "also"),
    )


def _strings(line: JsonLine, name: str) -> tuple[str, ...]:
    value = line.value.get(name, [])
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise DataError(f"{line.where}: {name!r}: expected a list of strings, got {value!r}; mend the line.")
    return tuple(value)


def _string(line: JsonLine, name: str) -> str:
    value = line.value.get(name)
    if not isinstance(value, str) or not value.strip():
        came = "nothing" if name not in line.value else repr(value)
        raise DataError(
            f"{line.where}: {name!r}: expected a text that is not empty, got {came}; mend the line."
        )
    return value.strip()


def _choice(line: JsonLine, name: str, choices: Sequence[str]) -> str:
    value = _string(line, name)
    if value not in choices:
        raise DataError(
            f"{line.where}: {name!r}: expected one of {list(choices)}, got {value!r}; mend the line."
        )
    return value


def _span(line: JsonLine) -> tuple[int, int] | None:
    span: Any = line.value.get("span")
    if span is None:
        return None
    if not (isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)):
        raise DataError(
            f"{line.where}: 'span': expected [start, end] as two integers, got {span!r}; mend the line."
        )
    return span[0], span[1]


def _refuse_unknown(line: JsonLine, known: set[str]) -> None:
    unknown = sorted(set(line.value) - known)
    if unknown:
        raise DataError(
            f"{line.where}: unknown fields {unknown}; expected only {sorted(known)}. Correct the line."
        )
