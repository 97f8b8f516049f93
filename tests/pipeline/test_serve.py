"""The service as its user meets it: the real command, a real port, a real browser, a fuzzer."""

import contextlib
import http.client
import json
import logging.config
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

KEY = "a-key-of-some-length"
PATIENCE_S = 120
CHROMIUM, CHROMEDRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
QUESTION = "When does the ferry to Orvessa leave?"
ANSWER = "The ferry to Orvessa leaves at nine."
SCRIPT = 'A note: <script>window.hasRun = 1</script> <img src="x" onerror="window.hasRun = 1"> & more.'
TEXTS = {
    "ferry.txt": ANSWER,
    "heron.txt": "The grey heron fishes at dusk.",
    "market.txt": "The market opens at seven on Fridays.",
    "script.txt": SCRIPT,
}


class Service(NamedTuple):
    """A running service."""

    process: subprocess.Popen[str]
    port: int
    said: list[str]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """The status and the JSON of one request, with the key unless `headers` has another."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            given = {"content-type": "application/json", "x-api-key": KEY} | headers
            connection.request(method, path, None if body is None else json.dumps(body), given)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def search(self, query: str, **more: Any) -> list[dict[str, Any]]:
        """What a search by text finds."""
        status, reply = self.ask("POST", "/hnsw/search", {"query": query, **more})
        assert status == 200, reply
        return reply["data"]


@contextlib.contextmanager
def serving(*arguments: object) -> Iterator[Service]:
    """`transfuse index serve ...` on a free port, in a process group of its own, ended with the block."""
    # A shell's background job ignores Ctrl-C, and so would everything that it starts.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "transfuse.cli", "index", "serve", *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, handler)
    assert process.stdout
    assert process.stderr
    said: list[str] = []
    try:
        for line in process.stdout:
            said.append(line.rstrip("\n"))
            if line.startswith("Serving at "):
                break
        else:
            raise AssertionError(process.stderr.read())
        address = re.fullmatch(r"Serving at http://127\.0\.0\.1:(\d+)/ \(Ctrl-C ends it\)", said[-1])
        assert address
        yield Service(process, int(address[1]), said)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, transfuse: Callable) -> Path:
    """A folder with one index of four small texts, by the bundled embedding model. Shared: do not change it."""
    folder = tmp_path_factory.mktemp("built")
    for name, text in TEXTS.items():
        (folder / "texts").mkdir(exist_ok=True)
        (folder / "texts" / name).write_text(text + "\n", encoding="utf-8")
    done = transfuse("index", "build", folder / "texts", "--out", folder / "indexes" / "isles")
    assert done.code == 0, done.err
    return folder / "indexes"


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# for tests\n{KEY}\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def service(built: Path, key_file: Path) -> Iterator[Service]:
    """One service with a key, for all tests that leave its index alone."""
    with serving(built, "--api-key-file", key_file) as service:
        yield service


def test_a_search_over_http_finds_what_the_command_finds(service: Service, built: Path, transfuse: Callable):
    assert service.said[0] == "index isles: 4 passages"
    found = service.search(QUESTION, top_n=3, rerank=True)
    assert found[0]["metadata"]["text"] == ANSWER
    done = transfuse("index", "search", built / "isles", QUESTION, "--top-n", "3", "--rerank", "--json")
    assert [hit["id"] for hit in json.loads(done.out)] == [hit["id"] for hit in found]


def test_refusals_over_the_wire(service: Service):
    assert service.ask("GET", "/indexes", **{"x-api-key": "a-wrong-key-of-length"})[0] == 401
    assert service.ask("GET", "/health", **{"x-api-key": ""})[0] == 200
    status, reply = service.ask("POST", "/hnsw/query", {"vector": [1.0]})
    assert (status, reply["code"]) == (422, 422)
    assert "vector: expected 384 numbers" in reply["error"]


def test_an_oversize_body_is_answered_while_it_is_still_being_sent(service: Service):
    def pieces() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * 2**15  # 2 MiB in all

    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE_S)
    headers = {"content-type": "application/json", "x-api-key": KEY}
    with contextlib.closing(connection):
        for body in (pieces(), b" " * (2**20 + 1)):
            connection.request("POST", "/hnsw/search", body, headers)
            response = connection.getresponse()
            assert (response.status, json.loads(response.read())["code"]) == (413, 413)
    assert service.search(QUESTION)


def test_a_fuzzer_finds_nothing(service: Service, tmp_path: Path):
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"http://127.0.0.1:{service.port}/openapi.json",
            *("--header", f"x-api-key: {KEY}", "--checks", "all", "--max-examples", "50", "--seed", "17"),
            *("--generation-database", "none", "--no-color", "--continue-on-failure"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    assert "5 selected / 5 total" in done.stdout
    assert "No issues found" in done.stdout


def wait_until(is_so: Callable[[], bool]) -> None:
    """Look again and again, for as long as a slow machine may take."""
    until = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


class Searcher(threading.Thread):
    """Searches over one connection until it is told to end; keeps the number of hits of each answer."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.counts: list[int] = []
        self.failures: list[object] = []
        self.end = threading.Event()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        body = json.dumps({"query": QUESTION, "contract_id": "isles"})
        with contextlib.closing(connection):
            while not self.end.is_set():
                try:
                    connection.request("POST", "/hnsw/search", body, {"content-type": "application/json"})
                    reply = json.loads(connection.getresponse().read())
                    self.counts.append(len(reply["data"]))
                except (OSError, http.client.HTTPException, ValueError, KeyError) as err:
                    self.failures.append(err)


def test_indexes_change_under_searches_without_a_failed_request(built: Path, tmp_path: Path):
    from transfuse.knowledge.index_building import remove_documents

    shutil.copytree(built, tmp_path / "indexes")
    path = tmp_path / "indexes" / "isles"
    with serving(tmp_path / "indexes") as service:
        searchers = [Searcher(service.port) for _ in range(3)]
        for searcher in searchers:
            searcher.start()
        for name, n_left in (("heron.txt", 3), ("market.txt", 2), ("script.txt", 1)):
            remove_documents(path, [name])
            wait_until(lambda n=n_left: {each.counts[-1] for each in searchers if each.counts} == {n})
        for searcher in searchers:
            searcher.end.set()
            searcher.join()
            assert searcher.failures == []
            assert searcher.counts == sorted(searcher.counts, reverse=True)

        shutil.copytree(built / "isles", tmp_path / "indexes" / "again")
        shutil.rmtree(path)
        wait_until(lambda: [card["id"] for card in service.ask("GET", "/indexes")[1]["data"]] == ["again"])
        assert len(service.search(QUESTION)) == 4

        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", service.port)) as connection:
            connection.request("GET", "/health")
            connection.getresponse().read()  # and kept open: an idle client holds nobody up
            assert end_by_ctrl_c(service).endswith(" WARNING isles: is gone and no longer served\n")


def end_by_ctrl_c(service: Service) -> str:
    """Press Ctrl-C, which reaches all processes of a terminal; what the service had logged until then."""
    os.killpg(service.process.pid, signal.SIGINT)
    out, err = service.process.communicate(timeout=PATIENCE_S)
    assert (service.process.returncode, out) == (0, "")
    assert err.count("\n") <= 1, err
    return err


def workers_of(service: Service) -> list[psutil.Process]:
    """Its worker processes; multiprocessing's resource tracker is none, nor is what has ended."""
    workers: list[psutil.Process] = []
    for child in psutil.Process(service.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # and ZombieProcess, which is one
            if "spawn_main" in " ".join(child.cmdline()):
                workers.append(child)
    return workers


def test_several_workers_answer_and_a_killed_one_is_replaced(built: Path, key_file: Path):
    with serving(built, "--workers", "2", "--api-key-file", key_file) as service:
        assert service.said[0] == "index isles: 4 passages"
        assert service.search(QUESTION)[0]["metadata"]["text"] == ANSWER
        assert service.ask("GET", "/indexes", **{"x-api-key": "a-wrong-key-of-length"})[0] == 401
        workers = workers_of(service)
        assert len(workers) == 2
        for worker in workers:
            assert KEY not in " ".join([*worker.cmdline(), *worker.environ().values()])

        workers[0].kill()

        def are_two_again() -> bool:
            assert service.ask("GET", "/health")[0] == 200
            return len([each for each in workers_of(service) if each != workers[0]]) == 2

        wait_until(are_two_again)
        assert service.search(QUESTION)[0]["metadata"]["text"] == ANSWER
        assert end_by_ctrl_c(service) == ""


def test_workers_end_when_their_supervisor_is_killed(built: Path):
    with serving(built, "--workers", "2") as service:
        workers = workers_of(service)
        service.process.kill()  # as the system does where memory is short: nobody tells the workers
        _, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
        assert alive == []


@pytest.fixture
def refused(transfuse: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`refused("PATH", ...)`: the one line that the command says before it serves anything."""
    monkeypatch.setattr(logging.config, "dictConfig", lambda settings: None)  # it is this process's

    def call(*arguments: object) -> str:
        done = transfuse("index", "serve", *arguments)
        assert (done.code, done.out) == (1, ""), done
        assert done.err.startswith("Error: ")
        assert done.err.count("\n") == 1
        return done.err

    return call


def test_what_cannot_be_served_is_one_line(built: Path, tmp_path: Path, refused: Callable):
    (tmp_path / "empty").mkdir()
    assert "expected a knowledge index, or a folder" in refused(tmp_path / "empty", "--port", "0")
    assert "expected a knowledge index, or a folder" in refused(tmp_path / "none", "--port", "0")
    shutil.copytree(built / "isles", tmp_path / "damaged")
    (tmp_path / "damaged" / "index.json").write_text("{")
    assert "index.json: cannot be read" in refused(tmp_path / "damaged", "--port", "0")


def test_a_place_that_cannot_be_listened_on_is_one_line(built: Path, key_file: Path, refused: Callable):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: is in use on 127.0.0.1" in refused(built, "--port", port)
    guarded = ("--api-key-file", key_file)
    for host in ("no.such.host.invalid", "256.1.1.1", "192.0.2.1", ""):
        assert "expected an address of this machine" in refused(built, "--host", host, *guarded), host


def test_others_are_let_in_only_with_a_key_or_on_purpose(
    built: Path, tmp_path: Path, key_file: Path, refused: Callable
):
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):  # noqa: S104 - refused, not bound
        assert "expected --api-key-file" in refused(built, "--host", host)
    assert "got both" in refused(built, "--no-key", "--api-key-file", key_file)
    assert "No such file" in refused(built, "--api-key-file", tmp_path / "none")
    (tmp_path / "short").write_text("short-secret\n")
    said = refused(built, "--api-key-file", tmp_path / "short")
    assert "line 1: expected a key of at least 16 characters" in said
    assert "secret" not in said


def test_a_key_file_that_others_can_read_is_warned_about(built: Path, tmp_path: Path, transfuse: Callable):
    open_file = tmp_path / "keys"
    open_file.write_text(KEY)
    open_file.chmod(0o644)
    done = transfuse("index", "serve", built, "--api-key-file", open_file, "--host", "192.0.2.1")
    assert done.code == 1
    assert f"Warning: {open_file} can be read by other users; close it with `chmod 600" in done.err
    assert KEY not in done.err


def test_without_the_packages_of_the_service_the_extra_is_named(
    built: Path, refused: Callable, monkeypatch: pytest.MonkeyPatch
):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else find(name, *rest)
    )
    assert "the service needs uvicorn: pip install 'transfuse[serve]'" in refused(built)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A headless Chromium that keeps its console."""
    for program in (CHROMIUM, CHROMEDRIVER):
        if not program.exists():
            pytest.skip(f"{program} is not installed (Debian: chromium, chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service as Driver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for switch in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Driver(str(CHROMEDRIVER)))
    yield driver
    driver.quit()


def texts_of(browser: Any, selector: str) -> list[str]:
    from selenium.webdriver.common.by import By

    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]


def wait_for(browser: Any, words: str) -> str:
    """Wait until the page's status says this; all that it says."""
    wait_until(lambda: words in texts_of(browser, "#status")[0])
    return texts_of(browser, "#status")[0]


def complaints(browser: Any) -> list[str]:
    """What the console holds beside refused requests, which the page tells in words."""
    return [
        entry["message"]
        for entry in browser.get_log("browser")
        if "401 (Unauthorized)" not in entry["message"]
    ]


def type_into(browser: Any, element: str, keys: Sequence[str]) -> None:
    from selenium.webdriver.common.by import By

    field = browser.find_element(By.ID, element)
    field.clear()
    field.send_keys(*keys)


def test_the_page_searches_by_hand(service: Service, browser: Any):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    browser.get(f"http://127.0.0.1:{service.port}/")
    wait_for(browser, "This service asks for a key.")
    type_into(browser, "key", ["a-wrong-key-of-length", Keys.TAB])
    wait_for(browser, "This key is not accepted.")
    type_into(browser, "key", [KEY, Keys.TAB])
    wait_until(lambda: texts_of(browser, "#index option") == ["isles (4 passages)"])

    type_into(browser, "query", [QUESTION, Keys.ENTER])
    wait_for(browser, "4 passages, best first")
    assert texts_of(browser, "#results .text")[0] == ANSWER
    assert texts_of(browser, "#results .source")[0].startswith("ferry.txt")

    type_into(browser, "top-n", ["1"])
    Select(browser.find_element(By.ID, "mode")).select_by_value("lexical")
    browser.find_element(By.ID, "rerank").click()
    type_into(browser, "query", ["note", Keys.ENTER])
    wait_for(browser, "1 passage, best first")
    assert texts_of(browser, "#results .text") == [SCRIPT]
    assert browser.execute_script("return window.hasRun") is None
    assert (
        browser.execute_script("return document.querySelectorAll('#results script, #results img').length")
        == 0
    )

    type_into(browser, "query", ["zebra", Keys.ENTER])
    wait_for(browser, "Nothing was found.")
    assert texts_of(browser, "#results li") == []
    type_into(browser, "query", ["   ", Keys.ENTER])
    assert "The search was refused: query: expected at least one visible" in wait_for(browser, "refused")

    stored = "return localStorage.length + sessionStorage.length + document.cookie.length"
    assert browser.execute_script(stored) == 0
    assert [said for said in complaints(browser) if "422" not in said] == []
    browser.execute_script(
        "const made = document.createElement('script'); made.textContent = 'window.hasRun = 1';"
        "document.body.append(made)"
    )
    assert browser.execute_script("return window.hasRun") is None
    assert ["Content Security Policy" in said for said in complaints(browser)] == [
        True
    ]  # so they do show here


def test_the_page_says_that_the_service_is_gone(built: Path, browser: Any):
    from selenium.webdriver.common.keys import Keys

    with serving(built) as service:
        browser.get(f"http://127.0.0.1:{service.port}/")
        wait_until(lambda: texts_of(browser, "#index option") == ["isles (4 passages)"])
        assert complaints(browser) == []
    type_into(browser, "query", [QUESTION, Keys.ENTER])
    wait_for(browser, "The service cannot be reached. Is it still running?")
