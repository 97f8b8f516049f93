"""The whole writing pipeline against an endpoint that answers in 50 ms: overhead, and what becomes of every fact.

    python benchmarks/writing_pipeline.py DATA [--documents super-bowl-2023 ...] [--scale 10] [--rounds 3]

DATA is a folder with one folder a document, each holding document.md, facts.jsonl and qa.jsonl. A server in another
process answers as a strong model would, from these files (tests/strong_endpoint.py), 50 ms after each request. Every
document becomes facts and verified questions through `transfuse inject --stop-after questions`, 16 requests at once,
with a new cache; `all together` is one run over all of them. The ideal is requests x 50 ms / 16; the time is that of
the two writing stages, the opening of connections and the waiting of later requests for earlier ones included.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from generation_overhead import ANSWER_S, N_AT_ONCE, read_message

from strong_endpoint import StrongModel

TOGETHER = "all together"


def gather(folders: list[Path], place: Path) -> Path:
    """One folder with the documents, facts and questions of all, ids made different."""
    (place / "documents").mkdir(parents=True)
    for name, key in (("facts.jsonl", "id"), ("qa.jsonl", "fact")):
        rows: list[str] = []
        for folder in folders:
            for text in (folder / name).read_text(encoding="utf-8").splitlines():
                row = json.loads(text)
                if key in row:
                    row[key] = f"{folder.name}/{row[key]}"
                rows.append(json.dumps(row))
        (place / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    for folder in folders:
        text = (folder / "document.md").read_text(encoding="utf-8")
        (place / "documents" / f"{folder.name}.md").write_text(text, encoding="utf-8")
    return place


def serve(folder: Path, ready: Connection) -> None:
    """Answer chat requests from a document's files until killed; sends the port first."""
    model = StrongModel.of_folder(folder)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                body = json.loads(await read_message(reader))
                due = loop.time() + ANSWER_S
                message = {"role": "assistant", "content": model(body)}
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                reply = json.dumps({"object": "chat.completion", "choices": [choice]}).encode()
                await asyncio.sleep(max(0.0, due - loop.time()))
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                writer.write(head % len(reply) + reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def write(folder: Path, port: int, scale: int, out: Path) -> tuple[int, float]:
    """Requests and seconds of the writing stages of one run with a new cache."""
    documents = folder / "documents" if (folder / "documents").is_dir() else folder / "document.md"
    command = [sys.executable, "-m", "transfuse.cli", "inject", str(documents), "--out", str(out)]
    command += ["--model", "smollm2-135m", "--generator", f"openai:strong@http://127.0.0.1:{port}/v1"]
    command += ["--scale", str(scale), "--stop-after", "questions"]
    models = Path(os.environ.get("TRANSFUSE_CACHE", Path.home() / ".cache" / "transfuse")) / "models"
    cache = out.with_name(out.name + "-cache")
    cache.mkdir()
    (cache / "models").symlink_to(models)
    subprocess.run(command, check=True, env=os.environ | {"TRANSFUSE_CACHE": str(cache)}, capture_output=True)
    n_requests, seconds = 0, 0.0
    for stage in ("facts", "pairs"):
        n_requests += json.loads((out / stage / "counts.json").read_text(encoding="utf-8"))["n_sent"]
        seconds += json.loads((out / stage / "done.json").read_text(encoding="utf-8"))["seconds"]
    return n_requests, seconds


def line(name: str, folder: Path, scale: int, n_rounds: int) -> str:
    """The table's line of one document: its best round."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(folder, theirs), daemon=True)
    server.start()
    port = ours.recv()
    with tempfile.TemporaryDirectory() as place:
        runs = [
            (*write(folder, port, scale, out), out)
            for out in (Path(place) / str(number) for number in range(n_rounds))
        ]
        n_requests, seconds, out = min(runs, key=lambda run: run[1])
        told = [json.loads(row) for row in (out / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
        sentences = [row for row in told if row["kind"] == "sentence"]
        n_silent = sum(row["fate"] != "facts" for row in sentences)
        facts = Counter(row["fate"] for row in told if row["kind"] == "fact")
        n_pairs = len((out / "qa.jsonl").read_text(encoding="utf-8").splitlines())
    server.kill()
    ideal = n_requests * ANSWER_S / N_AT_ONCE
    return (
        f"| {name} | {len(sentences)} | {n_silent} | {facts.total()} | {facts['covered']} | {n_pairs} "
        f"| {n_requests} | {seconds:.2f} | {seconds / ideal:.2f} |"
    )


def main() -> None:
    """Run every document, then all of them together, and print one line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--documents", nargs="+")
    parser.add_argument("--scale", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    names = arguments.documents or sorted(p.parent.name for p in arguments.data.glob("*/qa.jsonl"))
    folders = [arguments.data / name for name in names]
    print("| document | sentences | without a fact | facts | covered | pairs | requests | s | x ideal |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for folder in folders:
        print(line(folder.name, folder, arguments.scale, arguments.rounds), flush=True)
    with tempfile.TemporaryDirectory() as place:
        if len(folders) > 1:
            together = gather(folders, Path(place) / "all")
            print(line(TOGETHER, together, arguments.scale, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
