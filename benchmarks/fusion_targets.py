"""Alignment and target building beside the forward pass that they follow.

    OMP_NUM_THREADS=1 python benchmarks/fusion_targets.py RUN --teacher smollm2-135m [--pieces 60] [--rounds 5]

RUN is the folder of a `transfuse fuse` run whose distributions are there. Timed in turns, over the same pieces: the
bare forward pass of the teacher; reading the caches, aligning, mapping, fusing and writing the targets of all sources;
the same with the paper's alignment by edit distance; and reading the training rows back. CPU seconds of one thread.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from transfuse.fuse.source_states import plain_tokens
from transfuse.fuse.target_files import TargetRows, write_targets
from transfuse.fuse.targets import FusionSource, fuse_piece
from transfuse.fuse.vocabulary_map import map_vocabulary
from transfuse.io.distribution_cache import DistributionCache
from transfuse.io.jsonl import read_jsonl
from transfuse.io.models import load_model
from transfuse.io.token_spans import token_spans
from transfuse.recipes.fuse_pieces import load_tokenizers
from transfuse.recipes.fuse_schema import FuseRecipe
from transfuse.recipes.schema import load_recipe


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--teacher", default="smollm2-135m")
    parser.add_argument("--pieces", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(options.run / "recipe.resolved.yaml")
    assert isinstance(recipe, FuseRecipe)
    tokenizers = load_tokenizers(recipe)
    texts = [str(line.value["text"]) for line in read_jsonl(options.run / "pieces" / "pieces.jsonl")]
    chosen = list(range(0, len(texts), max(1, len(texts) // options.pieces)))[: options.pieces]
    everyone = {"target": tokenizers.target, **tokenizers.sources}
    caches = {
        name: DistributionCache.open(options.run / "distributions" / name / "cache") for name in everyone
    }
    maps = {
        name: map_vocabulary(each, tokenizers.target, "exact" if name == "target" else recipe.fusion.map)
        for name, each in everyone.items()
    }
    spans = token_spans(tokenizers.target, [texts[n] for n in chosen])
    n_tokens = sum(len(each.token_ids) for each in spans)
    teacher = load_model(options.teacher)
    ids = [
        torch.from_numpy(each.token_ids).long()[None]
        for each in token_spans(teacher.tokenizer, [texts[n] for n in chosen])
    ]

    @torch.no_grad()
    def forward() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=teacher.precision == torch.bfloat16):
            for row in ids:
                teacher.model(input_ids=row, use_cache=False)

    plain = {name: plain_tokens(each) for name, each in everyone.items()}

    def targets(align: str) -> None:
        settings = recipe.fusion.model_copy(update={"align": align})
        sources = [FusionSource(name, maps[name], plain[name]) for name in everyone]
        fused = (
            fuse_piece(
                target, [caches[name].text(n) for name in everyone], sources, settings, plain["target"]
            )
            for n, target in zip(chosen, spans, strict=True)
        )
        write_targets(folder, fused, settings, n_vocab=len(tokenizers.target), n_kept=recipe.distributions.k)

    def rows() -> None:
        found = TargetRows(folder)
        for n in range(len(found)):
            assert found[n].soft is not None

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "targets"
        works = {
            "forward pass of the teacher": forward,
            "targets, aligned by bytes": lambda: targets("exact"),
            "rows read back": rows,
            "targets, aligned by edit distance": lambda: targets("min-edit"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for round_number in range(options.rounds + 1):
            for name, work in works.items():
                started = time.process_time()
                work()
                if round_number:
                    seconds[name].append(time.process_time() - started)
    base = statistics.median(seconds["forward pass of the teacher"])
    print(f"{len(chosen)} pieces, {n_tokens:,} target tokens, {len(everyone)} sources, {teacher.precision}")
    print("| work | CPU s | us a token | of the forward pass |\n|---|---|---|---|")
    for name, each in seconds.items():
        median = statistics.median(each)
        print(f"| {name} | {median:.3f} | {1e6 * median / n_tokens:.1f} | {100 * median / base:.2f} % |")


if __name__ == "__main__":
    main()
