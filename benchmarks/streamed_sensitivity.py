"""Time and memory of the streamed sensitivity engine.

    python benchmarks/streamed_sensitivity.py --real [--precision bfloat16]
    python benchmarks/streamed_sensitivity.py --large --folder /tmp/llama-7b-shape [--layers 32] [--extract] [--keep]
        [--precision bfloat16]

- `--real`: SmolLM2-135M as a float32 folder, 32 samples of 64 tokens, streamed and in memory, each in a process of
  its own, in turns; times with loading the model and without, peak resident memory.
- `--large`: a Llama of 7B shape with random bfloat16 weights, written shard by shard (13.5 GB at 32 layers), streamed;
  the process that computes never held the model. `--extract` cuts blocks for a student of 3B shape on the way.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from transfuse.io.hardware import hardware_text
from transfuse.io.memory import peak_gib
from transfuse.io.models import load_model, save_model
from transfuse.io.quiet import quiet
from transfuse.train.batches import TrainingRow
from transfuse.transfer.memory_engine import memory_sensitivity
from transfuse.transfer.sensitivity import LayerScores, ModelNames, OnLayer, SensitivitySummary
from transfuse.transfer.streamed_engine import streamed_sensitivity

NAMES = ModelNames("model.layers", "model.embed_tokens", "lm_head")
TEXT = Path(__file__).parents[1] / "examples" / "orvessa" / "document.md"
N_SAMPLES, SAMPLE_TOKENS, PROMPT_TOKENS = 32, 64, 16
LARGE = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=4096,
    dtype="bfloat16",
    architectures=["LlamaForCausalLM"],
)
SMALLER = LlamaConfig(
    vocab_size=32000,
    hidden_size=3200,
    intermediate_size=8640,
    num_hidden_layers=26,
    num_attention_heads=32,
    num_key_value_heads=32,
)


def text_rows(folder: Path) -> list[TrainingRow]:
    """Samples of equal length from the example document, repeated as needed."""
    ids = AutoTokenizer.from_pretrained(folder)(TEXT.read_text(encoding="utf-8"))["input_ids"]
    ids = ids * (1 + N_SAMPLES * SAMPLE_TOKENS // len(ids))
    starts = range(0, N_SAMPLES * SAMPLE_TOKENS, SAMPLE_TOKENS)
    return [TrainingRow(ids[start : start + SAMPLE_TOKENS], PROMPT_TOKENS) for start in starts]


def random_rows(n_vocab: int) -> list[TrainingRow]:
    """Samples of random tokens."""
    ids = torch.randint(0, n_vocab, (N_SAMPLES, SAMPLE_TOKENS), generator=torch.Generator().manual_seed(0))
    return [TrainingRow(row, PROMPT_TOKENS) for row in ids.tolist()]


def write_large(folder: Path, config: LlamaConfig) -> None:
    """A model folder with random weights, one shard a layer, no two shards in memory at once."""
    folder.mkdir(parents=True, exist_ok=True)
    hidden, neurons, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}

    def write(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
        tensors = {
            key: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for key, shape in shapes.items()
        }
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))

    for layer in range(config.num_hidden_layers):
        shapes: dict[str, tuple[int, ...]] = {
            f"self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"
        }
        shapes |= {f"mlp.{part}_proj.weight": (neurons, hidden) for part in ("gate", "up")}
        shapes |= {
            "mlp.down_proj.weight": (hidden, neurons),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        write(
            f"layer-{layer:02d}.safetensors",
            {f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()},
        )
    outside = {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
    write("outside.safetensors", {**outside, "model.norm.weight": (hidden,)})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    config.save_pretrained(folder)


def extractor(kept: Path) -> OnLayer:
    """What cuts blocks for a student of 3B shape."""
    from transfuse.transfer.extraction import Wanted
    from transfuse.transfer.extraction_files import Extractor
    from transfuse.transfer.families import architecture_of

    teacher, student = architecture_of(LARGE), architecture_of(SMALLER)
    kept.mkdir(exist_ok=True)
    wanted = Wanted(
        teacher, student, frozenset(student.roles), "submatrix", 16, torch.arange(SMALLER.vocab_size), seed=0
    )
    return Extractor(wanted, kept)


class Nothing:
    """A consumer that keeps nothing, and notes the time of each layer."""

    def __init__(self, inner: OnLayer | None = None) -> None:
        self.inner, self.seconds = inner, 0.0

    def __call__(self, scores: LayerScores) -> None:
        """Hand a layer on and count the time that takes."""
        started = time.perf_counter()
        if self.inner is not None:
            self.inner(scores)
        self.seconds += time.perf_counter() - started


def run_here(engine: str, folder: Path, dtype: torch.dtype, *, extract: bool) -> None:
    """Run one engine in this process and print its figures as JSON."""
    rows = random_rows(LARGE.vocab_size) if engine == "large" else text_rows(folder)
    started, started_cpu = time.perf_counter(), time.process_time()
    work = folder / "work"
    consumer = Nothing(extractor(folder / "extracted") if extract else None)
    stages = [(started, started_cpu, "start")]

    def progress(n_done: int, n_total: int, what: str) -> None:
        stages.append((time.perf_counter(), time.process_time(), what))
        if engine == "large":
            wall, cpu = stages[-1][0] - started, stages[-1][1] - started_cpu
            print(f"{n_done}/{n_total} {what}: {wall:.1f} s, cpu {cpu:.1f} s", file=sys.stderr, flush=True)

    summary: SensitivitySummary
    if engine == "memory":
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        summary = memory_sensitivity(model, rows, consumer, names=NAMES, on_progress=progress)
    else:
        summary = streamed_sensitivity(
            folder, rows, consumer, names=NAMES, work=work, compute_dtype=dtype, on_progress=progress
        )
    shutil.rmtree(work, ignore_errors=True)
    by_stage: dict[str, list[tuple[float, float]]] = {}
    for (before, cpu_before, _), (after, cpu_after, what) in pairwise(stages):
        by_stage.setdefault(what, []).append((after - before, cpu_after - cpu_before))
    figures = {
        "seconds": summary.seconds,
        "seconds_with_loading": time.perf_counter() - started,
        "cpu_seconds_with_loading": time.process_time() - started_cpu,
        "consumer_seconds": consumer.seconds,
        "median_stage_seconds": {
            what: statistics.median(each for each, _ in found) for what, found in by_stage.items()
        },
        "median_stage_cpu_seconds": {
            what: statistics.median(each for _, each in found) for what, found in by_stage.items()
        },
        "peak_gib": peak_gib(),
        "bytes_read": summary.bytes_read,
        "n_tokens": summary.n_tokens,
        "loss": statistics.mean(summary.losses),
    }
    print(json.dumps(figures))


def run_apart(engine: str, folder: Path, precision: str, *, extract: bool = False) -> dict:
    """The figures of one engine in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--engine",
        engine,
        "--folder",
        str(folder),
        "--precision",
        precision,
    ]
    done = subprocess.run([*command, *(["--extract"] if extract else [])], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def real(n_rounds: int, precision: str) -> None:
    """Compare both engines on SmolLM2-135M."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "smollm2-135m"
        loaded = load_model("smollm2-135m", precision="float32")
        save_model(loaded.model, loaded.tokenizer, folder)
        del loaded
        figures: dict[str, list[dict]] = {"memory": [], "streamed": []}
        for _ in range(n_rounds):
            for engine, found in figures.items():
                found.append(run_apart(engine, folder, precision))
                print(engine, json.dumps(found[-1]), flush=True)
    print(f"\n{hardware_text()}; {precision}; {N_SAMPLES} samples of {SAMPLE_TOKENS} tokens")
    print("| engine | engine | with loading | peak resident memory |\n|---|---|---|---|")
    for engine, found in figures.items():
        seconds, whole, peak = (
            min(each[key] for each in found) for key in ("seconds", "seconds_with_loading", "peak_gib")
        )
        print(f"| {engine} | {seconds:.1f} s | {whole:.1f} s | {peak:.2f} GiB |")
    for key in ("seconds", "seconds_with_loading", "cpu_seconds_with_loading"):
        ratio = min(f[key] for f in figures["streamed"]) / min(f[key] for f in figures["memory"])
        print(f"streamed / memory, {key}: {ratio:.2f}")


def large(folder: Path, n_layers: int, precision: str, *, extract: bool, keep: bool) -> None:
    """Stream a Llama of 7B shape."""
    config = LlamaConfig(**{**LARGE.to_dict(), "num_hidden_layers": n_layers})
    n_bytes = 2 * (n_layers * 202_400_000 + 2 * 32000 * 4096)
    free = shutil.disk_usage(folder.parent).free
    if free < 1.3 * n_bytes:
        sys.exit(f"{folder}: {1.3 * n_bytes / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free")
    if not (folder / "config.json").is_file():
        write_large(folder, config)
    try:
        n_on_disk = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        figures = run_apart("large", folder, precision, extract=extract)
    finally:
        if not keep:
            shutil.rmtree(folder)
    print(f"{hardware_text()}; {precision}; {n_layers} layers, {n_on_disk / 2**30:.2f} GiB of weights")
    print(json.dumps(figures, indent=1))
    print(f"bytes read / bytes on disk: {figures['bytes_read'] / n_on_disk:.3f}")
    for kind in ("median_stage_seconds", "median_stage_cpu_seconds"):
        stages = figures[kind]
        if "forward" in stages:  # not in a run that goes on where a killed one stopped
            whole = (
                32 * (stages["forward"] + stages["backward"]) + stages["head"] + stages["embedding and head"]
            )
            print(f"32 layers at these {kind}: {whole / 60:.1f} min")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--extract", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--engine", choices=["memory", "streamed", "large"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        dtype = getattr(torch, arguments.precision)
        run_here(arguments.engine, arguments.folder, dtype, extract=arguments.extract)
    elif arguments.large and arguments.folder:
        large(
            arguments.folder,
            arguments.layers,
            arguments.precision,
            extract=arguments.extract,
            keep=arguments.keep,
        )
    elif arguments.real:
        real(arguments.rounds, arguments.precision)
    else:
        parser.error("expected --real, or --large with --folder")


if __name__ == "__main__":
    main()
