"""What the service answers, and every request that it refuses, with its status."""

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import HTTPException
from starlette.testclient import TestClient

from transfuse.errors import ModelError, RecipeError
from transfuse.knowledge.catalogue import Catalogue
from transfuse.knowledge.embeddings import RetrievalEmbedder
from transfuse.knowledge.index_building import build_index
from transfuse.knowledge.records import IndexSettings
from transfuse.knowledge.service import SearchThreads, create_app, one_at_a_time
from transfuse.knowledge.service_gate import ServiceLimits
from transfuse.knowledge.service_keys import ApiKeys, is_readable_by_others, read_keys
from transfuse.types import Document
from word_embedder import WordEmbedder

KEY = "a-key-of-some-length"
TEXT = """# The Isles

## Sailings

The ferry to Orvessa leaves at nine.

## Birds

The grey heron fishes at dusk. <script>alert(1)</script>
"""
QUERY = {"query": "When does the ferry leave?", "contract_id": "isles"}
VECTOR = {"vector": [1.0] + [0.0] * 63, "contract_id": "isles"}


def load(reference: str) -> RetrievalEmbedder:
    if reference == "gone":
        raise ModelError("embedding model 'gone': /secret/path is not there")
    return WordEmbedder()


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Two indexes of the same text; the model of the second cannot be loaded."""
    folder = tmp_path_factory.mktemp("indexes")
    for name, embedder in (("isles", "/models/word-embedder"), ("modelless", "gone")):
        documents = [Document("isles.md", TEXT, "md")]
        model = WordEmbedder(identity=Path(embedder).name)
        build_index(documents, folder / name, IndexSettings(embedder=embedder), model)
    return Catalogue(folder, load)


@pytest.fixture(scope="module")
def client(catalogue: Catalogue) -> Iterator[TestClient]:
    """An open service."""
    with TestClient(create_app(catalogue, None), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(catalogue: Catalogue) -> Iterator[TestClient]:
    """A service with keys."""
    app = create_app(catalogue, ApiKeys([KEY, "another-key-of-mine"]))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def refused(response: Any, code: int, error: str) -> None:
    """The response has that status, is JSON of the documented form, and says `error` somewhere."""
    assert response.status_code == code, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"success": False, "code": code, "error": response.json()["error"]}
    assert error in response.json()["error"]


def test_a_search_gives_passages_best_first_with_where_they_stand(client: TestClient):
    response = client.post("/hnsw/search", json=QUERY)
    assert response.status_code == 200
    reply = response.json()
    assert (reply["success"], reply["code"]) == (True, 200)
    best, other = reply["data"]
    assert best["score"] > other["score"]
    text = "The ferry to Orvessa leaves at nine."
    start = TEXT.index(text)
    assert best["metadata"] == {
        "document": "isles.md",
        "heading_path": ["The Isles", "Sailings"],
        "page": None,
        "text": text,
        "span": [start, start + len(text)],
    }
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
@pytest.mark.parametrize("rerank", [True, False])
def test_every_mode_finds_the_same_as_the_index_itself(
    client: TestClient, catalogue: Catalogue, mode: Any, rerank: bool
):
    served = catalogue.served()["isles"]
    (hits,) = served.index.search(
        [QUERY["query"]], WordEmbedder(), top_n=1, mode=mode, rerank="exact" if rerank else None
    )
    asked = QUERY | {"top_n": 1.0, "mode": mode, "rerank": rerank, "level": 4}
    data = client.post("/hnsw/search", json=asked).json()["data"]
    assert [(hit["id"], hit["score"]) for hit in data] == [(hit.passage.id, hit.score) for hit in hits]


@pytest.mark.parametrize("scale", [1.0, 1e300, 1e-300, 5e-324])
def test_of_a_vector_only_the_direction_counts(client: TestClient, scale: float):
    row = WordEmbedder().embed(["ferry"])[0]
    largest = max(abs(float(value)) for value in row)
    vector = [float(value) / largest * scale for value in row]
    if scale == 5e-324:  # all that is left of it are ones and zeros
        vector = [float(value > 0.9) * scale for value in row / row.max()]
    data = client.post("/hnsw/query", json=VECTOR | {"vector": vector}).json()["data"]
    assert [hit["metadata"]["heading_path"][-1] for hit in data] == ["Sailings", "Birds"]


def test_a_search_by_vector_gives_cosines(client: TestClient):
    row = [float(value) for value in WordEmbedder().embed(["grey heron"])[0]]
    asked = VECTOR | {"vector": row, "top_n": 1, "level": 0, "rerank": False}
    (hit,) = client.post("/hnsw/query", json=asked).json()["data"]
    assert hit["metadata"]["heading_path"] == ["The Isles", "Birds"]
    assert 0 < hit["score"] <= 1


def test_the_whole_request_of_existing_clients_is_taken(client: TestClient):
    """They name a model and send null for what is left out; anything but null in `field` is no request of ours."""
    plain = {"query": "Where does the ferry stop?", "contract_id": "isles", "top_n": 3}
    theirs = {**plain, "field": None, "model": "jina-embeddings-v2-base-en", "rerank": None, "level": 2}
    expected = client.post("/hnsw/search", json=plain).json()["data"]
    assert expected
    assert client.post("/hnsw/search", json=theirs).json()["data"] == expected
    refused(client.post("/hnsw/search", json={**theirs, "field": "title"}), 422, "field: ")


def test_a_reranker_decides_the_order_of_text_searches(catalogue: Catalogue):
    def by_heron(query: str, texts: Any) -> list[float]:
        assert query == QUERY["query"]
        return [float("heron" in text) for text in texts]

    client = TestClient(create_app(catalogue, None, reranker=by_heron))
    data = client.post("/hnsw/search", json=QUERY).json()["data"]
    assert [(hit["score"], hit["metadata"]["heading_path"][-1]) for hit in data] == [
        (1.0, "Birds"),
        (0.0, "Sailings"),
    ]
    data = client.post("/hnsw/search", json=QUERY | {"rerank": False}).json()["data"]
    assert data[0]["metadata"]["heading_path"][-1] == "Sailings"


def test_threads_take_turns_at_a_reranker():
    inside: list[int] = []
    most: list[int] = []

    def slow(query: str, texts: Any) -> list[float]:
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.002)
        inside.pop()
        return []

    rerank = one_at_a_time(slow)
    assert rerank is not None
    threads = [threading.Thread(target=rerank, args=("", [])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert one_at_a_time(None) is None


def test_the_index_may_be_left_out_where_there_is_one(catalogue: Catalogue):
    only = Catalogue(catalogue.served()["isles"].index.path, load)
    app = create_app(only, None)
    client = TestClient(app)
    assert len(client.post("/hnsw/search", json={"query": "ferry"}).json()["data"]) == 2
    schema = client.get("/openapi.json").json()["components"]["schemas"]["QueryRequest"]
    assert (
        schema["properties"]["vector"]["minItems"],
        schema["properties"]["vector"]["maxItems"],
    ) == (64, 64)


def test_indexes_and_one_index(client: TestClient):
    cards = client.get("/indexes").json()["data"]
    assert [(card["id"], card["searches_text"]) for card in cards] == [("isles", True), ("modelless", False)]
    card = client.get("/indexes/isles").json()["data"]
    assert card == cards[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)", card["created"])
    assert card["n_bytes"] > 0
    facts = {
        name: card[name]
        for name in (
            "embedder",
            "embedder_identity",
            "index_type",
            "metric",
            "n_dimensions",
            "n_documents",
            "n_passages",
        )
    }
    assert facts == {
        "embedder": "word-embedder",  # the folder's last part: its path is nobody's business
        "embedder_identity": "word-embedder",
        "index_type": "exact",
        "metric": "cosine",
        "n_dimensions": 64,
        "n_documents": 1,
        "n_passages": 2,
    }


def test_health_tells_problems_without_paths_and_without_a_key(guarded: TestClient, client: TestClient):
    health = guarded.get("/health").json()
    assert health.pop("version").count(".") >= 1
    assert health == {
        "status": "degraded",
        "n_indexes": 2,
        "needs_key": True,
        "problems": ["modelless: its embedding model cannot be loaded"],
    }
    assert client.get("/health").json()["needs_key"] is False


def test_an_index_without_its_model_searches_words_and_vectors(client: TestClient):
    response = client.post("/hnsw/search", json=QUERY | {"contract_id": "modelless"})
    refused(response, 503, "cannot be searched by meaning: its embedding model cannot be loaded")
    assert "secret" not in response.text
    by_words = QUERY | {"contract_id": "modelless", "mode": "lexical"}
    assert len(client.post("/hnsw/search", json=by_words).json()["data"]) >= 1
    assert len(client.post("/hnsw/query", json=VECTOR | {"contract_id": "modelless"}).json()["data"]) == 2


@pytest.mark.parametrize("path", ["/hnsw/search", "/hnsw/query", "/indexes", "/indexes/isles", "/other"])
def test_a_missing_or_wrong_key_is_refused_before_anything_else(guarded: TestClient, path: str):
    for key in (None, "", "a-wrong-key-of-length", KEY[:-1], KEY + "x", KEY.upper()):
        headers = {} if key is None else {"x-api-key": key}
        for method in ("GET", "POST", "DELETE"):
            response = guarded.request(method, path, headers=headers, content=b"no json")
            refused(response, 401, "is missing" if key is None else "is not accepted")
            assert response.headers["www-authenticate"] == "APIKey"
            assert not key or key not in response.text


def test_a_right_key_is_accepted_once(guarded: TestClient):
    for key in (KEY, "another-key-of-mine"):
        assert guarded.get("/indexes", headers={"X-API-Key": key}).status_code == 200
    twice = [("x-api-key", KEY), ("x-api-key", KEY)]
    refused(guarded.get("/indexes", headers=twice), 401, "not accepted")
    for public in ("/", "/health", "/openapi.json"):
        assert guarded.get(public).status_code == 200


WRONG_FIELDS: list[tuple[str, Any, int, str]] = [
    ("query", "", 422, "query: String should have at least 1 character"),
    ("query", " \t\n\u3000", 422, "query: expected at least one visible character"),
    ("query", "a\0b", 422, "no NUL"),
    ("query", "x" * 8193, 422, "query: String should have at most 8192 characters"),
    ("query", None, 422, "query: Input should be a valid string"),
    ("query", ["x"], 422, "query: Input should be a valid string"),
    ("top_n", 0, 422, "top_n: Input should be greater than or equal to 1"),
    ("top_n", 101, 422, "top_n: Input should be less than or equal to 100"),
    ("top_n", "10", 422, "top_n: Input should be a valid integer"),
    ("top_n", 1.5, 422, "top_n: Input should be a valid integer"),
    ("top_n", True, 422, "top_n: Input should be a valid integer"),
    ("top_n", 10**400, 422, "top_n: Input should be less than or equal to 100"),
    ("level", 5, 422, "level: Input should be less than or equal to 4"),
    ("level", -1, 422, "level: Input should be greater than or equal to 0"),
    ("mode", "magic", 422, "mode: Input should be 'hybrid', 'dense' or 'lexical'"),
    ("rerank", "yes", 422, "rerank: Input should be a valid boolean"),
    ("topN", 3, 422, "topN: there is no such field"),
    ("\ud800", 3, 422, "body: Input should be a valid string"),
    ("a <b>\0" + "x" * 100, 3, 422, "a??b??" + "x" * 58 + ": there is no such field"),
    ("contract_id", "unknown", 404, "there is no index 'unknown'"),
    ("contract_id", None, 422, "expected the name of one of 2 indexes"),
    ("contract_id", "", 422, "expected an index's id"),
    ("contract_id", "x" * 129, 422, "expected an index's id"),
    ("contract_id", "isles\n", 422, "expected an index's id"),
    ("contract_id", "../isles", 422, "expected an index's id"),
    ("contract_id", "/etc/passwd", 422, "expected an index's id"),
    ("contract_id", "isles/../isles", 422, "expected an index's id"),
    ("contract_id", "..", 422, "expected an index's id"),
    ("contract_id", "isles\0", 422, "expected an index's id"),
    ("contract_id", ".hidden", 422, "expected an index's id"),
    ("contract_id", "ｉsles", 422, "expected an index's id"),
]


@pytest.mark.parametrize(("field", "value", "code", "error"), WRONG_FIELDS)
def test_a_wrong_field_of_a_search_is_named(
    client: TestClient, field: str, value: Any, code: int, error: str
):
    headers = {"content-type": "application/json"}
    body = json.dumps(QUERY | {field: value})  # as ASCII: a client may escape what UTF-8 cannot hold
    refused(client.post("/hnsw/search", content=body, headers=headers), code, error)


WRONG_VECTORS: list[tuple[Any, str]] = [
    ([], "vector: List should have at least 1 item"),
    ([0.0] * 64, "got only zeros"),
    ([-0.0] * 64, "got only zeros"),
    ([1.0] * 63, "vector: expected 64 numbers, as index 'isles' has dimensions, got 63"),
    ([1.0] * 65, "got 65"),
    ([1.0] * 63 + ["1"], "vector.63: Input should be a valid number"),
    ([1.0] * 63 + [True], "vector.63: Input should be a valid number"),
    ([1.0] * 63 + [None], "vector.63: Input should be a valid number"),
    ([None] * 64, "and 59 more"),
    ([10**400] * 64, "vector.0: "),
    ("1,2,3", "vector: Input should be a valid list"),
    ([[1.0] * 64], "vector.0: Input should be a valid number"),
]


@pytest.mark.parametrize(("vector", "error"), WRONG_VECTORS)
def test_a_wrong_vector_is_refused(client: TestClient, vector: Any, error: str):
    refused(client.post("/hnsw/query", json=VECTOR | {"vector": vector}), 422, error)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_are_not_finite_are_refused(client: TestClient, literal: str):
    for body, path, field in (
        (json.dumps(VECTOR).replace("1.0", literal), "/hnsw/query", "vector.0"),
        (json.dumps(QUERY | {"top_n": 1}).replace(": 1", f": {literal}"), "/hnsw/search", "top_n"),
        (json.dumps(QUERY | {"x": 1}).replace(": 1", f": {literal}"), "/hnsw/search", "x"),
    ):
        assert literal in body
        response = client.post(path, content=body, headers={"content-type": "application/json"})
        refused(response, 422, field)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 422),
        (b"{", 422),
        (b"null", 422),
        (b"[]", 422),
        (b'"query"', 422),
        (b"{}", 422),
        (b'{"query": "\x00"}', 422),
        (b'{"query": "\xff\xfe"}', 400),
        (b'{"query": "\\ud800"}', 422),
        (b'{"query": "caf\xe9"}', 400),
        (b"[" * 100_000, 400),
        (b'{"top_n": ' + b"9" * 5000 + b"}", 400),
    ],
)
def test_a_body_that_is_no_object_of_json_is_refused(client: TestClient, body: bytes, code: int):
    headers = {"content-type": "application/json"}
    for path in ("/hnsw/search", "/hnsw/query"):
        refused(client.post(path, content=body, headers=headers), code, "")


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "json"])
def test_another_content_type_is_refused(client: TestClient, content_type: str | None):
    headers = {} if content_type is None else {"content-type": content_type}
    response = client.post("/hnsw/search", content=json.dumps(QUERY), headers=headers)
    refused(response, 415, "expected application/json")
    good = client.post(
        "/hnsw/search",
        content=json.dumps(QUERY),
        headers={"content-type": "Application/JSON; charset=utf-8"},
    )
    assert good.status_code == 200


def test_wrong_methods_and_paths(client: TestClient):
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
        response = client.request(method, "/hnsw/search")
        refused(response, 405, "expected another method on this path: POST")
        assert response.headers["allow"] == "POST"
    refused(client.post("/health"), 405, "GET")
    for path in ("/none", "/docs", "/redoc", "/hnsw/search/", "/indexes/", "/indexes/a/b", "/hnsw"):
        refused(client.get(path), 404, "there is no such path")
    refused(client.get("/indexes/unknown"), 404, "there is no index 'unknown'")
    refused(client.get("/indexes/..%2f..%2fetc%2fpasswd"), 404, "there is no such path")
    refused(client.get("/indexes/%2e%2e"), 422, "index_id: expected an index's id")
    refused(client.get("/indexes/a%00b"), 422, "index_id: expected an index's id")


def test_a_body_that_is_too_large_is_refused_however_it_comes(catalogue: Catalogue):
    limits = ServiceLimits(max_body_bytes=100)
    client = TestClient(create_app(catalogue, None, limits))
    body = json.dumps(QUERY | {"query": "x"}).encode()
    headers = {"content-type": "application/json"}

    def pieces(n_bytes: int) -> Iterator[bytes]:
        for start in range(0, n_bytes, 7):
            yield (body + b" " * n_bytes)[start : min(start + 7, n_bytes)]

    for content in (lambda n: body + b" " * (n - len(body)), pieces):
        assert client.post("/hnsw/search", content=content(100), headers=headers).status_code == 200
        response = client.post("/hnsw/search", content=content(101), headers=headers)
        refused(response, 413, "larger than 100 bytes")


def call_asgi(app: Any, receive: Callable, **scope: Any) -> list[dict[str, Any]]:
    """What an app sends for one POST to `/hnsw/search`."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    whole = {
        "type": "http",
        "method": "POST",
        "path": "/hnsw/search",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    asyncio.run(app(whole | scope, receive, send))
    return sent


def test_a_body_that_does_not_arrive_or_whose_sender_goes_away(catalogue: Catalogue):
    app = create_app(catalogue, None, ServiceLimits(max_body_s=0.01))

    async def never() -> Any:
        await asyncio.sleep(30)

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    late = call_asgi(app, never)
    assert late[0]["status"] == 408
    assert json.loads(late[1]["body"])["code"] == 408
    assert call_asgi(app, gone) == []
    declared = [(b"content-type", b"application/json"), (b"content-length", b"9" * 30)]
    assert call_asgi(app, never, headers=declared)[0]["status"] == 413


@pytest.mark.parametrize(
    "host", ["attacker.example", "127.0.0.1.attacker.example", "", "attacker.example:8765"]
)
def test_other_host_names_are_refused_where_there_are_no_keys(catalogue: Catalogue, host: str):
    app = create_app(catalogue, None, allowed_hosts=("127.0.0.1", "localhost", "::1"))
    client = TestClient(app)
    for path in ("/", "/indexes", "/health"):
        refused(client.get(path, headers={"host": host}), 400, "header host")
    for own in ("127.0.0.1:8765", "LocalHost", "[::1]:8765", "[::1]"):
        assert client.get("/indexes", headers={"host": own}).status_code == 200


def test_a_fault_of_the_service_is_json_and_tells_nothing(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> Any:
        raise RuntimeError(f"secret {KEY}")

    client = TestClient(create_app(catalogue, None), raise_server_exceptions=False)
    monkeypatch.setattr("transfuse.knowledge.service.FoundPassage.of", fail)
    response = client.post("/hnsw/search", json=QUERY)
    refused(response, 500, "the service failed on this request; its log has more")
    assert "secret" not in response.text


def test_searches_wait_for_a_thread_and_then_give_up():
    limits = ServiceLimits(n_threads=2, max_wait_s=0.05, max_waiting=3)
    n_inside, most, end = [0], [0], threading.Event()

    def slow() -> str:
        n_inside[0] += 1
        most[0] = max(most[0], n_inside[0])
        end.wait(20)
        n_inside[0] -= 1
        return "done"

    async def story() -> list[Any]:
        threads = SearchThreads(limits)
        tasks = [asyncio.ensure_future(threads.run(slow)) for _ in range(6)]
        await asyncio.sleep(0.15)  # two run, three wait too long, one may not even wait
        end.set()
        first = await asyncio.gather(*tasks, return_exceptions=True)
        return [*first, await threads.run(slow)]

    ended = asyncio.run(story())
    refusals = [each for each in ended if isinstance(each, HTTPException)]
    assert [each.status_code for each in refusals] == [503] * 4
    assert refusals[0].headers == {"Retry-After": "1"}
    assert [each for each in ended if each == "done"] == ["done"] * 3
    assert most[0] == 2


def test_newer_indexes_are_looked_for_while_the_service_runs(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
):
    told: list[str] = []

    @contextlib.contextmanager
    def watched() -> Iterator[None]:
        told.append("begun")
        yield
        told.append("ended")

    monkeypatch.setattr(catalogue, "watched", watched)
    with TestClient(create_app(catalogue, None)):
        assert told == ["begun"]
    assert told == ["begun", "ended"]


def test_every_route_describes_what_it_may_answer(guarded: TestClient, client: TestClient):
    schema = guarded.get("/openapi.json").json()
    statuses = {path: set(next(iter(each.values()))["responses"]) for path, each in schema["paths"].items()}
    both = {"200", "400", "401", "500"}
    search = both | {"404", "408", "413", "415", "422", "503"}
    assert statuses == {
        "/hnsw/search": search,
        "/hnsw/query": search,
        "/indexes": both,
        "/indexes/{index_id}": both | {"404", "422"},
        "/health": both - {"401"},
    }
    assert schema["components"]["securitySchemes"]["APIKeyHeader"]["name"] == "x-api-key"
    assert schema["paths"]["/indexes"]["get"]["security"] == [{"APIKeyHeader": []}]
    assert "security" not in schema["paths"]["/health"]["get"]
    open_schema = client.get("/openapi.json").json()
    assert "401" not in open_schema["paths"]["/indexes"]["get"]["responses"]
    assert "securitySchemes" not in open_schema["components"]


def test_the_page_may_load_nothing_but_its_own(client: TestClient):
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    for forbidden in ("innerHTML", "localStorage", "sessionStorage", "http://", "https://", "src=", "style="):
        assert forbidden not in response.text, forbidden


def test_keys_are_read_one_a_line(tmp_path: Path):
    path = tmp_path / "keys"
    path.write_text(f"# keys of the isles\n\n  {KEY}  \nanother-key-of-mine\r\n")
    keys = read_keys(path)
    assert len(keys) == 2
    assert keys.accepts(KEY.encode())
    assert keys.accepts(b"another-key-of-mine")
    assert not keys.accepts(b"# keys of the isles")
    assert not keys.accepts(b"")
    assert KEY not in repr(vars(keys))
    path.chmod(0o600)
    assert not is_readable_by_others(path)
    path.chmod(0o640)
    assert is_readable_by_others(path)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "the file holds none"),
        (b"# only a comment\n", "the file holds none"),
        (b"# one\nshort-secret\n", "line 2: expected a key of at least 16 characters, got 12"),
        (b"a key with some spaces", "line 1: expected a key of visible ASCII"),
        ("schlüssel-schlüssel".encode(), "line 1: expected a key of visible ASCII"),
        (b"\xff\xfe" * 20, "this is no UTF-8"),
        (b"x" * (2**20 + 1), "over 1 MiB"),
        (None, "got 'No such file or directory'"),
    ],
)
def test_a_key_file_that_is_none_is_refused_without_telling_keys(
    tmp_path: Path, content: bytes | None, error: str
):
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=re.escape(error)) as refusal:
        read_keys(path)
    assert str(path) in str(refusal.value)
    for line in (content or b"").splitlines():
        assert not line or line.decode("utf-8", "replace") not in str(refusal.value)
