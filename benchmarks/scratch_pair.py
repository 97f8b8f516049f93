"""A larger and a smaller model trained from nothing on the same texts: a teacher and a student whose past is known.

    python benchmarks/scratch_pair.py --texts DATA/text --out PAIR

writes PAIR/tokenizer-only parts into both PAIR/teacher and PAIR/student: byte-level BPE of 4,096 tokens learned from
the training texts, Llama architecture with grouped queries. Both read the same windows in an order drawn from the
seed. A killed run continues from its checkpoint. Prints bits per byte on the held-out texts.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from transfuse.evaluate.bits_per_byte import bits_per_byte, load_texts, text_losses
from transfuse.io.chat import prompt_format
from transfuse.io.files import write_json
from transfuse.io.models import save_model
from transfuse.train.batches import TrainingRow
from transfuse.train.loop import train
from transfuse.train.settings import TrainSettings

DOMAINS = ("wiki", "code", "math")
SHAPES = {
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
}
LEARNING_RATES = {"teacher": 8e-4, "student": 1.5e-3}
"""With steps of 2,048 tokens instead of 512 the teacher ended above its student (benchmarks/LOG.md)."""

VOCABULARY, WINDOW_TOKENS, END = 4096, 256, "<|end|>"


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from the texts."""
    learned = ByteLevelBPETokenizer()
    learned.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=learned._tokenizer, eos_token=END, pad_token=END, model_max_length=2048
    )


def windows(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[TrainingRow]:
    """All texts in one line, cut into windows whose every token but the first is learned."""
    ids = [
        token
        for text in texts
        for token in [*tokenizer(text, verbose=False)["input_ids"], tokenizer.eos_token_id]
    ]
    cut = [ids[start : start + WINDOW_TOKENS] for start in range(0, len(ids), WINDOW_TOKENS)]
    return [TrainingRow(part, 1) for part in cut if len(part) > 1]


def main() -> None:
    """Train both and measure them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=list(SHAPES), default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    learned = {name: load_texts(options.texts / f"{name}.train.jsonl") for name in DOMAINS}
    held_out = {name: load_texts(options.texts / f"{name}.eval.jsonl") for name in DOMAINS}
    tokenizer = make_tokenizer([text for texts in learned.values() for text in texts])
    rows = windows(tokenizer, [text for texts in learned.values() for text in texts])
    for role, shape in SHAPES.items():
        if options.only not in (None, role):
            continue
        settings = TrainSettings(
            method="full",
            learning_rate=LEARNING_RATES[role],
            n_epochs=options.epochs,
            batch_rows=2,
            weight_decay=0.1,
            max_tokens_per_pass=4096,
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
            **shape,
        )
        model = LlamaForCausalLM(config)
        started = time.monotonic()

        def on_step(progress: object, role: str = role) -> None:
            log = progress.log  # type: ignore[attr-defined]
            if log.step % 20 == 0:
                print(
                    f"{role} step {log.step}/{progress.n_steps} loss {log.loss:.3f} "  # type: ignore[attr-defined]
                    f"{progress.tokens_per_s:.0f} tokens/s, {progress.seconds_left:.0f} s left",
                    flush=True,
                )  # type: ignore[attr-defined]

        summary = train(
            model,
            rows,
            settings,
            seed=options.seed,
            compute_dtype=torch.float32,
            pad_id=tokenizer.pad_token_id,
            folder=options.out / f"{role}-training",
            on_step=on_step,
        )
        save_model(model, tokenizer, options.out / role)
        prompts = prompt_format(tokenizer)
        measured = {
            name: bits_per_byte(text_losses(model, prompts, texts, torch.float32), options.seed)._asdict()
            for name, texts in held_out.items()
        }
        told = {
            "role": role,
            "parameters": sum(p.numel() for p in model.parameters()),
            "n_tokens": summary.n_tokens,
            "training_s": round(summary.seconds, 1),
            "wall_s": round(time.monotonic() - started, 1),
            "threads": options.threads,
            "bits_per_byte": measured,
        }
        write_json(options.out / f"{role}.json", told)
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
