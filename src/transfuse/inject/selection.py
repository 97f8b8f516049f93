"""Which questions train, which measure, and which facts are kept out of training altogether."""

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from transfuse.errors import DataError
from transfuse.inject.knowledge import N_SHOWN, refuse_leaks, repeated_questions
from transfuse.text.wording import question_key
from transfuse.types import Basis, Dropped, PairKind, QAPair


@dataclass(frozen=True)
class Selection:
    """The pairs of one run."""

    train: list[QAPair]
    """Pairs to train on; none of a kept-out source."""
    evaluate: list[QAPair]
    """Eval pairs of trained sources."""
    evaluate_kept_out: list[QAPair]
    """Eval pairs of sources that training never sees."""
    kept_out: frozenset[str]
    """Fact ids (basis `fact`) or section titles (basis `token`)."""
    extra: list[QAPair]
    """Training pairs of other kinds than `direct`, none that touches a kept-out source."""
    dropped: list[Dropped]
    warnings: list[str]


def select_pairs(
    pairs: Sequence[QAPair],
    *,
    basis: Basis,
    scale: int,
    scale_of: Mapping[str, int] | None = None,
    extra_shares: Mapping[PairKind, float] | None = None,
    kept_out_share: float,
    seed: int,
    section_tokens: Mapping[str, int],
    count_tokens: Callable[[str], int],
    where: str,
) -> Selection:
    """Split the pairs of one basis into training and measurement.

    A source is a fact (basis `fact`) or a section (basis `token`). Sets nest: the pairs of a smaller scale are
    the first ones of a larger scale, and the kept-out sources do not depend on the scale.

    Args:
        pairs: all pairs of the file, both bases.
        basis: which pairs to use.
        scale: N unique questions per fact; or, for basis `token`, pairs per section until question and
            answer tokens reach N times the section's own.
        scale_of: N of single facts, where it differs from `scale`; used by basis `fact`.
        extra_shares: by kind, how many pairs of other kinds to add, as a share of the direct training pairs;
            kinds that are not named are left out.
        kept_out_share: share of the sources with eval pairs that training never sees, 0 to below 1.
        seed: of the choice of kept-out sources.
        section_tokens: tokens of each section's text, by title; used by basis `token`.
        count_tokens: tokens of a text, by the model's own tokenizer; used by basis `token`.
        where: the file, for error messages.

    Returns:
        The selection, with what was dropped and why.

    Raises:
        DataError: no training or no eval pairs, a question in both splits, an unknown section.
    """
    chosen = [pair for pair in pairs if pair.basis == basis and pair.kind == "direct"]
    evaluated = [pair for pair in chosen if pair.split == "eval"]
    _refuse_empty(chosen, evaluated, basis, where)
    refuse_leaks([pair for pair in pairs if pair.basis == basis], where)
    repeats = repeated_questions([pair for pair in chosen if pair.split == "train"])
    repeated = {pair.id for pair in repeats}
    kept_out = _kept_out(sorted({pair.source for pair in evaluated}), kept_out_share, seed)
    secret = {question_key(pair.question) for pair in chosen if pair.source in kept_out}
    by_source: dict[str, list[QAPair]] = defaultdict(list)
    same_wording: list[QAPair] = []
    for pair in chosen:
        if pair.split == "train" and pair.source not in kept_out and pair.id not in repeated:
            # A question that a kept-out source has as well would teach it.
            is_secret = question_key(pair.question) in secret
            same_wording.append(pair) if is_secret else by_source[pair.source].append(pair)
    if not by_source:
        raise DataError(
            f"{where}: no training question is left beside those of the {len(kept_out)} kept-out sources; "
            f"add some, or lower kept_out_share."
        )
    train, warnings = (
        _per_fact(by_source, {source: (scale_of or {}).get(source, scale) for source in by_source})
        if basis == "fact"
        else _per_section(by_source, scale, section_tokens, count_tokens, where)
    )
    untrained = {pair.source for pair in evaluated} - kept_out - set(by_source)
    dropped = [Dropped("pair", pair.question, "repeats an earlier training question") for pair in repeats]
    dropped += [
        Dropped("pair", pair.question, _NO_TRAINING) for pair in evaluated if pair.source in untrained
    ]
    dropped += [
        Dropped("pair", pair.question, "is also a question of a kept-out source") for pair in same_wording
    ]
    return Selection(
        train=train,
        evaluate=[pair for pair in evaluated if pair.source not in kept_out | untrained],
        evaluate_kept_out=[pair for pair in evaluated if pair.source in kept_out],
        kept_out=kept_out,
        extra=_extra(pairs, basis, extra_shares or {}, len(train), set(by_source), secret),
        dropped=dropped,
        warnings=warnings,
    )


_NO_TRAINING = "eval question of a source that has no training question"


def _refuse_empty(chosen: Sequence[QAPair], evaluated: Sequence[QAPair], basis: Basis, where: str) -> None:
    if not chosen:
        other = "token" if basis == "fact" else "fact"
        raise DataError(f"{where}: no pairs of basis {basis!r}; use --basis {other} or add some.")
    if not evaluated:
        raise DataError(
            f"{where}: no rows with 'split': 'eval' of basis {basis!r}; what is learned cannot "
            f"be measured. Add at least one a source."
        )
    if len(evaluated) == len(chosen):
        raise DataError(
            f"{where}: no rows with 'split': 'train' of basis {basis!r}; there is nothing to "
            f"train on. Add at least one a source."
        )


def _kept_out(sources: Sequence[str], share: float, seed: int) -> frozenset[str]:
    if share == 0 or len(sources) < 2:
        return frozenset()
    n_kept_out = min(max(1, round(share * len(sources))), len(sources) - 1)
    return frozenset(random.Random(seed).sample(sources, n_kept_out))  # noqa: S311 - no secret


def _per_fact(
    by_source: Mapping[str, Sequence[QAPair]], scales: Mapping[str, int]
) -> tuple[list[QAPair], list[str]]:
    short = [source for source, pairs in by_source.items() if len(pairs) < scales[source]]
    wanted = max(scales.values())
    warnings = (
        [
            f"{len(short)} of {len(by_source)} facts have fewer than {wanted} training questions: {_some(short)}"
        ]
        if short
        else []
    )
    return [pair for source, pairs in by_source.items() for pair in pairs[: scales[source]]], warnings


def _extra(
    pairs: Sequence[QAPair],
    basis: Basis,
    shares: Mapping[PairKind, float],
    n_direct: int,
    trained: Collection[str],
    secret: Collection[str],
) -> list[QAPair]:
    """Pairs of each further kind, up to its share of the direct ones, spread over the sources; nested like them."""
    extra: list[QAPair] = []
    for kind, share in shares.items():
        fitting = [
            pair
            for pair in pairs
            if pair.kind == kind
            and pair.basis == basis
            and pair.split == "train"
            and {pair.source, *pair.also} <= set(trained)
            and question_key(pair.question) not in secret
        ]
        extra += _spread(fitting)[: round(share * n_direct)]
    return extra


def _spread(pairs: Sequence[QAPair]) -> list[QAPair]:
    """First every source's first pair, then every source's second, ...; sources in an order of their own."""
    n_met: Counter[str] = Counter()
    ranked: list[tuple[int, str, QAPair]] = []
    for pair in pairs:
        ranked.append((n_met[pair.source], hashlib.sha256(pair.source.encode()).hexdigest(), pair))
        n_met[pair.source] += 1
    return [pair for *_, pair in sorted(ranked, key=lambda each: each[:2])]


def _per_section(
    by_source: Mapping[str, Sequence[QAPair]],
    scale: int,
    section_tokens: Mapping[str, int],
    count_tokens: Callable[[str], int],
    where: str,
) -> tuple[list[QAPair], list[str]]:
    strangers = sorted(set(by_source) - set(section_tokens))
    if strangers:
        raise DataError(
            f"{where}: sections {_some(strangers)} are not in the document; "
            f"its sections are {_some(sorted(section_tokens))}. Correct the rows or the section patterns."
        )
    taken: list[QAPair] = []
    short: list[str] = []
    for source, pairs in by_source.items():
        n_tokens = 0
        for pair in pairs:
            if n_tokens >= scale * section_tokens[source]:
                break
            n_tokens += count_tokens(pair.question) + count_tokens(pair.answer)
            taken.append(pair)
        if n_tokens < scale * section_tokens[source]:
            short.append(source)
    warnings = (
        [f"{len(short)} of {len(by_source)} sections have fewer than {scale} x their tokens: {_some(short)}"]
        if short
        else []
    )
    return taken, warnings


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - N_SHOWN} more" if len(names) > N_SHOWN else ""
    return ", ".join(names[:N_SHOWN]) + more
