"""Indexes that appear, change, break and vanish while they are served."""

import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from transfuse.errors import IndexFolderError, ModelError
from transfuse.knowledge.catalogue import Catalogue, SharedEmbedder
from transfuse.knowledge.embeddings import RetrievalEmbedder
from transfuse.knowledge.index_building import add_documents, build_index
from transfuse.knowledge.records import IndexSettings
from transfuse.types import Document
from word_embedder import WordEmbedder

ISLES = Document("isles.md", "# Isles\n\nThe ferry to Orvessa leaves at nine.\n", "md")
BIRDS = Document("birds.md", "# Birds\n\nThe grey heron fishes at dusk.\n", "md")


def make(path: Path, *documents: Document, identity: str = "word-embedder", overwrite: bool = False) -> Path:
    build_index(
        documents,
        path,
        IndexSettings(embedder=f"/models/{identity}"),
        WordEmbedder(identity=identity),
        overwrite=overwrite,
    )
    return path


class Models:
    """Loads word embedders by the name that their reference ends with, and remembers which."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def load(self, reference: str) -> RetrievalEmbedder:
        self.loaded.append(reference)
        return WordEmbedder(identity=Path(reference).name)


def counts(catalogue: Catalogue) -> dict[str, int]:
    return {index_id: served.index.info.n_passages for index_id, served in catalogue.served().items()}


def test_one_index_is_served_by_its_folders_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make(tmp_path / "isles", ISLES)
    assert counts(Catalogue(tmp_path / "isles", Models().load)) == {"isles": 1}
    monkeypatch.chdir(tmp_path / "isles")
    assert counts(Catalogue(Path(), Models().load)) == {"isles": 1}


def test_a_folder_of_indexes_shares_one_model_among_those_that_were_built_with_it(tmp_path: Path):
    make(tmp_path / "isles", ISLES)
    make(tmp_path / "birds", BIRDS)
    make(tmp_path / "other", BIRDS, identity="other-model")
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("no index")
    shutil.copytree(tmp_path / "isles", tmp_path / ".hidden")
    models = Models()
    catalogue = Catalogue(tmp_path, models.load)
    assert list(catalogue.served()) == ["birds", "isles", "other"]
    assert models.loaded == ["/models/word-embedder", "/models/other-model"]
    served = catalogue.served()
    assert served["birds"].embedder is served["isles"].embedder is not served["other"].embedder
    assert catalogue.problems() == []


def test_a_newer_generation_is_taken_up_and_the_older_one_still_answers(tmp_path: Path):
    path = make(tmp_path / "isles", ISLES)
    models = Models()
    catalogue = Catalogue(tmp_path, models.load)
    before = catalogue.served()["isles"]
    catalogue.refresh()
    assert catalogue.served()["isles"] is before
    add_documents(path, [BIRDS], WordEmbedder())
    catalogue.refresh()
    assert counts(catalogue) == {"isles": 2}
    assert before.index.info.n_passages == 1
    (hits,) = before.index.search(["ferry"], before.embedder, mode="hybrid")
    assert [hit.passage.text for hit in hits] == ["The ferry to Orvessa leaves at nine."]
    assert models.loaded == ["/models/word-embedder"]


def test_folders_appear_and_vanish(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make(tmp_path / "isles", ISLES)
    catalogue = Catalogue(tmp_path, Models().load)
    make(tmp_path / "birds", BIRDS)
    catalogue.refresh()
    assert counts(catalogue) == {"birds": 1, "isles": 1}
    shutil.rmtree(tmp_path / "isles")
    catalogue.refresh()
    assert counts(catalogue) == {"birds": 1}
    assert caplog.messages == ["isles: is gone and no longer served"]
    shutil.rmtree(tmp_path)
    catalogue.refresh()
    assert counts(catalogue) == {}


def test_a_damaged_new_generation_leaves_the_old_one_serving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = make(tmp_path / "isles", ISLES)
    catalogue = Catalogue(tmp_path, Models().load)
    info = json.loads((path / "index.json").read_text())
    shutil.copytree(path / info["generation"], path / "generation-000000000000")
    (path / "generation-000000000000" / "vectors.npy").write_bytes(b"cut short")
    (path / "index.json").write_text(json.dumps(info | {"generation": "generation-000000000000"}))
    for _ in range(3):
        catalogue.refresh()
        assert counts(catalogue) == {"isles": 1}
        assert catalogue.problems() == ["isles: its files cannot be used; the ones before are served"]
    assert len(caplog.records) == 1  # said once, not at every look
    assert "vectors.npy" in caplog.text
    make(path, ISLES, BIRDS, overwrite=True)
    catalogue.refresh()
    assert counts(catalogue) == {"isles": 2}
    assert catalogue.problems() == []


def test_a_damaged_index_does_not_keep_the_others_from_being_served(tmp_path: Path):
    make(tmp_path / "isles", ISLES)
    (make(tmp_path / "birds", BIRDS) / "index.json").write_text("{")
    shutil.copytree(tmp_path / "isles", tmp_path / "two words")
    catalogue = Catalogue(tmp_path, Models().load)
    assert counts(catalogue) == {"isles": 1}
    problems = catalogue.problems()
    assert problems == ["birds: its files cannot be used", "two words: its name cannot be an index's id"]
    assert str(tmp_path) not in str(problems)


def test_a_model_that_has_changed_leaves_words_and_vectors(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make(tmp_path / "isles", ISLES, identity="old-model")
    catalogue = Catalogue(tmp_path, lambda reference: WordEmbedder(identity="new-model"))
    served = catalogue.served()["isles"]
    assert served.embedder is None
    words = "its embedding model is not the one that the index was built with"
    assert catalogue.problems() == [f"isles: {words}"]
    assert "expected the embedding model old-model, but '/models/old-model' is now new-model" in caplog.text
    (hits,) = served.index.search(["ferry"], None, mode="lexical")
    assert len(hits) == 1


def test_a_model_that_cannot_be_loaded_leaves_words_and_vectors(tmp_path: Path):
    make(tmp_path / "isles", ISLES)

    def load(reference: str) -> RetrievalEmbedder:
        raise ModelError(f"embedding model {reference!r}: is not there")

    catalogue = Catalogue(tmp_path, load)
    assert catalogue.served()["isles"].embedder is None
    assert catalogue.problems() == ["isles: its embedding model cannot be loaded"]


def test_without_any_index_nothing_is_served(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(IndexFolderError, match=re.escape(f"{path}: expected a knowledge index, or a")):
            Catalogue(path, Models().load)


def test_a_single_damaged_index_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = make(tmp_path / "isles", ISLES)
    (path / "index.json").write_text("{")
    with pytest.raises(IndexFolderError, match=re.escape(str(path / "index.json"))):
        Catalogue(path, Models().load)
    assert caplog.records == []


def test_an_unreadable_folder_keeps_what_was_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make(tmp_path / "isles", ISLES)
    catalogue = Catalogue(tmp_path, Models().load)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        catalogue.refresh()
    assert counts(catalogue) == {"isles": 1}
    assert catalogue.problems() == ["the folder of indexes cannot be read"]
    catalogue.refresh()
    assert catalogue.problems() == []


def test_a_link_to_another_index_is_followed_when_it_changes(tmp_path: Path):
    make(tmp_path / "first", ISLES)
    make(tmp_path / "second", ISLES, BIRDS)
    link = tmp_path / "current"
    link.symlink_to("first")
    catalogue = Catalogue(link, Models().load)
    assert counts(catalogue) == {"current": 1}
    link.unlink()
    link.symlink_to("second")
    catalogue.refresh()
    assert counts(catalogue) == {"current": 2}


def test_watching_takes_up_what_is_new_and_survives_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    make(tmp_path / "isles", ISLES)
    catalogue = Catalogue(tmp_path, Models().load)
    look, faults = catalogue._look, iter([RuntimeError("a fault")])

    def look_with_fault() -> None:
        for fault in faults:
            raise fault
        look()

    monkeypatch.setattr(catalogue, "_look", look_with_fault)
    with catalogue.watched(every_s=0.01):
        make(tmp_path / "birds", BIRDS)
        until = time.monotonic() + 20
        while "birds" not in catalogue.served() and time.monotonic() < until:
            time.sleep(0.005)
    assert counts(catalogue) == {"birds": 1, "isles": 1}
    assert [record.exc_info is not None for record in caplog.records if record.levelno == logging.ERROR] == [
        True
    ]


def test_threads_take_turns_at_a_model():
    class Busy:
        identity, n_dimensions, max_tokens, n_inside, n_most = "busy", 2, 8, 0, 0

        def embed(self, texts: list[str], on_texts: Callable | None = None) -> np.ndarray:
            self.n_inside += 1
            self.n_most = max(self.n_most, self.n_inside)
            time.sleep(0.002)
            self.n_inside -= 1
            return np.ones((len(texts), 2), dtype=np.float32)

        embed_passages = embed
        embed_queries = embed

        def count_tokens(self, texts: list[str]) -> list[int]:
            self.embed(texts)
            return [1] * len(texts)

    busy = Busy()
    shared = SharedEmbedder(busy)  # pyright: ignore[reportArgumentType]
    assert isinstance(shared, RetrievalEmbedder)
    assert (shared.identity, shared.n_dimensions, shared.max_tokens) == ("busy", 2, 8)
    acts = [shared.embed, shared.embed_passages, shared.embed_queries, shared.count_tokens] * 3
    threads = [threading.Thread(target=act, args=(["a text"],)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert busy.n_most == 1
