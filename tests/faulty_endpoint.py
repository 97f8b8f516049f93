"""A real HTTP server that speaks OpenAI's protocol, and misbehaves on demand."""

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

Answer = Callable[[dict[str, Any]], str]
"""The text of the reply to a request's body."""

Faults = Callable[[int, dict[str, Any]], str | None]
"""What goes wrong with the n-th request (from 0), by its body; None: nothing. See `FaultyEndpoint`."""


class SeenRequest(NamedTuple):
    """A chat request as it arrived."""

    body: dict[str, Any]
    headers: dict[str, str]
    """Names in lower case."""
    at_s: float
    """Monotonic time."""


class FaultyEndpoint:
    """`with FaultyEndpoint(answer, faults) as endpoint:` serves at `endpoint.url` until the block ends.

    A fault is a status, perhaps with a detail (`429`, `429:0.2` with Retry-After, `400:seed is unknown` with a
    message), or one of `hang` (until the end), `cut` (in the middle of the body), `malformed`, `empty`,
    `no-choice`, `length` (the reply, marked as cut), `silent-length`, `refusal`, `redirect:URL`.
    """

    def __init__(
        self,
        answer: Answer = lambda body: "yes",
        faults: Faults = lambda number, body: None,
        *,
        models: Sequence[str] = ("tiny",),
        key: str | None = None,
        port: int = 0,
    ) -> None:
        self.answer, self.faults, self.models, self.key = answer, faults, list(models), key
        self.requests: list[SeenRequest] = []
        """Chat requests in order of arrival."""
        self.n_lists = 0
        """How often the models were listed."""
        self.n_connections = 0
        """How many were made."""
        self.n_open = self.most_open = 0
        """Requests in hand, now and at most."""
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.endpoint = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.cut_all()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    endpoint: FaultyEndpoint

    def __init__(self, *args: Any) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        self.endpoint.n_connections += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def cut_all(self) -> None:
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        endpoint = self.server.endpoint
        endpoint.n_lists += 1
        if endpoint.key is not None and self.headers.get("authorization") != f"Bearer {endpoint.key}":
            self._send_json(401, {"error": {"message": "no such key"}})
        elif self.path != "/v1/models":
            self._send_json(404, {"detail": "Not Found"})
        else:
            self._send_json(200, {"object": "list", "data": [{"id": name} for name in endpoint.models]})

    def do_POST(self) -> None:
        endpoint = self.server.endpoint
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        seen = SeenRequest(
            body, {name.lower(): value for name, value in self.headers.items()}, time.monotonic()
        )
        with endpoint.lock:
            number = len(endpoint.requests)
            endpoint.requests.append(seen)
            endpoint.n_open += 1
            endpoint.most_open = max(endpoint.most_open, endpoint.n_open)
        try:
            self._reply(body, endpoint.faults(number, body) or self._own_fault(body))
        finally:
            with endpoint.lock:
                endpoint.n_open -= 1

    def _own_fault(self, body: dict[str, Any]) -> str:
        endpoint = self.server.endpoint
        given = self.headers.get("authorization", "")
        if endpoint.key is not None and given != f"Bearer {endpoint.key}":
            return f"401:Incorrect API key provided: {given.removeprefix('Bearer ')}"
        if self.path != "/v1/chat/completions":
            return "404"
        return ""

    def _reply(self, body: dict[str, Any], fault: str) -> None:
        name, _, detail = fault.partition(":")
        if name.isdigit():
            self._refuse(int(name), detail)
        elif name == "redirect":
            self._send_json(307, {}, {"Location": detail})
        elif name == "hang":
            self.server.endpoint.ended.wait()
            self.close_connection = True
        elif name == "malformed":
            self._send(200, b'{"choices": [{"mess', {})
        elif name == "cut":
            self._send(200, b'{"choices": ', {"Content-Length": "1000"})
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self._send_json(200, self._completion(body, name))

    def _refuse(self, status: int, detail: str) -> None:
        if status in (429, 503) and detail:
            self._send_json(status, {"error": {"message": "slow down"}}, {"Retry-After": detail})
        else:
            self._send_json(status, {"error": {"message": detail or f"scripted {status}"}})

    def _completion(self, body: dict[str, Any], fault: str) -> dict[str, Any]:
        text = "" if fault in ("empty", "silent-length", "refusal") else self.server.endpoint.answer(body)
        message = {"role": "assistant", "content": text}
        if fault == "refusal":
            message["refusal"] = "I would rather not."
        reason = "length" if fault.endswith("length") else "stop"
        choices = [] if fault == "no-choice" else [{"index": 0, "finish_reason": reason, "message": message}]
        n_prompt = sum(len(turn["content"].split()) for turn in body["messages"])
        n_reply = len(text.split())
        usage = {"prompt_tokens": n_prompt, "completion_tokens": n_reply, "total_tokens": n_prompt + n_reply}
        return {"object": "chat.completion", "model": body["model"], "choices": choices, "usage": usage}

    def _send_json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), headers or {})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(data))} | headers
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""
