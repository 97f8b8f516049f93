"""Cross-encoders: what is refused before anything is loaded, and the order of the scores."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from transfuse.errors import MissingExtraError, ModelError
from transfuse.knowledge import model_folders
from transfuse.knowledge.reranking import CrossEncoderReranker, load_reranker


class ScriptedModel:
    """Scores a pair by how much longer the text is than the query."""

    def predict(self, pairs: Sequence[tuple[str, str]], **options: object) -> np.ndarray:
        assert options["show_progress_bar"] is False
        return np.array([len(text) - len(query) for query, text in pairs], dtype=np.float32)


def folder_with(path: Path, **files: object) -> Path:
    """A folder with JSON files (`__` stands for the dot)."""
    for name, value in files.items():
        (path / name.replace("__", ".")).write_text(json.dumps(value))
    return path


def test_scores_are_those_of_the_pairs_in_the_order_given():
    reranker = CrossEncoderReranker(ScriptedModel())  # pyright: ignore[reportArgumentType]
    assert reranker("ab", ["abc", "a", "abcde"]) == [1.0, -1.0, 3.0]
    assert reranker("ab", []) == []


def test_a_model_without_a_head_for_scores_is_refused(tmp_path):
    folder = folder_with(tmp_path, config__json={"architectures": ["BertModel"]})
    with pytest.raises(
        ModelError, match="got BertModel, whose scores would be random; choose a model trained"
    ):
        load_reranker(str(folder))


def test_pickled_weights_and_folders_without_a_model_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"with config\.json, found none in .*CrossEncoder\.save_pretrained"):
        load_reranker(str(tmp_path))
    folder = folder_with(tmp_path, config__json={"architectures": ["BertForSequenceClassification"]})
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is pickled .* CrossEncoder\(folder\)"):
        load_reranker(str(folder))
    (folder / "config.json").write_text("[")
    with pytest.raises(ModelError, match=r"config\.json: cannot be read: .*; copy it again"):
        load_reranker(str(folder))


def test_a_reference_that_is_nothing_lists_what_it_may_be():
    with pytest.raises(
        ModelError, match=r"reranker '\./none': expected a cross-encoder's folder or a Hub id"
    ):
        load_reranker("./none")


def test_a_missing_package_names_the_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        model_folders.importlib.util,
        "find_spec",
        lambda name: None if name == "sentence_transformers" else find(name),
    )
    with pytest.raises(
        MissingExtraError, match=r"rerankers need sentence-transformers: pip install 'transfuse\[index\]'"
    ):
        load_reranker("any/model")
