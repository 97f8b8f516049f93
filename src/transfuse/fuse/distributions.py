"""One pass of a model over texts: what it says at every state of each, sparse, in memory or on disk."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from transfuse.errors import ModelError
from transfuse.fuse.position_logits import PositionLogits, n_logits
from transfuse.fuse.settings import DistributionSettings
from transfuse.generate.local import context_tokens
from transfuse.io.distribution_cache import DistributionCache, TextDistributions
from transfuse.io.distribution_header import CachePlan, text_sha256, texts_digest
from transfuse.io.distribution_writing import open_cache_writer
from transfuse.io.fingerprint import model_fingerprint, tokenizer_fingerprint
from transfuse.io.models import LoadedModel
from transfuse.io.token_spans import TokenSpans, token_spans
from transfuse.tensors.kept_tokens import KeptTokens, sampled_tokens, top_tokens
from transfuse.tensors.packed_records import widest_value_bits

OnTokens = Callable[[int, int], None]
"""Called with the numbers of tokens done and to do."""

_HEAD_ELEMENTS = 1 << 26
"""Logits that exist at once."""
_SOFTMAX_ELEMENTS = 1 << 21
"""On a CPU, those whose softmax is taken at once: what fits the caches."""
_TEXTS_A_BATCH = 1024


def write_distributions(
    loaded: LoadedModel,
    texts: Sequence[str],
    folder: Path,
    settings: DistributionSettings,
    *,
    seed: int = 0,
    rebuild: bool = False,
    on_tokens: OnTokens = lambda n_done, n_all: None,
) -> DistributionCache:
    """Write the distributions of a model over texts, or what is missing of them.

    Args:
        loaded: the model.
        texts: each short enough for the model's context.
        folder: the cache to write; one of the same model, texts and settings is gone on with.
        settings: what is kept.
        seed: of draws; without meaning where nothing is drawn.
        rebuild: whether another cache that is there may be replaced, and damaged shards written anew.
        on_tokens: told at the beginning and after each pass; tokens that were there already count as done.

    Returns:
        The finished cache.

    Raises:
        ModelError: a text is longer than the model's context, has a token that the model lacks, or the logits are NaN.
        CacheError: another cache is there, or a damaged one.
        RunFolderError: the folder cannot be written, or the disk is full.
    """
    spans = _all_spans(loaded, texts)
    digests = [text_sha256(text) for text in texts]
    n_tokens = [len(each.token_ids) for each in spans]
    plan = cache_plan(loaded, settings, digests, sum(n_tokens), seed=seed)
    with open_cache_writer(folder, plan, n_tokens, rebuild=rebuild) as writer:
        on_tokens(writer.n_tokens_done, plan.n_tokens)
        logits = PositionLogits(loaded.model, loaded.precision) if writer.missing else None
        for number in writer.missing:
            assert logits is not None  # noqa: S101 - for the type checker
            inside = writer.ranges[number]
            n_before = writer.n_tokens_done
            found = _distributions(
                logits,
                {n: texts[n] for n in inside},
                {n: spans[n] for n in inside},
                settings,
                n_vocab=plan.n_vocab,
                seed=seed,
                on_tokens=lambda n, before=n_before: on_tokens(before + n, plan.n_tokens),
            )
            writer.write_shard(number, found, digests[inside.start : inside.stop])
        return writer.finish(texts if settings.keep_texts else None)


def text_distributions(
    loaded: LoadedModel,
    texts: Sequence[str],
    settings: DistributionSettings,
    *,
    seed: int = 0,
    on_tokens: OnTokens = lambda n_done, n_all: None,
) -> list[TextDistributions]:
    """The distributions of a model over a few texts, unrounded and in memory; with k = 0 only what was observed.

    Args:
        loaded: the model.
        texts: each short enough for the model's context.
        settings: what is kept.
        seed: of draws.
        on_tokens: told after each pass.

    Returns:
        One a text, in order.

    Raises:
        ModelError: a text is longer than the model's context, has a token that the model lacks, or the logits are NaN.
    """
    spans = _all_spans(loaded, texts)
    n_all = sum(len(each.token_ids) for each in spans)
    return _distributions(
        PositionLogits(loaded.model, loaded.precision),
        dict(enumerate(texts)),
        dict(enumerate(spans)),
        settings,
        n_vocab=_n_vocab(loaded),
        seed=seed,
        on_tokens=lambda n: on_tokens(n, n_all),
    )


def cache_plan(
    loaded: LoadedModel,
    settings: DistributionSettings,
    digests: Sequence[bytes],
    n_tokens: int,
    *,
    seed: int = 0,
) -> CachePlan:
    """What the cache of a model over texts is to be.

    Args:
        loaded: the model.
        settings: what is kept.
        digests: SHA-256 of each text.
        n_tokens: of all texts together.
        seed: of draws.

    Returns:
        The plan, every setting resolved.
    """
    n_vocab = _n_vocab(loaded)
    k, is_sampled = min(settings.k, n_vocab), settings.selection == "sampled"
    reference = loaded.source.reference
    return CachePlan(
        model=reference,
        model_fingerprint=model_fingerprint(reference),
        tokenizer_fingerprint=tokenizer_fingerprint(loaded.tokenizer),
        precision=str(loaded.precision).removeprefix("torch."),
        n_logits=n_logits(loaded.model),
        n_vocab=n_vocab,
        k=k,
        selection=settings.selection,
        temperature=settings.temperature,
        seed=seed if is_sampled else None,
        value_bits=settings.value_bits or widest_value_bits(n_vocab, k, is_sampled=is_sampled),
        shard_tokens=settings.shard_tokens,
        n_texts=len(digests),
        n_tokens=n_tokens,
        text_digest=texts_digest(digests),
    )


def _all_spans(loaded: LoadedModel, texts: Sequence[str]) -> list[TokenSpans]:
    """Tokens of all texts, refused before any work where one does not fit the model."""
    limit, n_known = context_tokens(loaded.model), n_logits(loaded.model)
    spans: list[TokenSpans] = []
    for start in range(0, len(texts), _TEXTS_A_BATCH):
        spans += token_spans(loaded.tokenizer, texts[start : start + _TEXTS_A_BATCH])
    for number, each in enumerate(spans):
        n = len(each.token_ids)
        if limit is not None and n > limit:
            raise ModelError(
                f"text {number} ({texts[number][:60]!r}): expected at most {limit} tokens, the context of model "
                f"{loaded.source.reference!r}, got {n}; cut the texts into pieces first."
            )
        if n and int(each.token_ids.max()) >= n_known:
            raise ModelError(
                f"text {number} ({texts[number][:60]!r}): its token {int(each.token_ids.max())} is beyond the "
                f"{n_known} that model {loaded.source.reference!r} knows; use the tokenizer of that model."
            )
    return spans


def _n_vocab(loaded: LoadedModel) -> int:
    """Ids that both model and tokenizer know; vocabularies may be padded, and may have gaps."""
    return min(n_logits(loaded.model), max(loaded.tokenizer.get_vocab().values()) + 1)


def _distributions(
    logits: PositionLogits,
    texts: Mapping[int, str],
    spans: Mapping[int, TokenSpans],
    settings: DistributionSettings,
    *,
    n_vocab: int,
    seed: int,
    on_tokens: Callable[[int], None],
) -> list[TextDistributions]:
    """Distributions of numbered texts, in the order of `spans`; texts of like length pass together."""
    k = min(settings.k, n_vocab)
    done = {n: _without_tokens(k) for n, each in spans.items() if not len(each.token_ids)}
    n_done = 0
    for numbers in _batches(
        {n: len(each.token_ids) for n, each in spans.items()}, settings.max_tokens_per_pass
    ):
        rows = [torch.from_numpy(spans[n].token_ids).long() for n in numbers]
        lengths = [len(row) for row in rows]
        states = logits.states(_filled(rows))
        states = torch.cat([states[row, :length] for row, length in enumerate(lengths)])
        # The last state has seen all; its own first token stands in, and is taken out again.
        observed = torch.cat([row.roll(-1) for row in rows])
        uniforms = None
        if settings.selection == "sampled" and k:
            uniforms = torch.cat(
                [_uniforms(seed, n, len(row), k) for n, row in zip(numbers, rows, strict=True)]
            )
        parts = _kept_parts(logits, states, observed, uniforms, k, settings.temperature, n_vocab)
        kept = KeptTokens(*(torch.cat(columns).split(lengths) for columns in zip(*parts, strict=True)))  # type: ignore[arg-type] - split by text
        for number, *own in zip(numbers, *kept, strict=True):
            if own[0].isnan().any():
                raise ModelError(
                    f"text {number} ({texts[number][:60]!r}): expected finite logits, got NaN; load the model in "
                    "another precision, or check its weights."
                )
            done[number] = _as_text(spans[number], KeptTokens(*own))
        n_done += sum(lengths)
        on_tokens(n_done)
    return [done[number] for number in spans]


def _batches(n_tokens: Mapping[int, int], max_tokens: int) -> list[list[int]]:
    """Numbers of texts with tokens, the longest first, so that too large a pass fails at once."""
    batches: list[list[int]] = []
    for number in sorted(filter(n_tokens.get, n_tokens), key=lambda n: -n_tokens[n]):
        if not batches or (len(batches[-1]) + 1) * n_tokens[batches[-1][0]] > max_tokens:
            batches.append([])
        batches[-1].append(number)
    return batches


def _filled(rows: Sequence[Int[Tensor, " _"]]) -> Int[Tensor, "batch pos"]:
    """Rows of one length; no attention mask is needed, since causal models read nothing that comes later."""
    filled = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for row, ids in zip(filled, rows, strict=True):
        row[: len(ids)], row[len(ids) :] = ids, ids[-1]
    return filled


def _uniforms(seed: int, number: int, n_states: int, k: int) -> Float[Tensor, "states k"]:
    """Of one text, so that it does not matter which texts pass together."""
    return torch.from_numpy(np.random.default_rng([seed, number]).random((n_states, k)))


def _kept_parts(
    logits: PositionLogits,
    states: Float[Tensor, "pos size"],
    observed_ids: Int[Tensor, " pos"],
    uniforms: Float[Tensor, "pos k"] | None,
    k: int,
    temperature: float,
    n_vocab: int,
) -> Iterator[KeptTokens]:
    """What is kept, a few positions at a time, on the CPU."""
    is_cpu = states.device.type == "cpu"
    options: Any = {"n_known": n_vocab, "temperature": temperature, "may_overwrite": True}
    for at, values in _logit_chunks(logits, states):
        step = min(len(values), max(1, _SOFTMAX_ELEMENTS // values.shape[1]) if is_cpu else len(values))
        # One buffer for all: fresh memory of this size costs a CPU more than the softmax itself.
        buffer = torch.empty(step, values.shape[1], device=values.device)
        for start in range(0, len(values), step):
            some = values[start : start + step]
            some = buffer[: len(some)].copy_(some)
            inside = slice(at + start, at + start + len(some))
            observed = observed_ids[inside].to(some.device)
            if uniforms is None:
                kept = top_tokens(some, observed, k, **options)
            else:
                kept = sampled_tokens(some, observed, uniforms[inside].to(some.device), **options)
            yield KeptTokens(*(part.cpu() for part in kept))


def _logit_chunks(
    logits: PositionLogits, states: Float[Tensor, "pos size"]
) -> Iterator[tuple[int, Float[Tensor, "chosen vocab"]]]:
    """Logits of neighbouring positions, with the number of the first."""
    step = max(1, _HEAD_ELEMENTS // logits.n_logits)
    for start in range(0, len(states), step):
        yield start, logits.logits(states[start : start + step])


def _as_text(spans: TokenSpans, kept: KeptTokens) -> TextDistributions:
    observed = kept.observed_log_probs.numpy().copy()
    observed[-1] = np.nan
    return TextDistributions(
        spans.token_ids,
        spans.ends,
        observed,
        kept.ids.int().numpy(),
        kept.log_probs.numpy(),
        kept.tail_log_probs.numpy(),
    )


def _without_tokens(k: int) -> TextDistributions:
    ids, numbers = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
    return TextDistributions(ids, ids, numbers, ids.reshape(0, k), numbers.reshape(0, k), numbers)
