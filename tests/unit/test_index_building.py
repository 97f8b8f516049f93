import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from transfuse.errors import DataError, IndexFolderError, RecipeError, RunFolderError
from transfuse.io.jsonl import read_jsonl
from transfuse.knowledge.index import open_index
from transfuse.knowledge.index_building import add_documents, build_index, remove_documents
from transfuse.knowledge.records import HnswSettings, IndexSettings, LexicalSettings, PassageSettings
from transfuse.types import Document, Dropped
from word_embedder import WordEmbedder

SETTINGS = IndexSettings(lexical=LexicalSettings(stemmer=None))


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is killed here are processes, not the machine: nothing needs to wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


def isle(name: str, *extra: str) -> Document:
    text = f"# {name}\n\nThe isle of {name} has a harbour.\n\n## Ferry\n\nA ferry sails to {name} daily.\n"
    return Document(
        f"isles/{name}.md", text + "".join(f"\n## Part {n}\n\n{more}\n" for n, more in enumerate(extra)), "md"
    )


def isles(count: int) -> list[Document]:
    return [isle(f"isle{n}") for n in range(count)]


def with_graph(exact_below: int = 1) -> IndexSettings:
    return SETTINGS.model_copy(update={"hnsw": HnswSettings(connectivity=8, exact_below=exact_below)})


def check_is_sound(path: Path, embedder: WordEmbedder) -> None:
    """Every passage is found by its own text, its vector is its own, and nothing is left lying about."""
    index = open_index(path, verify=True)
    assert {entry.name for entry in path.iterdir()} == {"index.json", ".lock", index.info.generation}
    assert sum(document.n_passages for document in index.documents()) == index.info.n_passages
    assert len(index.documents()) == index.info.n_documents
    if not index.info.n_passages:
        return
    everything = index.search(["the"], embedder, mode="dense", top_n=index.info.n_passages)[0]
    assert len({hit.passage.id for hit in everything}) == index.info.n_passages
    texts = [" > ".join(hit.passage.heading_path) + "\n" + hit.passage.text for hit in everything]
    for hit, (best,) in zip(everything, index.search(texts, embedder, mode="dense", top_n=1), strict=True):
        assert best.score == pytest.approx(1, abs=2e-3)
        assert best.passage.text == hit.passage.text


@pytest.mark.parametrize("settings", [SETTINGS, with_graph()])
def test_adding_embeds_only_passages_that_are_not_there(tmp_path: Path, settings: IndexSettings) -> None:
    embedder = WordEmbedder()
    built = build_index(isles(3), tmp_path, settings, embedder)
    assert built.added == ["isles/isle0.md", "isles/isle1.md", "isles/isle2.md"]
    assert (built.n_embedded, len(embedder.embedded), built.info.n_passages) == (6, 6, 6)
    embedder.embedded.clear()
    changed = add_documents(
        tmp_path, [isle("isle1", "Seals rest there."), isle("isle2"), isle("skerry")], embedder
    )
    assert embedder.embedded == [
        "isle1 > Part 0\nSeals rest there.",
        "skerry\nThe isle of skerry has a harbour.",
        "skerry > Ferry\nA ferry sails to skerry daily.",
    ]
    assert (changed.added, changed.replaced, changed.unchanged, changed.removed) == (
        ["isles/skerry.md"],
        ["isles/isle1.md"],
        ["isles/isle2.md"],
        [],
    )
    assert (changed.n_embedded, changed.info.n_passages, changed.info.n_documents) == (3, 9, 4)
    check_is_sound(tmp_path, embedder)


@pytest.mark.parametrize("settings", [SETTINGS, with_graph()])
def test_a_long_life_of_adding_and_removing(tmp_path: Path, settings: IndexSettings) -> None:
    embedder = WordEmbedder()
    build_index(isles(12), tmp_path, settings, embedder)
    for turn in range(6):
        add_documents(tmp_path, [isle(f"isle{turn}", f"News of year {turn}."), isle(f"rock{turn}")], embedder)
        remove_documents(tmp_path, [f"*/rock{turn - 1}.md" if turn % 2 else f"*/isle{11 - turn}.md"])
        check_is_sound(tmp_path, embedder)
    remove_documents(tmp_path, ["*"])
    check_is_sound(tmp_path, embedder)
    assert open_index(tmp_path).search(["harbour"], embedder) == [[]]
    add_documents(tmp_path, isles(2), embedder)
    check_is_sound(tmp_path, embedder)


def test_the_kind_of_search_follows_the_number_of_passages(tmp_path: Path) -> None:
    embedder = WordEmbedder()
    kinds = [build_index(isles(2), tmp_path, with_graph(exact_below=6), embedder).info.index_type]
    kinds.append(add_documents(tmp_path, isles(3), embedder).info.index_type)
    kinds.append(remove_documents(tmp_path, ["*0.md"]).info.index_type)
    assert kinds == ["exact", "hnsw", "exact"]
    check_is_sound(tmp_path, embedder)


def test_where_nothing_is_new_nothing_is_written(tmp_path: Path) -> None:
    embedder = WordEmbedder()
    before = build_index(isles(2), tmp_path, SETTINGS, embedder).info
    changed = add_documents(tmp_path, isles(2), embedder)
    assert (changed.info, changed.unchanged) == (before, ["isles/isle0.md", "isles/isle1.md"])
    assert open_index(tmp_path).info == before


def test_what_is_left_out_is_told_and_kept_in_the_index(tmp_path: Path) -> None:
    embedder = WordEmbedder()
    unread = Dropped("document", "photo.jpg", "a file ending in '.jpg'")
    table = Document("table.md", "# Fares\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", "md")
    built = build_index([*isles(1), table], tmp_path, SETTINGS, embedder, unread=[unread])
    assert [drop.reason for drop in built.dropped] == [unread.reason, "holds only a table"]
    assert (built.info.n_documents, built.info.n_passages) == (2, 2)

    def kept() -> list[tuple[str | None, str]]:
        (file,) = tmp_path.glob("generation-*/dropped.jsonl")
        return [(line.value["document"], line.value["what"]) for line in read_jsonl(file)]

    assert kept() == [(None, "photo.jpg"), ("table.md", "table.md: Fares")]
    add_documents(tmp_path, [isle("skerry")], embedder, unread=[unread])
    assert kept() == [(None, "photo.jpg"), ("table.md", "table.md: Fares")]
    remove_documents(tmp_path, ["table.md"])
    assert kept() == [(None, "photo.jpg")]


def test_progress_is_told(tmp_path: Path) -> None:
    texts: list[tuple[int, int]] = []
    vectors: list[tuple[int, int]] = []
    build_index(
        isles(3),
        tmp_path,
        with_graph(),
        WordEmbedder(),
        on_texts=lambda done, total: texts.append((done, total)),
        on_vectors=lambda done, total: vectors.append((done, total)),
    )
    assert (texts[0], texts[-1]) == ((0, 6), (6, 6))
    assert (vectors[0], vectors[-1]) == ((0, 6), (6, 6))


def test_an_index_is_replaced_only_on_request(tmp_path: Path) -> None:
    embedder = WordEmbedder()
    first = build_index(isles(2), tmp_path / "isles", SETTINGS, embedder).info
    with pytest.raises(
        IndexFolderError, match=r"`transfuse index add .* adds to it, --overwrite replaces it"
    ):
        build_index(isles(1), tmp_path / "isles", SETTINGS, embedder)
    assert open_index(tmp_path / "isles").info == first
    second = build_index(isles(1), tmp_path / "isles", SETTINGS, embedder, overwrite=True).info
    assert (second.id, second.n_documents) == ("isles", 1)
    check_is_sound(tmp_path / "isles", embedder)


def test_another_model_cannot_add(tmp_path: Path) -> None:
    build_index(isles(1), tmp_path, SETTINGS, WordEmbedder())
    with pytest.raises(
        IndexFolderError, match=r"'minilm-l6-v2' \(word-embedder, .* got one that is newer \(64"
    ):
        add_documents(tmp_path, isles(2), WordEmbedder(identity="newer"))


def test_a_pattern_without_a_match_removes_nothing(tmp_path: Path) -> None:
    embedder = WordEmbedder()
    before = build_index(isles(2), tmp_path, SETTINGS, embedder).info
    with pytest.raises(
        DataError, match=r"'\*/rock\*' matches no document; there are: isles/isle0\.md, isles/isle1"
    ):
        remove_documents(tmp_path, ["*isle0*", "*/rock*"])
    assert open_index(tmp_path).info == before


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (
            [isle("a"), isle("b"), isle("a")],
            r"expected names of their own, got \['isles/a\.md'\] more than once",
        ),
        (
            [Document("e.md", "# Empty\n", "md")],
            "expected documents with text, found none in 1, such as .*: empty",
        ),
        ([], "expected documents with text, found none in 0"),
    ],
)
def test_documents_that_make_no_index_are_refused(
    tmp_path: Path, documents: list[Document], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        build_index(documents, tmp_path / "index", SETTINGS, WordEmbedder())
    assert not (tmp_path / "index").exists()


def test_passages_longer_than_the_model_reads_are_refused(tmp_path: Path) -> None:
    settings = IndexSettings(passages=PassageSettings(max_tokens=300))
    with pytest.raises(RecipeError, match=r"max_tokens is 300, but .* reads no more than 254 tokens"):
        build_index(isles(1), tmp_path, settings, WordEmbedder(max_tokens=254))


def test_a_model_that_gives_no_numbers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        WordEmbedder, "embed", lambda self, texts, on_texts=None: np.full((len(texts), 64), np.nan, "f4")
    )
    with pytest.raises(
        DataError, match=r"gave 2 passages unusable vectors: vector 0: .* not finite\. Choose another"
    ):
        build_index(isles(1), tmp_path, SETTINGS, WordEmbedder())


def test_on_a_full_disk_the_old_index_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = WordEmbedder()
    before = build_index(isles(2), tmp_path, SETTINGS, embedder).info

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(RunFolderError, match="the disk is full"):
            add_documents(tmp_path, [isle("skerry")], embedder)
    assert open_index(tmp_path).info == before
    check_is_sound(tmp_path, embedder)


def killed_at(n_changes: int, work: Callable[[], object]) -> bool:
    """Whether a process that is killed at its n-th change of the file system got that far in its work."""
    child = os.fork()
    if child == 0:
        left = n_changes
        changes = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"}

        def count(event: str, args: tuple) -> None:
            nonlocal left
            if event in changes or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                left -= 1
                if left == 0:
                    os._exit(9)

        try:
            sys.addaudithook(count)
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def test_a_kill_at_any_moment_leaves_an_index_whole(tmp_path: Path) -> None:
    embedder = WordEmbedder()
    path = tmp_path / "index"
    build_index(isles(1), tmp_path / "other", with_graph(), embedder)  # imports all that the processes need
    for n_changes in range(1, 200, 9):
        was_killed = killed_at(n_changes, lambda: build_index(isles(2), path, with_graph(), embedder))
        if (path / "index.json").exists():
            break
        assert was_killed
    else:
        pytest.fail("no index after 200 changes")
    assert n_changes > 15
    assert open_index(path, verify=True).info.n_passages == 4
    counts: list[int] = []
    for n_changes in range(1, 200, 5):
        was_killed = killed_at(n_changes, lambda: add_documents(path, isles(3), embedder))
        index = open_index(path, verify=True)
        counts.append(index.info.n_passages)
        assert len(index.search(["harbour"], embedder, mode="dense")[0]) == counts[-1]
        if counts[-1] == 6:
            break
        assert was_killed
    assert counts == [4] * (len(counts) - 1) + [6]
    assert len(counts) > 5
    remove_documents(path, ["*isle0*"])
    check_is_sound(path, embedder)
