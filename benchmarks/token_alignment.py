"""Milliseconds to align the tokens of a text with another tokenizer's: by bytes, and by edit distance.

    python benchmarks/token_alignment.py TEXTS.jsonl ... [--source gemma.gguf] [--target smollm2-135m]
        [--tokens 2048] [--texts 4] [--rounds 5] [--plain 1]

TEXTS are JSONL files with rows `{"text"}`; their texts are laid end to end and cut into texts of that many target
tokens, `--texts` of each file. Ways that take turns on each text: `spans` (token ids and byte ends of both,
tokenizing included; and tokenizing alone), `bytes` (`align_states` and `align_chunks`, ends given), `min-edit`
(`min_edit_alignment`), and, on the first `--plain` texts of each file, `plain`: the paper's dynamic programming one
cell after the other, as in its published code, with rapidfuzz for the edit distance of each pair of tokens. Figures are
medians over texts and rounds; before anything is timed, both ways of least edit distance are checked to agree.
"""

import argparse
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein
from transformers import PreTrainedTokenizerBase

from transfuse.io.hardware import hardware_text
from transfuse.io.models import load_tokenizer
from transfuse.io.texts import read_texts
from transfuse.io.token_spans import TokenSpans, token_spans
from transfuse.tensors.min_edit_alignment import min_edit_alignment
from transfuse.tensors.token_alignment import align_chunks, align_states


def plain_matches(source: list[str], target: list[str]) -> list[tuple[int, int]]:
    """First source token, and one past the last, of each target token: one cell of the table after the other."""
    costs = np.full((len(source) + 1, len(target) + 1), np.inf)
    costs[0, 0] = 0
    for i, one in enumerate(source):
        for j, other in enumerate(target):
            least = min(costs[i, j + 1], costs[i + 1, j], costs[i, j])
            costs[i + 1, j + 1] = Levenshtein.distance(one, other) + least
    costs[0, 0] = np.inf  # no way leads out of the table
    i, j = len(source), len(target)
    found: list[list[int]] = [[] for _ in target]
    found[-1].append(i)
    while (i, j) != (1, 1):
        move = int(np.argmin([costs[i - 1, j - 1], costs[i - 1, j], costs[i, j - 1]]))
        i, j = i - (move != 2), j - (move != 1)
        found[j - 1].append(i)
    return [(matched[-1] - 1, matched[0]) for matched in found]


def pieces_of(path: Path, tokenizer: PreTrainedTokenizerBase, n_tokens: int, n_pieces: int) -> Iterator[str]:
    """Texts of so many tokens, cut at the end of a character."""
    text = "\n\n".join(read_texts(path)).encode()
    for _ in range(n_pieces):
        head = text[: 16 * n_tokens].decode(errors="ignore")
        (spans,) = token_spans(tokenizer, [head])
        assert len(spans.ends) > n_tokens, f"{path}: too short"
        end = int(spans.ends[n_tokens - 1])
        piece = text[:end].decode(errors="ignore")
        yield piece
        text = text[len(piece.encode()) :]


def words(tokenizer: PreTrainedTokenizerBase, spans: TokenSpans) -> list[str]:
    """Token strings without the marks of a space, as the published code compares them."""
    tokens = tokenizer.convert_ids_to_tokens(spans.token_ids.tolist())
    return [token.replace("▁", "").replace("Ġ", "") for token in tokens]


def milliseconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    """One line a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts_files", nargs="+", type=Path, metavar="TEXTS")
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain", type=int, default=1)
    arguments = parser.parse_args()
    source, target = load_tokenizer(arguments.source), load_tokenizer(arguments.target)
    token_spans(source, ["a"])  # reads the vocabulary
    print(f"{hardware_text()}; source {arguments.source}, target {arguments.target}")
    print(
        "| text | tokens | 1-1 | tokenize | spans | bytes | min-edit | plain | min-edit / bytes | plain / bytes |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for path in arguments.texts_files:
        pieces = list(pieces_of(path, target, arguments.tokens, arguments.texts))
        times: dict[str, list[float]] = defaultdict(list)
        shares: list[float] = []
        n_tokens: list[tuple[int, int]] = []
        for number, piece in enumerate(pieces):
            (one,), (other,) = token_spans(source, [piece]), token_spans(target, [piece])
            n_tokens.append((len(one.ends), len(other.ends)))
            shares.append(float(align_states(one.ends, other.ends).is_one_to_one.mean()))
            sides = words(source, one), words(target, other)
            ways: dict[str, Callable[[], object]] = {
                "tokenize": lambda piece=piece: [
                    each(piece, add_special_tokens=False, verbose=False) for each in (source, target)
                ],
                "spans": lambda piece=piece: [token_spans(each, [piece]) for each in (source, target)],
                "bytes": lambda one=one, other=other: (
                    align_states(one.ends, other.ends),
                    align_chunks(one.ends, other.ends),
                ),
                "min-edit": lambda sides=sides: min_edit_alignment(*sides),
            }
            if number < arguments.plain:
                expected = list(zip(*min_edit_alignment(*sides), strict=True))
                assert plain_matches(*sides) == expected
                times["plain"].append(milliseconds(lambda sides=sides: plain_matches(*sides)))
            for _, (name, way) in itertools.product(range(arguments.rounds), ways.items()):
                times[name].append(milliseconds(way))
        median = {name: statistics.median(found) for name, found in times.items()}
        plain = median.get("plain", float("nan"))
        both = " + ".join(f"{statistics.median(side):.0f}" for side in zip(*n_tokens, strict=True))
        print(
            f"| {path.stem} | {both} | {statistics.mean(shares):.1%} "
            f"| {median['tokenize']:.1f} | {median['spans']:.1f} "
            f"| {median['bytes']:.3f} | {median['min-edit']:.0f} | {plain:.0f} "
            f"| {median['min-edit'] / median['bytes']:.0f} | {plain / median['bytes']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
