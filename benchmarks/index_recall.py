"""Recall and speed of the index's graph against exact search, level by level.

    OMP_NUM_THREADS=1 python benchmarks/index_recall.py DATA --cache FILE [--n 100000] [--embed-only]

DATA is a folder with `injection/`, `tasks/` and `text/`. Indexed are embeddings (MiniLM, 384 dimensions) of overlapping
windows of 24 words, one every 8 words, over its texts and the standard library's documentation. They are embedded once
into the cache file (`--embed-only`: about an hour on one slow core; a killed run goes on). Searched for are other
windows of the same texts, and questions about them. Everything is compared one query at a time, on one thread each, in
one process: exact search in numpy (a matrix product, then the ten best), and the graph at each level. Medians over
rounds that take turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from window_texts import questions, windows

from transfuse.io.hardware import hardware_text
from transfuse.knowledge.embedding_cache import CachedEmbedder
from transfuse.knowledge.embeddings import load_embedder
from transfuse.knowledge.graphs import save_graph
from transfuse.knowledge.records import HnswSettings
from transfuse.knowledge.vectors import LEVELS, VECTORS_FILE, VectorIndex

N_QUERIES, TOP_N, N_ROUNDS = 1000, 10, 5
Search = Callable[[np.ndarray], np.ndarray]


def embedded(data: Path, cache: Path, n: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows to index, and queries by kind."""
    embedder = CachedEmbedder(load_embedder("minilm-l6-v2"), cache)
    asked = embedder.embed(questions(data, N_QUERIES))
    started = time.monotonic()

    def show(done: int, total: int) -> None:
        print(f"embedded {done} of {total}, {time.monotonic() - started:.0f} s", flush=True)

    rows = embedder.embed(windows(data, n + N_QUERIES), show)
    return rows[N_QUERIES:], {"windows": rows[:N_QUERIES], "questions": asked}


def exact_search(rows: np.ndarray) -> Search:
    """What a user would write in numpy."""

    def search(query: np.ndarray) -> np.ndarray:
        scores = rows @ query
        best = np.argpartition(scores, -TOP_N)[-TOP_N:]
        return best[np.argsort(-scores[best])]

    return search


def seconds_a_query(search: Search, queries: np.ndarray) -> float:
    """Wall time of one query, over a round."""
    started = time.perf_counter()
    for query in queries:
        search(query)
    return (time.perf_counter() - started) / len(queries)


def main() -> None:
    """Build, search, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--embed-only", action="store_true")
    parser.add_argument("--connectivity", type=int)
    parser.add_argument("--expansion-add", type=int)
    parser.add_argument("--dtype")
    arguments = parser.parse_args()
    rows, queries = embedded(arguments.data, arguments.cache, arguments.n)
    if arguments.embed_only:
        return
    given = {name: getattr(arguments, name) for name in ("connectivity", "expansion_add", "dtype")}
    settings = HnswSettings.model_validate({name: value for name, value in given.items() if value})
    print(f"{len(rows)} x {rows.shape[1]}; {settings}; {hardware_text()}")
    with TemporaryDirectory() as folder:
        measure(rows, queries, settings, Path(folder))


def measure(rows: np.ndarray, queries: dict[str, np.ndarray], settings: HnswSettings, folder: Path) -> None:
    """One table: a line for each level and kind of query."""
    started = time.perf_counter()
    np.save(folder / VECTORS_FILE, rows)
    save_graph(folder, rows, settings)
    print(f"graph built in {time.perf_counter() - started:.1f} s")
    index = VectorIndex.load(folder, has_graph=True)
    exact = exact_search(rows)
    searches: dict[str, Search] = {"exact (numpy)": exact}
    for level, breadth in enumerate(LEVELS):
        searches[f"{level} ({breadth})"] = lambda query, level=level: index.search(query[None], TOP_N, level)[
            0
        ][0]
    print(
        "| queries | level (breadth) | recall@10 | ms a query | queries/s | x exact |\n|---|---|---|---|---|---|"
    )
    for kind, chosen in queries.items():
        right = [set(exact(query).tolist()) for query in chosen]
        took: dict[str, list[float]] = {name: [] for name in searches}
        for _ in range(N_ROUNDS):
            for name, search in searches.items():
                took[name].append(seconds_a_query(search, chosen[: N_QUERIES // 5]))
        for name, search in searches.items():
            recall = np.mean(
                [
                    len(set(search(query).tolist()) & best) / TOP_N
                    for query, best in zip(chosen, right, strict=True)
                ]
            )
            ms = 1e3 * statistics.median(took[name])
            ratio = statistics.median(a / b for a, b in zip(took["exact (numpy)"], took[name], strict=True))
            print(f"| {kind} | {name} | {recall:.4f} | {ms:.3f} | {1e3 / ms:.0f} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
