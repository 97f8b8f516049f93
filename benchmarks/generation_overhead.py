"""What asking costs beside the endpoint's own time.

    python benchmarks/generation_overhead.py [--requests 640] [--rounds 3]

A server in another process answers each request after 50 ms. The requests go through an `Asker` with a new cache,
16 at once. The ideal is requests x 50 ms / 16. The best round counts: other work on the machine only adds. `sockets`
is the same with bare sockets, no client library and no cache: what this machine allows at all.
"""

import argparse
import asyncio
import json
import multiprocessing
import selectors
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from transfuse.generate.asking import Asker, run_asking
from transfuse.generate.endpoint import EndpointGenerator
from transfuse.generate.protocol import Ask, Request
from transfuse.generate.reply_cache import ReplyCache

N_AT_ONCE = 16
ANSWER_S = 0.05
QUESTION = "What is said of it? " * 100
REPLY = json.dumps(
    {
        "object": "chat.completion",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "This. " * 60}}
        ],
        "usage": {"prompt_tokens": 500, "completion_tokens": 120},
    }
).encode()
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(REPLY),
    REPLY,
)


class Answering(asyncio.Protocol):
    """One connection of a server that does as little as it can: the other process is what is measured."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if end and len(body) >= n_body_bytes(head):
            self.received = b""
            asyncio.get_running_loop().call_later(ANSWER_S, self.transport.write, RESPONSE)


def serve(ready: Connection) -> None:
    """Answer chat requests after `ANSWER_S` until killed; sends the port first."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    # The usual selector rounds waits up to whole milliseconds.
    asyncio.SelectorEventLoop(selectors.SelectSelector()).run_until_complete(main())


def n_body_bytes(head: bytes) -> int:
    """Length of the body that follows the head of an HTTP message."""
    lines = head.lower().split(b"\r\n")
    return next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """The body of one HTTP message."""
    return await reader.readexactly(n_body_bytes(await reader.readuntil(b"\r\n\r\n")))


async def ask_by_sockets(port: int, n_requests: int) -> None:
    """As many requests at once, each connection one after another."""
    left = iter(range(n_requests))

    async def one_connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in left:
            body = json.dumps({"messages": [{"role": "user", "content": f"{number}: {QUESTION}"}]}).encode()
            writer.write(
                b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            json.loads(await read_message(reader))
        writer.close()

    await asyncio.gather(*(one_connection() for _ in range(N_AT_ONCE)))


def main() -> None:
    """Measure and print the best round of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    requests = [Request(f"{number}: {QUESTION}") for number in range(arguments.requests)]
    ideal = arguments.requests * ANSWER_S / N_AT_ONCE

    async def ask_all(ask: Ask) -> None:
        replies = await asyncio.gather(*map(ask, requests))
        assert not any(reply.error for reply in replies)

    seconds: dict[str, list[tuple[float, float]]] = {"asker": [], "sockets": []}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder, ReplyCache(Path(folder) / "replies.sqlite") as cache:
            generator = EndpointGenerator(f"openai:tiny@http://127.0.0.1:{port}/v1")
            asker = Asker(generator, cache, n_at_once=N_AT_ONCE)
            started, cpu = time.perf_counter(), time.process_time()
            run_asking(ask_all, asker)
            seconds["asker"].append((time.perf_counter() - started, time.process_time() - cpu))
            assert len(cache) == arguments.requests
        started, cpu = time.perf_counter(), time.process_time()
        asyncio.run(ask_by_sockets(port, arguments.requests))
        seconds["sockets"].append((time.perf_counter() - started, time.process_time() - cpu))
    server.kill()
    print(
        f"{arguments.requests} requests of {ANSWER_S * 1e3:.0f} ms, {N_AT_ONCE} at once, best of {arguments.rounds}"
    )
    print(f"ideal    {ideal:6.3f} s")
    for name, rounds in seconds.items():
        best, cpu = min(rounds)
        print(
            f"{name:8} {best:6.3f} s  {best / ideal:5.3f} of the ideal, "
            f"{cpu / arguments.requests * 1e3:.2f} ms of CPU a request"
        )


if __name__ == "__main__":
    main()
