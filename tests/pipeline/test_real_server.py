"""Writing through a real server of another project: `transformers serve` on loopback."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

START_S = 120


@pytest.fixture(scope="module")
def served(make_model_folder: Callable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The reference of a tiny random chat model behind `transformers serve`."""
    pytest.importorskip("fastapi", reason="transformers serve needs fastapi and uvicorn")
    folder = make_model_folder("served", max_position_embeddings=8192)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).with_name("transformers"))
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = (tmp_path_factory.mktemp("server") / "log").open("w")
    server = subprocess.Popen(
        [program, "serve", *options, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=log,
        stderr=log,
    )
    try:
        deadline = time.monotonic() + START_S
        while server.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        assert server.poll() is None, Path(log.name).read_text()
        yield f"openai:{folder}@http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()
        log.close()


def test_what_a_real_server_says_is_read_checked_and_kept(
    served: str,
    transfuse: Callable,
    isles,
    chat_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))

    def write(out: Path):
        return transfuse(
            *("inject", isles.document, "--model", chat_folder, "--generator", served, "--out", out),
            *("--set", "writing.facts.max_new_tokens=12", "--stop-after", "facts"),
        )

    done = write(tmp_path / "one")
    assert done.code == 1
    assert "no fact was found in 8 sentences" in done.err  # random weights say nothing
    counts = json.loads((tmp_path / "one" / "facts" / "counts.json").read_text())
    assert counts["n_sent"] == counts["n_asked"] > 0
    assert counts["n_failed"] == 0
    assert counts["n_reply_tokens"] > 0
    told = [json.loads(line) for line in (tmp_path / "one" / "ledger.jsonl").read_text().splitlines()]
    assert [row["fate"] for row in told if row["kind"] == "sentence"].count("facts") == 0
    assert write(tmp_path / "two").code == 1
    again = json.loads((tmp_path / "two" / "facts" / "counts.json").read_text())
    assert (again["n_sent"], again["n_cached"]) == (0, counts["n_asked"])
