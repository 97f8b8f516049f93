import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from transfuse.errors import DataError, IndexFolderError
from transfuse.knowledge.index import KnowledgeIndex, open_index
from transfuse.knowledge.index_building import add_documents, build_index, remove_documents
from transfuse.knowledge.index_files import make_current, new_generation, writing
from transfuse.knowledge.records import Hit, HnswSettings, IndexSettings, LexicalSettings
from transfuse.types import Document
from word_embedder import WordEmbedder

EMBEDDER = WordEmbedder()
EXACT = IndexSettings(lexical=LexicalSettings(stemmer=None))
GRAPH = EXACT.model_copy(update={"hnsw": HnswSettings(connectivity=8, exact_below=1)})
BIRDS = (
    ("wren", "The wren builds a nest of moss in ivy."),
    ("owl", "The owl hunts mice at night without a sound."),
    ("swift", "The swift sleeps on the wing and seldom lands."),
    ("tern", "The tern flies from pole to pole each year."),
)


def birds(*names: str, n_more: int = 0) -> list[Document]:
    texts = [(name, text) for name, text in BIRDS if not names or name in names]
    texts += [(f"more{n}", f"Number{n} is a bird of kind{n % 7}.") for n in range(n_more)]
    return [Document(f"{name}.md", f"# Birds\n\n## {name}\n\n{text}\n", "md") for name, text in texts]


def made(path: Path, settings: IndexSettings = EXACT, documents: Sequence[Document] = ()) -> KnowledgeIndex:
    build_index(documents or birds(), path, settings, EMBEDDER)
    return open_index(path, verify=True)


def names(hits: Sequence[Hit]) -> list[str]:
    return [hit.passage.document.removesuffix(".md") for hit in hits]


def test_a_hit_is_the_passage_as_it_was_cut(tmp_path: Path) -> None:
    (hit,) = made(tmp_path).search(["mice at night"], EMBEDDER, top_n=1)[0]
    document = birds("owl")[0]
    assert hit.passage.document == "owl.md"
    assert hit.passage.heading_path == ("Birds", "owl")
    assert hit.passage.text == "The owl hunts mice at night without a sound."
    assert document.text[slice(*hit.passage.span)].strip() == hit.passage.text
    assert hit.passage.page is None
    assert hit.score == pytest.approx(2 / 61)  # first in both lists


@pytest.mark.parametrize("settings", [EXACT, GRAPH])
def test_each_mode_finds_and_scores_in_its_way(tmp_path: Path, settings: IndexSettings) -> None:
    index = made(tmp_path, settings)
    assert index.info.index_type == ("exact" if settings is EXACT else "hnsw")
    question = "a nest of moss"
    dense = index.search([question], EMBEDDER, mode="dense")[0]
    lexical = index.search([question], None, mode="lexical")[0]
    vectors = EMBEDDER.embed_queries([question])
    passage = "Birds > wren\nThe wren builds a nest of moss in ivy."
    cosine = float(vectors[0] @ EMBEDDER.embed([passage])[0])
    assert names(dense)[0] == names(lexical)[0] == "wren"
    assert dense[0].score == pytest.approx(cosine, abs=1e-3)
    assert len(dense) == 4
    assert names(lexical) == ["wren", "owl"]  # which say "a"
    assert index.search_vectors(vectors * 4, top_n=2)[0] == dense[:2]  # only the direction counts


def test_hybrid_adds_the_reciprocal_ranks_of_both_lists(tmp_path: Path) -> None:
    index = made(tmp_path)
    question = "the tern sleeps"
    found: dict[str, float] = {}
    for mode in ("dense", "lexical"):
        for rank, name in enumerate(names(index.search([question], EMBEDDER, mode=mode)[0]), start=1):
            found[name] = found.get(name, 0) + 1 / (60 + rank)
    hits = index.search([question], EMBEDDER, mode="hybrid")[0]
    assert {name: pytest.approx(hit.score) for name, hit in zip(names(hits), hits, strict=True)} == found
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_exact_reranking_gives_a_coarse_graph_full_precision(tmp_path: Path) -> None:
    coarse = GRAPH.model_copy(update={"hnsw": HnswSettings(connectivity=8, exact_below=1, dtype="i8")})
    index = made(tmp_path, coarse, birds(n_more=60))
    vectors = EMBEDDER.embed_queries(["bird of kind3", "owl"])
    truth = [
        sorted(
            (float(vector @ row) for row in np.load(next(tmp_path.glob("gen*/vectors.npy")))), reverse=True
        )[:10]
        for vector in vectors
    ]
    rough = index.search_vectors(vectors)
    exact = index.search_vectors(vectors, rerank=True)
    by_text = index.search(["bird of kind3", "owl"], EMBEDDER, mode="dense", rerank="exact")
    for scores, coarsely, hits, same in zip(truth, rough, exact, by_text, strict=True):
        assert [hit.score for hit in hits] == pytest.approx(scores, abs=1e-6)
        assert [hit.score for hit in coarsely] != pytest.approx(scores, abs=1e-6)
        assert same == hits


def test_exact_reranking_of_hybrid_ranks_all_candidates_by_meaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transfuse.knowledge.index._N_CANDIDATES", 1)
    monkeypatch.setattr("transfuse.knowledge.index._CANDIDATES_PER_HIT", 1)
    index = made(tmp_path)
    meant = EMBEDDER.embed(["swift swift sleeps wing lands owl"])
    monkeypatch.setattr(WordEmbedder, "embed_queries", lambda self, texts: meant)
    question = "hunts mice"  # by meaning the swift, then the owl; by words the owl
    plain = index.search([question], EMBEDDER, top_n=1)
    exact = index.search([question], EMBEDDER, top_n=1, rerank="exact")
    assert names(index.search([question], EMBEDDER, top_n=1, mode="dense")[0]) == ["swift"]
    assert names(index.search([question], None, top_n=1, mode="lexical")[0]) == ["owl"]
    assert plain[0][0].score == pytest.approx(1 / 61)  # in one list only
    assert exact[0][0].score == pytest.approx(1 / 62 + 1 / 61)  # the owl: second by meaning, first by words
    assert names(exact[0]) == ["owl"]


def test_a_reranker_reads_fifty_candidates_with_headings_and_decides_alone(tmp_path: Path) -> None:
    index = made(tmp_path, documents=birds(n_more=120))
    read: list[Sequence[str]] = []

    def prefer_owls(query: str, texts: Sequence[str]) -> list[float]:
        read.append(texts)
        return [float("owl" in text) for text in texts]

    hits = index.search(["which bird hunts"], EMBEDDER, top_n=3, rerank=prefer_owls)[0]
    assert names(hits)[0] == "owl"
    assert [hit.score for hit in hits] == [1, 0, 0]
    assert len(read[0]) == 50
    assert "Birds > owl\nThe owl hunts mice at night without a sound." in read[0]
    index.search(["which bird hunts"], EMBEDDER, top_n=70, rerank=prefer_owls)
    assert len(read[1]) == 70
    assert index.search(["xyzzy"], None, mode="lexical", rerank=prefer_owls) == [[]]


def test_an_open_index_outlives_its_files(tmp_path: Path) -> None:
    index = made(tmp_path / "index", GRAPH, birds(n_more=60))
    questions = [f"kind{n % 7} number{n}" for n in range(40)]
    expected = index.search(questions, EMBEDDER)
    shutil.rmtree(tmp_path / "index")
    with ThreadPoolExecutor(4) as pool:  # each thread opens a view of the graph of its own
        found = pool.map(lambda question: index.search([question], EMBEDDER)[0], questions)
        assert list(found) == expected
    assert not index.is_current()


def test_an_index_knows_when_it_is_out_of_date(tmp_path: Path) -> None:
    index = made(tmp_path)
    assert index.is_current()
    add_documents(tmp_path, birds(), EMBEDDER)  # nothing new
    assert index.is_current()
    remove_documents(tmp_path, ["owl.md"])
    assert not index.is_current()
    assert names(index.search(["owl"], EMBEDDER, top_n=1)[0]) == ["owl"]
    assert open_index(tmp_path).is_current()


def test_readers_never_notice_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda number: None)
    path, n_swaps = tmp_path / "index", 50
    made(path, GRAPH)
    sources = [made(tmp_path / "few", GRAPH, birds("owl")), made(tmp_path / "all", GRAPH)]

    def swap_often() -> None:
        for turn in range(n_swaps):
            source = sources[turn % 2]
            with writing(path):
                with new_generation(path) as folder:
                    shutil.copytree(source.path / source.info.generation, folder, dirs_exist_ok=True)
                make_current(path, source.info.model_copy(update={"generation": folder.name}))

    def read(number: int) -> set[int]:
        sizes = set()
        while not writer.done() or not sizes:
            index = open_index(path)
            hits = index.search_vectors(EMBEDDER.embed(["owl"]), top_n=9)[0]
            assert len(hits) == index.info.n_passages
            sizes.add(len(hits))
        return sizes

    with ThreadPoolExecutor(3) as pool:
        writer = pool.submit(swap_often)
        readers = [pool.submit(read, number) for number in range(2)]
        writer.result()
        assert [reader.result() <= {1, 4} for reader in readers] == [True, True]


def test_the_documents_are_listed(tmp_path: Path) -> None:
    listed = made(tmp_path).documents()
    assert [(document.name, document.n_passages) for document in listed] == [
        (f"{name}.md", 1) for name, _ in BIRDS
    ]


def test_files_that_do_not_fit_one_another_are_refused(tmp_path: Path) -> None:
    made(tmp_path)
    (vectors,) = tmp_path.glob("generation-*/vectors.npy")
    rows = np.load(vectors)
    np.save(vectors, rows.reshape(2, -1))  # as many bytes
    with pytest.raises(IndexFolderError, match=r"do not fit one another: they hold \[4, 4, 2, 4\] passages"):
        open_index(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"queries": ["owl", " \n"]}, r"question: expected words, got ' \\n'"),
        ({"mode": "fuzzy"}, "mode: expected hybrid, dense, lexical, got 'fuzzy'"),
        ({"top_n": 0}, "top_n: expected at least 1, got 0"),
        ({"level": 9}, "level: expected 0"),
        ({"embedder": None}, "needs the embedding model; give it, or search in mode 'lexical'"),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    asked = {"queries": ["owl"], "embedder": EMBEDDER, **wrong}
    index = made(tmp_path)
    if "mode" in wrong:  # the checks of types in tests would be quicker
        from transfuse.knowledge.index import check_request

        with pytest.raises(DataError, match=message):
            check_request(["owl"], "fuzzy", 1, 1)
        return
    with pytest.raises(DataError, match=message):
        index.search(**asked)  # type: ignore[arg-type]


def test_another_embedding_model_is_refused(tmp_path: Path) -> None:
    index = made(tmp_path)
    with pytest.raises(
        IndexFolderError, match=r"'minilm-l6-v2' \(word-embedder, 64 dim.*got one that is other \(64"
    ):
        index.search(["owl"], WordEmbedder(identity="other"))
    with pytest.raises(DataError, match="expected 64 numbers each, as the index has, got 3"):
        index.search_vectors(np.ones((1, 3), dtype=np.float32))
