"""Folders of sentence-transformers models: what a reference leads to, and what tells models apart."""

import json
from pathlib import Path

import pytest

from transfuse.errors import ModelError
from transfuse.knowledge import model_folders as module
from transfuse.knowledge.model_folders import (
    ModelKind,
    loading_errors,
    model_folder,
    model_identity,
    module_folders,
)

KIND = ModelKind("reranker", expected="a cross-encoder's folder", other="a local folder")


def test_a_folder_is_itself_and_a_file_is_no_model(tmp_path):
    assert model_folder(str(tmp_path), KIND) == tmp_path
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        ModelError,
        match=r"reranker .*expected a cross-encoder's folder or a Hub id .* got a file; check the path",
    ):
        model_folder(str(tmp_path / "file"), KIND)


def test_a_hub_model_that_cannot_be_fetched_says_why(monkeypatch):
    monkeypatch.setattr(module, "_is_hub_reachable", lambda: False)
    with pytest.raises(
        ModelError, match=r"'no-one/has-this': there is no such folder, .* or use a local folder\."
    ):
        model_folder("no-one/has-this", KIND)

    def fail(*arguments: object, **options: object) -> str:
        raise ConnectionResetError("reset by peer\nand more")

    monkeypatch.setattr(module, "snapshot_download", fail)
    with pytest.raises(ModelError, match=r"cannot be fetched from the Hub: reset by peer; try again"):
        model_folder("no-one/has-this", KIND)


def test_modules_are_folders_of_the_model(tmp_path):
    (tmp_path / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    assert module_folders(tmp_path) == [tmp_path, tmp_path / "1_Pooling"]


def test_what_loading_raises_becomes_one_line():
    with (
        pytest.raises(ModelError, match=r"reranker 'x': cannot be loaded: first; copy it again, or"),
        loading_errors("x", KIND),
    ):
        raise RuntimeError("\nfirst\nsecond")
    with (
        pytest.raises(ModelError, match="it needs Python code of its own, which is not run"),
        loading_errors("x", KIND),
    ):
        raise ValueError("pass the option trust_remote_code=True")


def folder_of(path: Path, weights: str) -> Path:
    """A model folder with one part."""
    (path / "1_Pooling").mkdir(parents=True)
    (path / "1_Pooling" / "config.json").write_text("{}")
    (path / "model.safetensors").write_text(weights)
    return path


def test_copies_of_a_model_share_their_identity_and_other_weights_do_not(tmp_path):
    one, copy, other = (
        folder_of(tmp_path / name, weights) for name, weights in (("one", "1"), ("copy", "1"), ("other", "2"))
    )
    (copy / "README.md").write_text("about it")
    assert model_identity(one) == model_identity(copy)
    assert model_identity(one) != model_identity(other)
    (copy / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert model_identity(one) != model_identity(copy)
