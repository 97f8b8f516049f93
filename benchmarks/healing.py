"""A sub-cloned student trained on plain text until it is a language model again: a recorded healing run.

    transfuse transfer extract --teacher smollm2-135m --as model --reduce coupled --layers proportional \
        --shape n_layers=12,hidden=384,n_heads=6,n_kv_heads=2,n_neurons=1024 --task SEEDS --out runs/clone
    python benchmarks/healing.py --model runs/clone/model --texts DATA/text --out runs/healed
    python benchmarks/healing.py --model runs/clone/model --texts DATA/text --python-texts 12000000 --repeat 4 \
        --epochs 2 --window 512 --batch-rows 32 --out runs/healed      (an H100: a minute or two)

All weights train. A killed run continues from its checkpoint. Prints bits per byte on held-out texts, before and after;
with `--beside MODEL` (the teacher) those of another model too.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from python_texts import apart_from, documentation_texts, library_texts

from transfuse.evaluate.bits_per_byte import bits_per_byte, load_texts, text_losses
from transfuse.io.chat import PromptFormat, prompt_format
from transfuse.io.files import write_json
from transfuse.io.models import LoadedModel, load_model, save_model
from transfuse.train.batches import TrainingRow
from transfuse.train.loop import Progress, train
from transfuse.train.settings import TrainSettings

DOMAINS = ("wiki", "code", "math")
MOST_CHARACTERS = 4000
"""Of a text of the data folder, where tokens are limited."""


def training_rows(
    options: argparse.Namespace, prompts: PromptFormat, held_out: dict[str, list[str]]
) -> tuple[list[TrainingRow], dict[str, int]]:
    """Windows of all texts in one line, and counts."""
    own = [text for name in DOMAINS for text in load_texts(options.texts / f"{name}.train.jsonl")]
    if options.tokens:  # domains take turns
        by_domain = (load_texts(options.texts / f"{name}.train.jsonl") for name in DOMAINS)
        own = [text[:MOST_CHARACTERS] for texts in zip(*by_domain, strict=False) for text in texts]
    more: list[str] = []
    n_shared = 0
    if options.python_texts:
        found = [*library_texts(), *documentation_texts(options.python_texts)]
        more, n_shared = apart_from(found, [text for texts in held_out.values() for text in texts])
    ids: list[int] = []
    for text in own * options.repeat + more:
        ids += prompts.encode_text(text, ends=True)
    ids = ids[: options.tokens]
    starts = range(0, len(ids) - 1, options.window)
    told = {
        "n_own_texts": len(own),
        "n_python_texts": len(more),
        "n_left_out_for_shared_lines": n_shared,
        "n_tokens_an_epoch": len(ids),
    }
    return [TrainingRow(ids[start : start + options.window], 1) for start in starts], told


def measured(loaded: LoadedModel, held_out: dict[str, list[str]], n_texts: int) -> dict[str, Any]:
    """Bits per byte of a model on held-out texts."""
    prompts = prompt_format(loaded.tokenizer)
    return {
        name: bits_per_byte(
            text_losses(loaded.model, prompts, texts[:n_texts], loaded.precision), 17
        )._asdict()
        for name, texts in held_out.items()
    }


def on_step(progress: Progress) -> None:
    """Print where training stands."""
    if progress.log.step % 50 == 0:
        left = f"{progress.tokens_per_s:.0f} tokens/s, {progress.seconds_left:.0f} s left"
        print(f"step {progress.log.step}/{progress.n_steps} loss {progress.log.loss:.3f} {left}", flush=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--beside")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument(
        "--python-texts", type=int, default=0, help="bytes of docstrings, beside the standard library"
    )
    parser.add_argument(
        "--repeat", type=int, default=1, help="how often the data folder's texts stand in an epoch"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, help="tokens of an epoch, the first; none means all")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument("--n-measured", type=int, default=40, help="held-out texts of each domain")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=17)
    return parser.parse_args()


def main() -> None:
    """Heal and measure."""
    options = parsed()
    held_out = {name: load_texts(options.texts / f"{name}.eval.jsonl") for name in DOMAINS}
    told: dict[str, Any] = {}
    if options.beside:
        other = load_model(options.beside, precision=options.precision)
        told["beside"] = measured(other, held_out, options.n_measured)
        del other
    loaded = load_model(options.model, precision=options.precision, trainable=True)
    rows, counts = training_rows(options, prompt_format(loaded.tokenizer), held_out)
    told |= {"before": measured(loaded, held_out, options.n_measured), "rows": counts}
    print(json.dumps(told), flush=True)
    on_cpu = loaded.device.type == "cpu"
    settings = TrainSettings(
        method="full",
        learning_rate=options.learning_rate,
        n_epochs=options.epochs,
        batch_rows=options.batch_rows,
        max_tokens_per_pass=None if on_cpu else options.batch_rows * options.window,
        packing="off",
        weight_decay=0.1,
    )
    summary = train(
        loaded.model,
        rows,
        settings,
        seed=options.seed,
        compute_dtype=loaded.precision,
        pad_id=prompt_format(loaded.tokenizer).pad_id,
        folder=options.out / "training",
        on_step=on_step,
    )
    save_model(loaded.model, loaded.tokenizer, options.out / "model")
    told |= {
        "after": measured(loaded, held_out, options.n_measured),
        "n_steps": summary.n_steps,
        "n_tokens": summary.n_tokens,
        "training_s": round(summary.seconds, 1),
        "parameters": sum(weight.numel() for weight in loaded.model.parameters()),
        "settings": {name: str(value) for name, value in vars(options).items()},
    }
    write_json(options.out / "healing.json", told)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
