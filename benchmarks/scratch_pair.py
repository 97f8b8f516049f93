"""A larger and a smaller model trained from nothing on the same texts: a teacher and a student whose past is known.

    python benchmarks/scratch_pair.py --texts DATA/text --out PAIR
    python benchmarks/scratch_pair.py --texts DATA/text --python-texts 12000000 --repeat 4 --size large --epochs 2 \
        --window 512 --batch-rows 32 --rates 6e-4 1.2e-3 --jobs 4 --out PAIR      (an H100: under two minutes)

writes model folders PAIR/teacher and PAIR/student: byte-level BPE of 4,096 tokens learned from the training texts,
Llama architecture with grouped queries. Both read the same windows in an order drawn from the seed, so often that the
larger one is not yet overfitted: with half a million tokens read four times it ended above its student
(benchmarks/LOG.md), hence `--python-texts`. Each role tries every learning rate; the one of the fewest bits per byte on
training texts kept apart is taken, and only then the held-out texts are read. A killed run continues from its
checkpoints. Prints bits per byte on the held-out texts.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from python_texts import apart_from, documentation_texts, library_texts
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from transfuse.evaluate.bits_per_byte import bits_per_byte, load_texts, text_losses
from transfuse.io.chat import prompt_format
from transfuse.io.files import write_json
from transfuse.io.jsonl import write_jsonl
from transfuse.io.models import load_model, save_model
from transfuse.io.precision import resolve_device, resolve_precision
from transfuse.train.batches import TrainingRow
from transfuse.train.loop import Progress, train
from transfuse.train.saved_rows import load_rows, save_rows
from transfuse.train.settings import TrainSettings

DOMAINS = ("wiki", "code", "math")
Shape = dict[str, Any]
SHAPES: dict[str, dict[str, Shape]] = {
    "small": {
        "teacher": {
            "hidden_size": 256,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "intermediate_size": 704,
        },
        "student": {
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 352,
        },
    },
    "large": {
        "teacher": {
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "intermediate_size": 1408,
        },
        "student": {
            "hidden_size": 256,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 704,
        },
    },
}
ROLES = ("teacher", "student")
VOCABULARY, END = 4096, "<|end|>"
ROWS, APART = "rows.safetensors", "kept_apart.jsonl"
KEPT_APART, MOST_CHARACTERS_APART = 40, 8000
"""Every so manieth training text is kept apart to choose learning rates on, so much of it."""


def training_texts(options: argparse.Namespace) -> tuple[list[str], list[str], dict[str, Any]]:
    """Texts to learn, texts kept apart, and counts."""
    own = [text for name in DOMAINS for text in load_texts(options.texts / f"{name}.train.jsonl")]
    held_out = [text for name in DOMAINS for text in load_texts(options.texts / f"{name}.eval.jsonl")]
    more: list[str] = []
    n_shared = 0
    if options.python_texts:
        found = [*library_texts(), *documentation_texts(options.python_texts)]
        more, n_shared = apart_from(found, [*held_out, *own])  # own code is of the same library
    learned, apart = [], []
    for texts, n_times in ((own, options.repeat), (more, 1)):
        apart += [text[:MOST_CHARACTERS_APART] for text in texts[::KEPT_APART]]
        learned += [text for n, text in enumerate(texts) if n % KEPT_APART] * n_times
    told = {
        "n_texts": len(learned),
        "n_bytes": sum(len(text.encode()) for text in learned),
        "n_left_out_for_shared_lines": n_shared,
    }
    return learned, apart, told


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from the texts."""
    learned = ByteLevelBPETokenizer()
    learned.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=learned._tokenizer, eos_token=END, pad_token=END, model_max_length=2048
    )


def windows(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], n_tokens: int) -> list[TrainingRow]:
    """All texts in one line, cut into windows whose every token but the first is learned."""
    ids = [
        token
        for part in tokenizer(list(texts), verbose=False)["input_ids"]
        for token in (*part, tokenizer.eos_token_id)
    ]
    cut = [ids[start : start + n_tokens] for start in range(0, len(ids), n_tokens)]
    return [TrainingRow(part, 1) for part in cut if len(part) > 1]


def train_one(role: str, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model and measure it on the texts kept apart; what there is to tell."""
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    precision = resolve_precision(options.precision, device)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.out / "tokenizer")
    rows, _ = load_rows(options.out / ROWS)
    settings = TrainSettings(
        method="full",
        learning_rate=rate,
        n_epochs=options.epochs,
        batch_rows=options.batch_rows,
        weight_decay=0.1,
        max_tokens_per_pass=max(4096, options.batch_rows * options.window) if device.type == "cuda" else None,
        packing="off",
    )
    torch.manual_seed(options.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        **SHAPES[options.size][role],
    )
    model = LlamaForCausalLM(config).to(device)  # pyright: ignore[reportArgumentType] - decorated in transformers
    started = time.monotonic()

    def on_step(progress: Progress) -> None:
        if progress.log.step % 50 == 0:
            left = f"{progress.tokens_per_s:.0f} tokens/s, {progress.seconds_left:.0f} s left"
            print(
                f"{role} {rate:g} step {progress.log.step}/{progress.n_steps} loss {progress.log.loss:.3f} {left}",
                flush=True,
            )

    folder = options.out / f"{role}-{rate:g}"
    summary = train(
        model,
        rows,
        settings,
        seed=options.seed,
        compute_dtype=precision,
        pad_id=tokenizer.pad_token_id,
        folder=folder,
        on_step=on_step,
    )
    save_model(model, tokenizer, folder / "model")
    losses = text_losses(model, prompt_format(tokenizer), load_texts(options.out / APART), precision)
    return {
        "role": role,
        "learning_rate": rate,
        "kept_apart_bits_per_byte": bits_per_byte(losses, options.seed).value,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "n_steps": summary.n_steps,
        "n_tokens": summary.n_tokens,
        "final_loss": summary.curve[-1].loss,
        "training_s": round(summary.seconds, 1),
        "wall_s": round(time.monotonic() - started, 1),
    }


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Bits per byte of a model on the held-out texts."""
    loaded = load_model(str(folder), precision=options.precision, device=options.device)
    prompts = prompt_format(loaded.tokenizer)
    return {
        name: bits_per_byte(
            text_losses(
                loaded.model, prompts, load_texts(options.texts / f"{name}.eval.jsonl"), loaded.precision
            ),
            options.seed,
        )._asdict()
        for name in DOMAINS
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument(
        "--python-texts", type=int, default=0, help="bytes of docstrings, beside the standard library"
    )
    parser.add_argument(
        "--repeat", type=int, default=1, help="how often the data folder's texts stand in an epoch"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=list(SHAPES), default="small")
    parser.add_argument("--rates", type=float, nargs="+", default=[8e-4, 1.5e-3])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-rows", type=int, default=2)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device")
    parser.add_argument("--precision", default="auto")
    return parser.parse_args()


def main() -> None:
    """Train all, take the best of each role, and measure it."""
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    learned, apart, told = training_texts(options)
    tokenizer = make_tokenizer(learned)
    tokenizer.save_pretrained(options.out / "tokenizer")
    save_rows(options.out / ROWS, windows(tokenizer, learned, options.window), [])
    write_jsonl(options.out / APART, [{"text": text} for text in apart])
    tasks = [(role, rate) for role in ROLES for rate in options.rates]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(train_one, role, rate, options) for role, rate in tasks]
        found = [each.result() for each in running]
    for each in found:
        print(json.dumps(each), flush=True)
    pair: dict[str, Any] = {
        "texts": told,
        "tried": found,
        "settings": {k: str(v) for k, v in vars(options).items()},
    }
    for role in ROLES:
        best = min((f for f in found if f["role"] == role), key=lambda each: each["kept_apart_bits_per_byte"])
        shutil.rmtree(options.out / role, ignore_errors=True)
        shutil.copytree(options.out / f"{role}-{best['learning_rate']:g}" / "model", options.out / role)
        pair[role] = {**best, "bits_per_byte": measured(options.out / role, options)}
        print(json.dumps(pair[role]), flush=True)
    write_json(options.out / "pair.json", pair)


if __name__ == "__main__":
    main()
