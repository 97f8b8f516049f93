"""A sub-cloned student trained on plain text until it is a language model again: a recorded healing run.

    transfuse transfer extract --teacher smollm2-135m --as model --reduce coupled --layers proportional \
        --shape n_layers=12,hidden=384,n_heads=6,n_kv_heads=2,n_neurons=1024 --task SEEDS --out runs/clone
    python benchmarks/healing.py --model runs/clone/model --texts DATA/text --out runs/healed

All weights train. A killed run continues from its checkpoint. Prints bits per byte on held-out texts, before and after.
"""

import argparse
import json
from pathlib import Path

import torch

from transfuse.evaluate.bits_per_byte import bits_per_byte, load_texts, text_losses
from transfuse.io.chat import prompt_format
from transfuse.io.files import write_json
from transfuse.io.models import load_model, save_model
from transfuse.train.batches import TrainingRow
from transfuse.train.loop import train
from transfuse.train.settings import TrainSettings

DOMAINS = ("wiki", "code", "math")


def main() -> None:
    """Heal and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=17)
    options = parser.parse_args()
    loaded = load_model(options.model, precision="float32", trainable=True)
    prompts = prompt_format(loaded.tokenizer)
    held_out = {name: load_texts(options.texts / f"{name}.eval.jsonl") for name in DOMAINS}
    ids: list[int] = []
    for texts in zip(*(load_texts(options.texts / f"{name}.train.jsonl") for name in DOMAINS), strict=False):
        for text in texts:
            ids += prompts.encode_text(text[:4000], ends=True)
    ids = ids[: options.tokens]
    rows = [
        TrainingRow(ids[start : start + options.window], 1)
        for start in range(0, len(ids) - 1, options.window)
        if len(ids) - start > 1
    ]

    def measured() -> dict[str, object]:
        return {
            name: bits_per_byte(text_losses(loaded.model, prompts, texts[:20], torch.float32), 17)._asdict()
            for name, texts in held_out.items()
        }

    def on_step(progress: object) -> None:
        log = progress.log  # type: ignore[attr-defined]
        if log.step % 10 == 0:
            left = f"{progress.tokens_per_s:.0f} tokens/s, {progress.seconds_left:.0f} s left"  # type: ignore[attr-defined]
            print(f"step {log.step}/{progress.n_steps} loss {log.loss:.3f} {left}", flush=True)  # type: ignore[attr-defined]

    before = measured()
    print(json.dumps(before), flush=True)
    settings = TrainSettings(
        method="full", learning_rate=options.learning_rate, n_epochs=1, batch_rows=8, packing="off"
    )
    summary = train(
        loaded.model,
        rows,
        settings,
        seed=options.seed,
        compute_dtype=torch.float32,
        pad_id=prompts.pad_id,
        folder=options.out / "training",
        on_step=on_step,
    )
    save_model(loaded.model, loaded.tokenizer, options.out / "model")
    told = {
        "before": before,
        "after": measured(),
        "n_tokens": summary.n_tokens,
        "training_s": round(summary.seconds, 1),
        "settings": vars(options)
        | {"model": str(options.model), "texts": str(options.texts), "out": str(options.out)},
    }
    write_json(options.out / "healing.json", told)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
