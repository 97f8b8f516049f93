"""Model folders with the sizes of Llama-2, to plan with: a configuration, the bundled tokenizer, and no weights.

    python examples/shapes.py shapes/      writes shapes/13b, shapes/7b and shapes/texts.jsonl (about a million tokens)

A plan needs sizes, not weights. The texts are one article again and again: good for counting, and for nothing else.
"""

import json
import sys
from pathlib import Path

from transformers import LlamaConfig

from transfuse.io.models import load_tokenizer

SIZES = {
    "13b": {
        "hidden_size": 5120,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "intermediate_size": 13824,
    },
    "7b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
    },
}
N_VOCABULARY = 32_000
N_COPIES = 480
"""Of the article, which has about 2,100 tokens."""


def main() -> None:
    """Write the folders and the texts."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python examples/shapes.py FOLDER")
    folder, tokenizer = Path(sys.argv[1]), load_tokenizer("smollm2-135m")
    for name, sizes in SIZES.items():
        config = LlamaConfig(
            vocab_size=N_VOCABULARY, architectures=["LlamaForCausalLM"], dtype="bfloat16", **sizes
        )
        config.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    article = Path(__file__).with_name("orvessa").joinpath("document.md").read_text(encoding="utf-8")
    row = json.dumps({"text": article}) + "\n"
    (folder / "texts.jsonl").write_text(row * N_COPIES, encoding="utf-8")


if __name__ == "__main__":
    main()
