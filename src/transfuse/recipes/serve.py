"""Knowledge indexes over HTTP: check what was given, open the indexes, serve until told to stop."""

import asyncio
import contextlib
import http.client
import importlib.util
import json
import logging
import logging.config
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfuse.errors import MissingExtraError, RecipeError, TransfuseError
from transfuse.recipes.serve_settings import Say, ServeSettings, check_settings, is_loopback, listening_socket

if TYPE_CHECKING:
    from fastapi import FastAPI

    from transfuse.knowledge.catalogue import Catalogue

_ENVIRONMENT = "TRANSFUSE_SERVE"
"""Holds the settings for worker processes, as JSON: paths and numbers, no keys."""
_STARTUP_FAILED = 3  # uvicorn's supervisor gives up on a worker that ends with it, and starts others again
_GRACE_S = 2
_LOG = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {"errors": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {
        name: {"handlers": ["errors"], "level": "WARNING", "propagate": False}
        for name in ("uvicorn", "transfuse")
    },
}


def serve(settings: ServeSettings, say: Say, warn: Say) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        settings: what is served, where and to whom.
        say: told of each index, and of the address when requests are answered.
        warn: told of what may be amiss.

    Raises:
        MissingExtraError: a package of the service is not installed.
        RecipeError: host, port, key file or the number of workers is wrong.
        IndexFolderError: there is no index, or none can be opened.
        ModelError: the reranker cannot be loaded.
    """
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"the service needs {' and '.join(missing)}: pip install 'transfuse[serve]'")
    logging.config.dictConfig(_LOG)
    check_settings(settings, warn)
    listening = listening_socket(settings.host, settings.port)
    with contextlib.closing(listening):
        port = listening.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        ready = f"Serving at http://{host}:{port}/ (Ctrl-C ends it)"
        if settings.n_workers == 1:
            _serve_here(settings, listening, say, ready)
        else:
            _serve_by_workers(settings, listening, say, ready)


def _serve_here(settings: ServeSettings, listening: socket.socket, say: Say, ready: str) -> None:
    import uvicorn

    app, catalogue = _app(settings)
    for line in _index_lines(catalogue):
        say(line)
    say(ready)
    config = uvicorn.Config(app, **_uvicorn_settings())
    uvicorn.Server(config).run(sockets=[listening])


def _serve_by_workers(settings: ServeSettings, listening: socket.socket, say: Say, ready: str) -> None:
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    from transfuse.knowledge.catalogue import Catalogue

    for line in _index_lines(Catalogue(Path(settings.path), load=None)):
        say(line)
    listening.set_inheritable(True)
    os.environ[_ENVIRONMENT] = json.dumps(asdict(settings))
    config = uvicorn.Config(
        f"{__name__}:worker_app",
        factory=True,
        host=settings.host,
        port=listening.getsockname()[1],
        workers=settings.n_workers,
        timeout_worker_healthcheck=15,  # imports and models may hold all threads for a while
        **_uvicorn_settings(),
    )
    _take_interrupts_alone()
    threading.Thread(target=_say_when_answered, args=(listening, say, ready), daemon=True).start()
    supervisor = Multiprocess(config, sockets=[listening])
    supervisor.run()
    if any(worker.process.exitcode == _STARTUP_FAILED for worker in supervisor.processes):
        raise RecipeError("the worker processes cannot start; the log above says why.")


def _take_interrupts_alone() -> None:
    """Keep Ctrl-C, which a terminal sends to every process, from the workers: the supervisor ends them by SIGTERM.

    One that is just being started would else print a traceback from somewhere in its imports.
    """
    resource_tracker.ensure_running()  # which lets SIGINT through again when it is first started
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as will be in the workers, which inherit it

    def wait() -> None:
        signal.sigwait({signal.SIGINT})
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _uvicorn_settings() -> dict[str, Any]:
    return {
        "log_config": _LOG,
        "access_log": False,
        "ws": "none",
        "server_header": False,
        "timeout_graceful_shutdown": _GRACE_S,
        "proxy_headers": False,
    }


def worker_app() -> "FastAPI":
    """The app of a worker process, from the environment; one that cannot start ends the whole service."""
    from tqdm import tqdm

    settings = ServeSettings(**json.loads(os.environ[_ENVIRONMENT]))
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which SIGTERM would leave behind
    at_the_end = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until it is loaded it ends at once
    try:
        app, _ = _app(settings, lives_with=os.getppid())
    except TransfuseError as err:
        logging.getLogger(__name__).error("%s", err)
        sys.exit(_STARTUP_FAILED)
    finally:
        signal.signal(signal.SIGTERM, at_the_end)
    return app


def _app(settings: ServeSettings, lives_with: int | None = None) -> "tuple[FastAPI, Catalogue]":
    import torch

    from transfuse.knowledge.catalogue import Catalogue
    from transfuse.knowledge.embeddings import load_embedder
    from transfuse.knowledge.reranking import load_reranker
    from transfuse.knowledge.service import create_app
    from transfuse.knowledge.service_gate import ServiceLimits
    from transfuse.knowledge.service_keys import read_keys

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(
            1
        )  # a query is short: threads of one search wait for one another more than they gain
    keys = None if settings.api_key_file is None else read_keys(Path(settings.api_key_file))
    is_open = keys is None and is_loopback(settings.host)
    catalogue = Catalogue(
        Path(settings.path), partial(load_embedder, trust_remote_code=settings.trust_remote_code)
    )
    app = create_app(
        catalogue,
        keys,
        ServiceLimits(n_threads=max(4, os.cpu_count() or 1)),
        reranker=None if settings.reranker is None else load_reranker(settings.reranker),
        allowed_hosts=("127.0.0.1", "localhost", "::1", settings.host) if is_open else None,
    )
    if lives_with is not None:
        app.router.lifespan_context = _ending_with(lives_with, app.router.lifespan_context)
    return app, catalogue


def _ending_with(parent: int, lifespan: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A worker's lifespan that ends when its supervisor is gone, however that ended."""

    async def watch() -> None:
        while os.getppid() == parent:
            await asyncio.sleep(1)
        logging.getLogger(__name__).warning("the supervising process is gone; this worker ends")
        os.kill(os.getpid(), signal.SIGTERM)

    @asynccontextmanager
    async def watched(app: Any) -> AsyncIterator[Any]:
        watching = asyncio.create_task(watch())
        async with lifespan(app) as state:
            yield state
        watching.cancel()

    return watched


def _index_lines(catalogue: "Catalogue") -> list[str]:
    return [
        f"index {index_id}: {served.index.info.n_passages:,} passages"
        + (
            f"; {served.no_embedder}, so that only words and vectors are searched"
            if served.no_embedder
            else ""
        )
        for index_id, served in catalogue.served().items()
    ]


def _say_when_answered(listening: socket.socket, say: Say, ready: str) -> None:
    """Ask for `/health`, which the first worker that is ready answers, and say so."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host) or host  # noqa: S104 - any address is compared, not bound
    while True:
        connection = http.client.HTTPConnection(host, port)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                say(ready)
                return
        time.sleep(0.1)
