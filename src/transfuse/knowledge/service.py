"""The HTTP service: knowledge indexes searched by text or by vector."""

import asyncio
import copy
import functools
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar, final

import anyio.to_thread
import numpy as np
from anyio import CapacityLimiter
from fastapi import FastAPI, HTTPException, Path, Response, Security
from fastapi.responses import HTMLResponse
from fastapi.security import APIKeyHeader

from transfuse import __version__
from transfuse.errors import DataError
from transfuse.knowledge.catalogue import Catalogue, ServedIndex
from transfuse.knowledge.records import Hit, Rerank, Reranker
from transfuse.knowledge.service_errors import answer_errors, error_responses, too_busy
from transfuse.knowledge.service_gate import KEY_HEADER, Gate, ServiceLimits
from transfuse.knowledge.service_keys import ApiKeys
from transfuse.knowledge.service_page import search_page
from transfuse.knowledge.service_records import (
    FoundPassage,
    Health,
    IndexCard,
    IndexesReply,
    IndexId,
    IndexReply,
    QueryRequest,
    SearchReply,
    SearchRequest,
)

SEARCH_PATH, QUERY_PATH = "/hnsw/search", "/hnsw/query"
_DESCRIPTION = """Searches knowledge indexes: files in, the passages that answer a question out.

`contract_id` names an index; `GET /indexes` lists them. Every reply is JSON; one that is no success is
`{"success": false, "code": STATUS, "error": "what was expected, and what came"}`."""
Done = TypeVar("Done")


@final
class SearchThreads:
    """Runs searches on so many threads at once; the others wait in line, for a while."""

    def __init__(self, limits: ServiceLimits) -> None:
        self._limits = limits
        self._free = asyncio.Semaphore(limits.n_threads)
        self._threads = CapacityLimiter(limits.n_threads)
        self._n_waiting = 0

    async def run(self, search: Callable[[], Done]) -> Done:
        """What the search gives; raises HTTPException (503) where no thread gets free in time."""
        if self._n_waiting >= self._limits.max_waiting:
            raise too_busy()
        self._n_waiting += 1
        try:
            async with asyncio.timeout(self._limits.max_wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise too_busy() from None
        finally:
            self._n_waiting -= 1
        try:
            return await anyio.to_thread.run_sync(search, limiter=self._threads)
        finally:
            self._free.release()


def create_app(
    catalogue: Catalogue,
    keys: ApiKeys | None,
    limits: ServiceLimits | None = None,
    *,
    reranker: Reranker | None = None,
    allowed_hosts: Collection[str] | None = None,
) -> FastAPI:
    """The service; while it runs it looks for newer indexes.

    Swagger's page of documentation is left out, because it loads from elsewhere; `/openapi.json` is there.

    Args:
        catalogue: the indexes.
        keys: what the header `x-api-key` must hold on all but the search page, `/health` and `/openapi.json`; None
            asks for none.
        limits: of each request and of all together.
        reranker: scores the candidates of text searches again; None has that done exactly.
        allowed_hosts: names that the header `Host` may give; None allows all.

    Returns:
        An ASGI application.
    """
    limits = limits or ServiceLimits()
    app = FastAPI(
        title="Transfuse knowledge indexes",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=functools.partial(_watching, catalogue),
    )
    _add_public_routes(app, catalogue, needs_key=keys is not None)
    _add_search_routes(app, catalogue, SearchThreads(limits), one_at_a_time(reranker), keys)
    _add_index_routes(app, catalogue, keys)
    answer_errors(app)
    app.add_middleware(
        Gate,
        keys=keys,
        limits=limits,
        json_paths=(SEARCH_PATH, QUERY_PATH),
        allowed_hosts=allowed_hosts,
    )
    app.openapi = _described_by_indexes(app.openapi, catalogue)
    return app


def one_at_a_time(reranker: Reranker | None) -> Reranker | None:
    """The same reranker for many threads, which take turns."""
    if reranker is None:
        return None
    turn = threading.Lock()

    def score(query: str, texts: Sequence[str]) -> list[float]:
        with turn:
            return reranker(query, texts)

    return score


@asynccontextmanager
async def _watching(catalogue: Catalogue, _: FastAPI) -> AsyncIterator[None]:
    with catalogue.watched():
        yield


def _add_public_routes(app: FastAPI, catalogue: Catalogue, *, needs_key: bool) -> None:
    html, headers = search_page()

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(html, headers=headers)

    @app.get("/health", summary="How the service is; needs no key", responses=error_responses(400, 500))
    async def health() -> Health:
        problems = catalogue.problems()
        n_indexes = len(catalogue.served())
        return Health(
            status="degraded" if problems or not n_indexes else "ok",
            version=__version__,
            n_indexes=n_indexes,
            needs_key=needs_key,
            problems=problems,
        )


def _add_search_routes(
    app: FastAPI,
    catalogue: Catalogue,
    threads: SearchThreads,
    reranker: Reranker | None,
    keys: ApiKeys | None,
) -> None:
    route = functools.partial(
        app.post,
        response_model=SearchReply,
        responses=error_responses(400, *_key_errors(keys), 404, 408, 413, 415, 422, 500, 503),
        dependencies=_key_scheme(keys),
    )

    @route(SEARCH_PATH, summary="Passages for a question, best first")
    async def search(request: SearchRequest) -> SearchReply:
        served = _chosen(catalogue, request.contract_id)
        if request.mode != "lexical" and served.embedder is None:
            raise HTTPException(
                503,
                f"query: index {served.id!r} cannot be searched by meaning: {served.no_embedder}; mode 'lexical' and "
                f"{QUERY_PATH} work.",
            )
        exact: Rerank = None if request.mode == "lexical" else "exact"

        def found() -> list[list[Hit]]:
            return served.index.search(
                [request.query],
                served.embedder,
                top_n=request.top_n,
                mode=request.mode,
                level=request.level,
                rerank=None if request.rerank is False else (reranker or exact),
            )

        return await _reply(threads, found)

    @route(QUERY_PATH, summary="Passages near a vector, best first")
    async def query(request: QueryRequest) -> SearchReply:
        served = _chosen(catalogue, request.contract_id)
        vector = np.asarray(request.vector, dtype=np.float64)
        if len(vector) != served.index.info.n_dimensions:
            raise HTTPException(
                422,
                f"vector: expected {served.index.info.n_dimensions} numbers, as index {served.id!r} has dimensions, "
                f"got {len(vector)}; embed with the index's own model.",
            )
        largest = np.abs(vector).max()
        if not largest:
            raise HTTPException(
                422, "vector: expected a direction, got only zeros; embed with the index's own model."
            )
        row = (vector / largest)[None].astype(np.float32)  # scaled first: float32 holds no 1e300

        def found() -> list[list[Hit]]:
            return served.index.search_vectors(
                row, top_n=request.top_n, level=request.level, rerank=request.rerank
            )

        return await _reply(threads, found)


def _add_index_routes(app: FastAPI, catalogue: Catalogue, keys: ApiKeys | None) -> None:
    @app.get(
        "/indexes",
        summary="All indexes",
        responses=error_responses(400, *_key_errors(keys), 500),
        dependencies=_key_scheme(keys),
    )
    async def indexes() -> IndexesReply:
        return IndexesReply(data=[IndexCard.of(served) for served in catalogue.served().values()])

    @app.get(
        "/indexes/{index_id}",
        summary="One index",
        responses=error_responses(400, *_key_errors(keys), 404, 422, 500),
        dependencies=_key_scheme(keys),
    )
    async def index(index_id: Annotated[IndexId, Path()]) -> IndexReply:
        return IndexReply(data=IndexCard.of(_chosen(catalogue, index_id)))


async def _reply(threads: SearchThreads, search: Callable[[], list[list[Hit]]]) -> SearchReply:
    try:
        hits = (await threads.run(search))[0]
    except DataError as err:
        raise HTTPException(422, str(err)) from err
    return SearchReply(data=[FoundPassage.of(hit) for hit in hits])


def _chosen(catalogue: Catalogue, index_id: str | None) -> ServedIndex:
    """The index that a request names, or the only one."""
    served = catalogue.served()
    if index_id is not None:
        if index_id not in served:
            raise HTTPException(404, f"contract_id: there is no index {index_id!r}; GET /indexes lists them.")
        return served[index_id]
    if not served:
        raise HTTPException(404, "contract_id: no index is served at present.")
    if len(served) > 1:
        raise HTTPException(
            422, f"contract_id: expected the name of one of {len(served)} indexes; GET /indexes lists them."
        )
    return next(iter(served.values()))


def _key_scheme(keys: ApiKeys | None) -> list[Any]:
    """Describes the key in the OpenAPI schema; the gate has checked it already."""
    scheme = APIKeyHeader(name=KEY_HEADER, auto_error=False, description="One of the service's keys.")
    return [] if keys is None else [Security(scheme)]


def _key_errors(keys: ApiKeys | None) -> tuple[int, ...]:
    return () if keys is None else (401,)


def _described_by_indexes(
    describe: Callable[[], dict[str, Any]], catalogue: Catalogue
) -> Callable[[], dict[str, Any]]:
    """The OpenAPI schema, in which a vector is as long as those of the indexes, where all agree."""

    def described() -> dict[str, Any]:
        schema = describe()
        dimensions = {served.index.info.n_dimensions for served in catalogue.served().values()}
        if len(dimensions) != 1:
            return schema
        schema = copy.deepcopy(schema)
        (n_dimensions,) = dimensions
        vector = schema["components"]["schemas"][QueryRequest.__name__]["properties"]["vector"]
        vector |= {"minItems": n_dimensions, "maxItems": n_dimensions}
        return schema

    return described
