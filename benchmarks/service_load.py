"""A minute of mixed requests to the index service while an index is rebuilt and swapped; and what HTTP costs.

    python benchmarks/service_load.py DOCS [--seconds 60] [--clients 4] [--workers 1]

DOCS is a folder of documents. An index of them is built and served by `transfuse index serve` in a process of its own,
with an API key. First single requests take turns with the same searches in this process: the difference of the medians
is the service's overhead. Then clients ask without pause (text and vector searches, all modes, lists of indexes) while
a third process builds the served index anew, adds to it and removes from it, over and over. Printed are the number of
failed requests, latencies by kind, and how often the index was exchanged.
"""

import argparse
import asyncio
import itertools
import os
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import numpy as np
import torch

from transfuse.io.documents import read_documents
from transfuse.io.hardware import hardware_text
from transfuse.knowledge.embeddings import load_embedder
from transfuse.knowledge.index import open_index
from transfuse.text.sections import split_sections
from transfuse.text.sentences import split_sentences

N_SINGLE = 200
LINE = [sys.executable, "-m", "transfuse.cli", "index"]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def serving(folder: Path, key_file: Path, workers: int) -> Iterator[str]:
    """The service in a process of its own; yields its address once it is ready."""
    port = free_port()
    command = [*LINE, "serve", str(folder), "--port", str(port), "--api-key-file", str(key_file)]
    process = subprocess.Popen([*command, "--workers", str(workers)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def sentences_of(path: Path) -> list[str]:
    """Sentences of the documents, to search for."""
    texts = [s.text for document in read_documents(path)[0] for s in split_sections(document)[0]]
    return [text[start:end] for text in texts for start, end in split_sentences(text)]


async def overhead(address: str, key: str, index_path: Path, queries: list[str]) -> None:
    """Median seconds of the same searches through HTTP and in this process, in turns."""
    torch.set_num_threads(1)  # as in the service
    index, embedder = open_index(index_path), load_embedder("minilm-l6-v2")
    vectors = embedder.embed_queries(queries)
    took: dict[str, list[float]] = {
        "text, here": [],
        "text, HTTP": [],
        "vector, here": [],
        "vector, HTTP": [],
    }

    async def ask(path: str, body: dict[str, Any]) -> float:
        started = time.perf_counter()
        async with session.post(f"{address}{path}", json=body) as response:
            answer = await response.json()
            if response.status != 200 or not answer["data"]:
                raise SystemExit(f"{path}: {response.status} {answer}")
        return time.perf_counter() - started

    async with aiohttp.ClientSession(headers={"x-api-key": key}) as session:
        for query, vector in zip(queries, vectors, strict=True):
            base = {"top_n": 10, "contract_id": index_path.name}
            took["text, HTTP"].append(await ask("/hnsw/search", {**base, "query": query, "rerank": True}))
            took["vector, HTTP"].append(
                await ask("/hnsw/query", {**base, "vector": vector.tolist(), "level": 3})
            )
            started = time.perf_counter()
            index.search([query], embedder, top_n=10, rerank="exact")
            between = time.perf_counter()
            index.search_vectors(vector[None], top_n=10, level=3)
            took["text, here"].append(between - started)
            took["vector, here"].append(time.perf_counter() - between)
    p50 = {name: 1e3 * statistics.median(values) for name, values in took.items()}
    print("; ".join(f"{name} p50 {ms:.2f} ms" for name, ms in p50.items()))
    for kind in ("text", "vector"):
        print(f"overhead, {kind} search: {p50[f'{kind}, HTTP'] - p50[f'{kind}, here']:.2f} ms at p50")


async def rebuild(documents: Path, index_path: Path, until: float) -> int:
    """Build anew, remove and add, until the time is over; how often the index was exchanged."""
    name = read_documents(documents)[0][0].name
    lines = [
        ["build", str(documents), "--out", str(index_path), "--overwrite"],
        ["remove", str(index_path), name],
        ["add", str(index_path), str(documents)],
    ]
    n_done = 0
    for line in itertools.cycle(lines):
        if time.monotonic() > until:
            return n_done
        process = await asyncio.create_subprocess_exec(
            *LINE, *line, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        _, err = await process.communicate()
        if process.returncode:
            raise SystemExit(f"index {line[0]}: {err.decode()}")
        n_done += 1
    return n_done


async def load(
    address: str, key: str, documents: Path, index_path: Path, arguments: argparse.Namespace
) -> None:
    """Ask from several clients at once while the index is rebuilt."""
    queries = sentences_of(documents)
    rng = np.random.default_rng(17)
    until = time.monotonic() + arguments.seconds
    took: dict[str, list[float]] = {}
    failed: Counter[str] = Counter()

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        for turn in itertools.count(number):
            if time.monotonic() > until:
                return
            base = {"top_n": int(rng.integers(1, 30)), "contract_id": index_path.name}
            query = queries[int(rng.integers(len(queries)))]
            kinds: list[tuple[str, str, dict[str, Any] | None]] = [
                ("hybrid", "/hnsw/search", {**base, "query": query, "rerank": bool(turn % 2)}),
                ("lexical", "/hnsw/search", {**base, "query": query, "mode": "lexical", "rerank": False}),
                (
                    "vector",
                    "/hnsw/query",
                    {**base, "vector": rng.normal(size=384).tolist(), "level": turn % 5},
                ),
                ("list", "/indexes", None),
            ]
            kind, path, body = kinds[turn % len(kinds)]
            started = time.perf_counter()
            try:
                method = "GET" if body is None else "POST"
                async with session.request(method, f"{address}{path}", json=body) as response:
                    answer = await response.read()
                    if response.status != 200:
                        failed[f"{kind}: {response.status} {answer[:200]!r}"] += 1
            except aiohttp.ClientError as err:
                failed[f"{kind}: {type(err).__name__} {err}"] += 1
            took.setdefault(kind, []).append(time.perf_counter() - started)

    async with aiohttp.ClientSession(headers={"x-api-key": key}) as session:
        clients = [client(session, number) for number in range(arguments.clients)]
        n_swaps, *_ = await asyncio.gather(rebuild(documents, index_path, until), *clients)
    n_requests = sum(len(values) for values in took.values())
    print(f"{n_requests} requests in {arguments.seconds} s, {sum(failed.values())} failed, {n_swaps} swaps")
    for reason, n in failed.most_common(5):
        print(f"  {n} x {reason}")
    print("| requests | n | p50 ms | p99 ms | longest ms |\n|---|---|---|---|---|")
    for kind, values in sorted(took.items()):
        ms = 1e3 * np.array(values)
        print(
            f"| {kind} | {len(ms)} | {np.percentile(ms, 50):.1f} | {np.percentile(ms, 99):.1f} | {ms.max():.0f} |"
        )


def main() -> None:
    """Build, serve, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("documents", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "indexes"
        index_path = folder / "documents"
        folder.mkdir()
        key_file = Path(temporary) / "keys"
        key = secrets.token_urlsafe(32)
        key_file.touch(mode=0o600)
        key_file.write_text(key + "\n", encoding="utf-8")
        subprocess.run([*LINE, "build", str(arguments.documents), "--out", str(index_path)], check=True)
        print(f"{open_index(index_path).info.n_passages} passages; {os.cpu_count()} cores; {hardware_text()}")
        with serving(folder, key_file, arguments.workers) as address:
            asyncio.run(overhead(address, key, index_path, sentences_of(arguments.documents)[:N_SINGLE]))
            asyncio.run(load(address, key, arguments.documents, index_path, arguments))


if __name__ == "__main__":
    main()
