"""Who may reach the service, and what its worker processes are told."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest

from transfuse.errors import RecipeError
from transfuse.recipes import serve
from transfuse.recipes.serve_settings import ServeSettings, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "LocalHost", "::1"])
def test_only_this_machine_reaches_a_loopback_address(host: str):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["", "0.0.0.0", "::", "10.0.0.1", "127.0.0.1.example.org", "localhost.example.org"],  # noqa: S104
)
def test_others_may_reach_any_other_address(host: str):
    assert not is_loopback(host)


def test_settings_that_workers_read_hold_the_path_of_the_keys_only():
    assert {field.name for field in fields(ServeSettings)} == {
        "path",
        "host",
        "port",
        "api_key_file",
        "no_key",
        "n_workers",
        "reranker",
        "trust_remote_code",
    }


def test_workers_that_cannot_start_are_a_failure(monkeypatch: pytest.MonkeyPatch):
    class Supervisor:
        def __init__(self, config: Any, sockets: list[socket.socket]) -> None:
            assert json.loads(os.environ["TRANSFUSE_SERVE"])["n_workers"] == 2
            ended = [SimpleNamespace(process=SimpleNamespace(exitcode=code)) for code in (-15, 3)]
            self.processes = ended

        def run(self) -> None:
            """Returns at once, as uvicorn's does when a worker cannot start."""

    monkeypatch.setenv("TRANSFUSE_SERVE", "")
    monkeypatch.setattr("uvicorn.supervisors.Multiprocess", Supervisor)
    monkeypatch.setattr("transfuse.knowledge.catalogue.Catalogue", lambda path, load: None)
    for left_out in ("_index_lines", "_take_interrupts_alone", "_say_when_answered"):
        monkeypatch.setattr(serve, left_out, lambda *_: [])
    monkeypatch.setattr(serve, "_LOG", {"version": 1, "incremental": True})
    with socket.socket() as listening, pytest.raises(RecipeError, match="the worker processes cannot start"):
        serve._serve_by_workers(ServeSettings("indexes", n_workers=2), listening, print, "ready")


def test_a_worker_ends_with_its_supervisor(monkeypatch: pytest.MonkeyPatch):
    parents = iter([7, 7, 1])
    sent: list[tuple[int, int]] = []
    told: list[str] = []
    real_sleep = asyncio.sleep

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[str]:
        yield "state"
        told.append("ended")

    async def story() -> None:
        async with serve._ending_with(7, lifespan)("app") as state:
            assert state == "state"
            while not sent:
                await real_sleep(0)

    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "kill", lambda *arguments: sent.append(arguments))
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: real_sleep(0))
    asyncio.run(story())
    assert sent == [(os.getpid(), signal.SIGTERM)]
    assert told == ["ended"]
