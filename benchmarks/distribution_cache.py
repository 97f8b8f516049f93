"""What a cache of distributions costs: bytes and codec time a token, and the pass beside the bare forward pass.

    python benchmarks/distribution_cache.py [--texts wiki.jsonl] [--model smollm2-135m] [--rounds 5] [--tokens 16384]
    OMP_NUM_THREADS=1 python benchmarks/distribution_cache.py --cpu-time   # where other processes use the machine too

- Codec: made-up distributions over vocabularies of 262,144 and 49,152 at k = 10, cut into texts of 512 and of 128
  tokens; bytes a token are those of the whole folder (header, marks, digests and tables counted).
- Pass: pieces of the texts (those that come with the package if no file is named), at most 512 tokens each.
  `forward` runs the same padded batches through the model whole, logits of every position, and reads nothing;
  `trunk + head` computes the same logits as the pass does, at the texts' own positions, and reads nothing; `pass`
  writes the cache. `one token` is a pass over nearly nothing: what every pass costs once, such as the tokenizer's
  fingerprint. Rounds alternate; medians are compared, once as they are and once less that.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from transfuse.evaluate.bits_per_byte import load_texts
from transfuse.fuse.distributions import write_distributions
from transfuse.fuse.pieces import cut_texts
from transfuse.fuse.position_logits import PositionLogits
from transfuse.fuse.settings import DistributionSettings
from transfuse.io.distribution_cache import DistributionCache, TextDistributions
from transfuse.io.distribution_header import CachePlan, text_sha256, texts_digest
from transfuse.io.distribution_writing import open_cache_writer
from transfuse.io.hardware import hardware_text
from transfuse.io.models import LoadedModel, load_model
from transfuse.io.token_spans import token_spans
from transfuse.tensors.packed_records import (
    RecordLayout,
    TokenRecords,
    decode_records,
    encode_records,
    widest_value_bits,
)

N_CODEC_TOKENS = 65_536
CLOCK: list[Callable[[], float]] = [time.perf_counter]
"""What is measured: seconds that pass, or those of this process on a CPU."""


def made_records(n_vocab: int, k: int = 10) -> TokenRecords:
    """Distributions like a language model's: a steep head and a heavy tail."""
    generator = np.random.default_rng(0)
    probs = -np.sort(-generator.dirichlet([0.1] * k + [0.5], size=N_CODEC_TOKENS), axis=1) + 1e-9
    logs = np.log(probs / probs.sum(axis=1, keepdims=True)).astype(np.float32)
    return TokenRecords(
        generator.integers(n_vocab, size=N_CODEC_TOKENS).astype(np.int32),
        generator.integers(1, 9, size=N_CODEC_TOKENS).astype(np.int32),
        logs[:, 3],
        generator.integers(n_vocab, size=(N_CODEC_TOKENS, k)).astype(np.int32),
        logs[:, :k],
        logs[:, k],
    )


def folder_bytes_per_token(
    layout: RecordLayout, records: TokenRecords, text_tokens: int, folder: Path
) -> float:
    """Bytes a token of a cache of texts of one length."""
    n_texts = N_CODEC_TOKENS // text_tokens
    digests = [text_sha256(str(n)) for n in range(n_texts)]
    plan = CachePlan(
        model="org/model",
        model_fingerprint="0" * 64,
        tokenizer_fingerprint="0" * 64,
        precision="float32",
        n_logits=layout.n_vocab,
        n_vocab=layout.n_vocab,
        k=layout.k,
        selection="top-k",
        temperature=1.0,
        seed=None,
        value_bits=layout.value_bits,
        shard_tokens=131_072,
        n_texts=n_texts,
        n_tokens=N_CODEC_TOKENS,
        text_digest=texts_digest(digests),
    )
    with open_cache_writer(folder, plan, [text_tokens] * n_texts) as writer:
        for number in writer.missing:
            texts = []
            for n in writer.ranges[number]:
                rows = slice(n * text_tokens, (n + 1) * text_tokens)
                ends = np.cumsum(records.lengths[rows], dtype=np.int32)
                texts.append(
                    TextDistributions(records.token_ids[rows], ends, *(part[rows] for part in records[2:]))
                )
            writer.write_shard(
                number, texts, digests[writer.ranges[number].start : writer.ranges[number].stop]
            )
        return writer.finish().bytes_per_token


def median_s(act: Callable[[], object], rounds: int) -> float:
    """Median seconds of an act."""
    times = []
    for _ in range(rounds):
        started = CLOCK[0]()
        act()
        times.append(CLOCK[0]() - started)
    return statistics.median(times)


def measure_codec(rounds: int) -> None:
    """Print bytes and times a token."""
    for n_vocab in (262_144, 49_152):
        layout = RecordLayout(n_vocab, 10, widest_value_bits(n_vocab, 10))
        print(codec_row(layout, made_records(n_vocab), rounds), flush=True)


def codec_row(layout: RecordLayout, records: TokenRecords, rounds: int) -> str:
    """Bytes and times a token of one layout."""
    packed = encode_records(layout, records)
    encode = median_s(lambda: encode_records(layout, records), rounds)
    decode = median_s(lambda: decode_records(layout, packed), rounds)
    decode_text = median_s(lambda: decode_records(layout, packed[:512]), 50)
    with tempfile.TemporaryDirectory() as folder:
        sizes = [folder_bytes_per_token(layout, records, n, Path(folder) / str(n)) for n in (512, 128)]
    return (
        f"| {layout.n_vocab:,} | {layout.value_bits} bits a value | {layout.record_bytes} bytes a record | "
        f"{sizes[0]:.2f} bytes a token in texts of 512, {sizes[1]:.2f} in texts of 128 | "
        f"encode {encode / N_CODEC_TOKENS * 1e6:.2f} us a token, decode {decode / N_CODEC_TOKENS * 1e6:.2f}, "
        f"of a text of 512 tokens by itself {decode_text / 512 * 1e6:.2f} |"
    )


def batches_of(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Texts of like length together, the longest first, as the pass batches them."""
    batches: list[list[int]] = []
    for n in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > max_tokens:
            batches.append([])
        batches[-1].append(n)
    return batches


@torch.no_grad()
def whole_forward(loaded: LoadedModel, batches: list[torch.Tensor]) -> None:
    """Logits of every position, left unread."""
    for batch in batches:
        loaded.model(input_ids=batch, use_cache=False)


def trunk_and_head(loaded: LoadedModel, batches: list[torch.Tensor], rows: list[list[int]]) -> None:
    """The same logits as the pass computes, left unread."""
    logits = PositionLogits(loaded.model, loaded.precision)
    step = max(1, (1 << 26) // logits.n_logits)
    for batch, lengths in zip(batches, rows, strict=True):
        states = logits.states(batch)
        states = torch.cat([states[row, :length] for row, length in enumerate(lengths)])
        for start in range(0, len(states), step):
            logits.logits(states[start : start + step])


def measure_pass(model: str, texts: list[str], n_tokens: int, max_tokens: int, rounds: int) -> None:
    """Print the pass beside the bare forward pass."""
    loaded = load_model(model)
    pieces, spans, held = [], [], 0
    for piece in cut_texts(texts, [loaded.tokenizer], 512):
        if held >= n_tokens:
            break
        pieces.append(piece.text)
        spans += token_spans(loaded.tokenizer, [piece.text])
        held += len(spans[-1].token_ids)
    lengths = [len(each.token_ids) for each in spans]
    groups = batches_of(lengths, max_tokens)
    batches = []
    for group in groups:
        batch = torch.zeros(len(group), lengths[group[0]], dtype=torch.long)
        for row, n in enumerate(group):
            batch[row, : lengths[n]] = torch.from_numpy(spans[n].token_ids)
        batches.append(batch.to(loaded.device))
    row_lengths = [[lengths[n] for n in group] for group in groups]

    def cached(settings: DistributionSettings, texts: list[str] = pieces) -> DistributionCache:
        with tempfile.TemporaryDirectory() as folder:
            return write_distributions(loaded, texts, Path(folder) / "cache", settings)

    limit = {"max_tokens_per_pass": max_tokens}
    variants: dict[str, Callable[[], object]] = {
        "forward": lambda: whole_forward(loaded, batches),
        "trunk + head": lambda: trunk_and_head(loaded, batches, row_lengths),
        "pass, k = 10": lambda: cached(DistributionSettings(**limit)),
        "pass, k = 0": lambda: cached(DistributionSettings(k=0, **limit)),
        "pass, 10 draws": lambda: cached(DistributionSettings(selection="sampled", **limit)),
        "one token": lambda: cached(DistributionSettings(), ["a"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            seconds[name].append(median_s(variant, 1))
            print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"\n{model}, {held:,} tokens in {len(pieces)} pieces, {loaded.precision}, passes of {max_tokens:,} tokens; "
        f"medians of {rounds} rounds"
    )
    for name, value in medians.items():
        once = medians["one token"] if name.startswith("pass") else 0
        ratios = [each / medians["forward"] for each in (value, value - once)]
        print(
            f"| {name} | {value:.2f} s | {ratios[0]:.3f} x forward | {ratios[1]:.3f} x less what comes once |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--max-tokens-per-pass", type=int, default=4096)
    parser.add_argument("--cpu-time", action="store_true")
    arguments = parser.parse_args()
    if arguments.cpu_time:
        CLOCK[0] = time.process_time
    kind = "CPU time of the process" if arguments.cpu_time else "wall time"
    print(f"{hardware_text()}; {torch.get_num_threads()} threads; {kind}", flush=True)
    measure_codec(arguments.rounds)
    texts = load_texts(arguments.texts)
    measure_pass(arguments.model, texts, arguments.tokens, arguments.max_tokens_per_pass, arguments.rounds)


if __name__ == "__main__":
    main()
