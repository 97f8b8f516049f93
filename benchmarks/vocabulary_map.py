"""Seconds to map one vocabulary onto another by each kind, and of comparing all pairs.

    python benchmarks/vocabulary_map.py SOURCE TARGET [--threads 2] [--checked 500]

SOURCE and TARGET are model references, such as a Gemma 3 .gguf file and smollm2-135m. Timed, one after the other and
without the cache of maps: the bytes of both vocabularies, and each kind of map. Beside them all pairs are compared
for a random sample of the source tokens, which must give the same images: in a plain loop (one pair at a time, a few
tokens) and by rapidfuzz's cdist (SIMD, one core, all of the sample); both are projected to the whole vocabulary.
"""

import argparse
import random
import time
from collections import Counter

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from transfuse.fuse.token_images import as_text, ids_by_bytes, token_images
from transfuse.io.hardware import hardware_text
from transfuse.io.models import load_tokenizer
from transfuse.io.token_bytes import token_bytes

N_LOOPED = 5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checked", type=int, default=500)
    args = parser.parse_args()
    source, target = load_tokenizer(args.source), load_tokenizer(args.target)
    print(f"{hardware_text()}; {args.threads} threads", flush=True)

    start = time.perf_counter()
    tokens = token_bytes(source)
    print(f"bytes of {len(tokens)} source tokens: {time.perf_counter() - start:.1f} s", flush=True)
    ids = {}
    for kind in ("exact", "retokenize", "min-edit"):
        start, start_cpu = time.perf_counter(), time.process_time()
        images = token_images(tokens, target, kind, n_threads=args.threads)
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        ids[kind] = images.ids
        counts = sorted(Counter(images.distances.tolist()).items())
        print(f"{kind}: {seconds:.1f} s ({cpu:.1f} s of CPU); distance: tokens {dict(counts)}", flush=True)

    by_id = sorted((index, as_text(token)) for token, index in ids_by_bytes(target).items())
    targets = [text for _, text in by_id]
    places = [place for place, token in enumerate(tokens) if token]
    places = random.Random(0).sample(places, min(args.checked, len(places)))  # noqa: S311 - no secret
    sources = [as_text(tokens[place] or b"") for place in places]
    start = time.perf_counter()
    distances = cdist(sources, targets, scorer=Levenshtein.distance, dtype=np.uint16)
    nearest = distances.argmin(axis=1)
    whole = (time.perf_counter() - start) / len(sources) * len(tokens)
    assert [by_id[place][0] for place in nearest] == ids["min-edit"][places].tolist(), "another image"
    print(f"{len(sources)} random tokens have the images of comparing all {len(targets)} targets")
    start = time.perf_counter()
    for text, expected in zip(sources[:N_LOOPED], nearest, strict=False):
        found = min(range(len(targets)), key=lambda place: Levenshtein.distance(text, targets[place]))
        assert found == expected
    looped = (time.perf_counter() - start) / N_LOOPED * len(tokens)
    print(
        f"all pairs: {looped / 60:.0f} minutes in a plain loop, {whole:.0f} s by cdist (projected, one core)"
    )


if __name__ == "__main__":
    main()
