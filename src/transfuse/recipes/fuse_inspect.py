"""`transfuse fuse inspect`: what a cache of distributions holds, and whether it is whole."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from transfuse.errors import CacheError, TransfuseError
from transfuse.io.distribution_cache import DistributionCache, TextDistributions
from transfuse.io.distribution_header import CacheHeader, again, read_header, shard_state
from transfuse.io.fingerprint import tokenizer_fingerprint
from transfuse.io.models import load_tokenizer
from transfuse.tensors.packed_records import rounding_nats

N_SHOWN = 20
"""Shards that a table lists."""
N_LIKELIEST = 5
"""Kept tokens that an example shows."""


def inspect_cache(folder: Path, *, verify: bool = False, n_examples: int = 5) -> dict[str, Any]:
    """What a cache says of itself, the state of its shards, and some of its contents.

    Args:
        folder: the cache.
        verify: read every shard and compare its checksum; else only presence and size are looked at.
        n_examples: states to decode, spread over the whole shards.

    Returns:
        JSON values: the header; `bytes_per_token`, all files counted but a copy of the texts; `max_rounding_nats`
        at probabilities 1, 0.1 and 0.001; `shards` with their `state`; `verified`; `damaged`, the files that are not
        whole; `examples`. Tokens are texts where the model's tokenizer can be loaded and is the same, else ids.

    Raises:
        CacheError: no finished cache is there, or its header is damaged.
    """
    header = read_header(folder)
    shards = [
        {**shard.model_dump(), "state": shard_state(folder, shard, verify=verify)} for shard in header.shards
    ]
    cache = DistributionCache(folder, header)
    tokenizer = _tokenizer_of(header) if n_examples else None
    at = np.log([1.0, 0.1, 0.001])
    return {
        "folder": str(folder),
        **header.model_dump(exclude={"shards"}),
        "bytes_per_token": round(cache.bytes_per_token, 3),
        "max_rounding_nats": [round(float(each), 5) for each in rounding_nats(at, header.value_bits)],
        "verified": verify,
        "shards": shards,
        "damaged": [f"{shard['file']} is {shard['state']}" for shard in shards if shard["state"] != "whole"],
        "tokenizer_found": tokenizer is not None,
        "examples": [
            _example(cache.text(number), number, state, tokenizer)
            for number, state in _places(cache, [shard["state"] == "whole" for shard in shards], n_examples)
        ],
    }


def refuse_damaged(found: dict[str, Any]) -> None:
    """End with an error where an inspected cache is not whole.

    Args:
        found: as `inspect_cache` gives it.

    Raises:
        CacheError: names the shards.
    """
    if found["damaged"]:
        raise CacheError(f"{found['folder']}: {', '.join(found['damaged'][:N_SHOWN])}; {again()}")


def inspection_tables(found: dict[str, Any]) -> list[Table]:
    """An inspected cache for a person to read.

    Args:
        found: as `inspect_cache` gives it.

    Returns:
        What it is, its shards, and examples where there are any.
    """
    return [_summary(found), _shard_table(found), *([_example_table(found)] if found["examples"] else [])]


def _summary(found: dict[str, Any]) -> Table:
    codec, sampled = found["codec"], found["selection"] == "sampled"
    kept = (
        f"{found['k']} {'draws' if sampled else 'likeliest tokens'}"
        if found["k"]
        else "nothing but what came"
    )
    rounding = ", ".join(f"{each:.4f}" for each in found["max_rounding_nats"])
    padding = found["n_logits"] - found["n_vocab"]
    rows = {
        "cache": found["folder"],
        "model": f"{found['model']}, computed in {found['precision']}",
        "vocabulary": f"{found['n_vocab']:,} tokens"
        + (f" and {padding:,} of padding" if padding > 0 else ""),
        "texts": f"{found['n_texts']:,}, {found['n_tokens']:,} tokens"
        + (", a copy is kept" if found["texts_sha256"] else ""),
        "kept": kept + (f" at temperature {found['temperature']:g}" if found["temperature"] != 1 else ""),
        "record": f"{codec['record_bytes']} bytes, {found['value_bits']} bits a log-probability",
        "rounding": f"at most {rounding} nats at probabilities 1, 0.1, 0.001",
        "on disk": f"{found['bytes_per_token']:.2f} bytes a token, everything counted"
        + (" but the copy of the texts" if found["texts_sha256"] else ""),
    }
    if sampled:
        rows["kept"] += f", seed {found['seed']}"
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _shard_table(found: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("shard", "texts", "tokens", "MiB", "state"):
        table.add_column(column, justify="left" if column in ("shard", "state") else "right")
    # Those that want something done come first.
    ordered = sorted(found["shards"], key=lambda shard: shard["state"] == "whole")
    for shard in ordered[:N_SHOWN]:
        size = f"{shard['n_bytes'] / 2**20:.2f}"
        table.add_row(shard["file"], f"{shard['n_texts']:,}", f"{shard['n_tokens']:,}", size, shard["state"])
    notes = [] if found["verified"] else ["Sizes compared; --verify compares the checksums."]
    if len(ordered) > N_SHOWN:
        notes.insert(0, f"And {len(ordered) - N_SHOWN:,} more (--json lists them).")
    table.caption, table.caption_justify = " ".join(notes) or None, "left"
    return table


def _example_table(found: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("text", "state", "bytes read", "last token", "next token", "likeliest", "all others"):
        table.add_column(column, overflow="fold")
    for each in found["examples"]:
        likeliest = "  ".join(f"{_shown(token)} {prob:.1%}" for token, prob in each["likeliest"])
        observed = (
            ""
            if each["observed"] is None
            else "{} {:.1%}".format(_shown(each["observed"][0]), each["observed"][1])
        )
        place = (str(each["text"]), str(each["state"]), str(each["end"]))
        table.add_row(*place, _shown(each["token"]), observed, likeliest, f"{each['tail']:.1%}")
    if not found["tokenizer_found"]:
        table.caption = (
            "Tokens are ids: the tokenizer could not be loaded from the model's reference, or is another."
        )
        table.caption_justify = "left"
    return table


def _shown(token: str | int) -> str:
    """A token so that blanks and line breaks can be seen, and square brackets are no markup."""
    return (repr(token) if isinstance(token, str) else str(token)).replace("[", r"\[")


def _tokenizer_of(header: CacheHeader) -> PreTrainedTokenizerBase | None:
    try:
        tokenizer = load_tokenizer(header.model)
    except TransfuseError:
        return None
    return tokenizer if tokenizer_fingerprint(tokenizer) == header.tokenizer_fingerprint else None


def _places(cache: DistributionCache, is_whole: list[bool], n: int) -> Iterator[tuple[int, int]]:
    """Texts spread evenly over the whole shards, each at a state further on than the one before."""
    shards = cache.header.shards
    ends = np.cumsum([shard.n_texts for shard in shards])
    numbers = [
        number
        for shard, end, whole in zip(shards, ends, is_whole, strict=True)
        if whole
        for number in range(int(end) - shard.n_texts, int(end))
    ]
    for place in range(min(n, len(numbers))):
        number = numbers[place * len(numbers) // min(n, len(numbers))]
        n_states = len(cache.text(number).token_ids)
        if n_states:
            yield number, (place + 1) * (n_states - 1) // (n + 1)


def _example(
    text: TextDistributions, number: int, state: int, tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, Any]:
    def token(token_id: int) -> str | int:
        return token_id if tokenizer is None else str(tokenizer.decode([token_id]))

    read, *coming = text.token_ids[state : state + 2].tolist()
    kept = zip(
        text.top_ids[state, :N_LIKELIEST].tolist(),
        text.top_log_probs[state, :N_LIKELIEST].tolist(),
        strict=True,
    )
    return {
        "text": number,
        "state": state,
        "end": int(text.ends[state]),
        "token": token(read),
        "observed": [token(coming[0]), math.exp(text.observed_log_probs[state])] if coming else None,
        "likeliest": [[token(token_id), math.exp(nats)] for token_id, nats in kept if nats > -math.inf],
        "tail": math.exp(text.tail_log_probs[state]),
    }
