import json
import os
from pathlib import Path

import pytest

from transfuse.errors import IndexFolderError, RunFolderError
from transfuse.knowledge.index_files import (
    check_files,
    check_place,
    file_checksums,
    make_current,
    new_generation,
    open_generation,
    read_info,
    writing,
)
from transfuse.knowledge.records import IndexInfo, IndexSettings


def info_of(folder: Path) -> IndexInfo:
    files, n_bytes = file_checksums(folder)
    return IndexInfo(
        id="birds",
        created="2026-01-02T03:04:05+00:00",
        updated="2026-01-02T03:04:05+00:00",
        settings=IndexSettings(),
        embedder_identity="one",
        n_dimensions=3,
        index_type="exact",
        n_documents=1,
        n_passages=2,
        generation=folder.name,
        files=files,
        n_bytes=n_bytes,
    )


def written(path: Path, text: str = "wren", *, overwrite: bool = False) -> IndexInfo:
    """A generation of one file, and one in a folder."""
    with writing(path, overwrite=overwrite):
        with new_generation(path) as folder:
            (folder / "a.txt").write_text(text)
            (folder / "inner").mkdir()
            (folder / "inner" / "b.txt").write_text("b")
            info = info_of(folder)
        make_current(path, info)
    return info


def generations(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.name.startswith("generation-"))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    info = written(tmp_path / "index")
    assert read_info(tmp_path / "index") == info
    assert sorted(info.files) == ["a.txt", "inner/b.txt"]
    assert info.n_bytes == 5
    check_files(tmp_path / "index", info, verify=True)


def test_a_newer_generation_takes_the_place_of_the_older(tmp_path: Path) -> None:
    first, second = written(tmp_path), written(tmp_path, "owl")
    assert first.generation != second.generation
    assert generations(tmp_path) == [second.generation]
    assert not [
        entry for entry in tmp_path.iterdir() if entry.name not in ("index.json", ".lock", second.generation)
    ]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (
            None,
            "expected a knowledge index, found a folder without index.json; make one with `transfuse index build",
        ),
        ("{", "index.json: cannot be read"),
        ("[]", "index.json: contents: .*dictionary"),
        (
            '{"format": 2}',
            "expected an index of format 1, found format 2; use the version of transfuse that wrote",
        ),
        (
            '{"format": 1, "id": "x"}',
            r"index\.json: created: Field required; build it anew with .* --overwrite",
        ),
    ],
)
def test_what_is_no_index_is_refused(tmp_path: Path, contents: str | None, message: str) -> None:
    if contents is not None:
        (tmp_path / "index.json").write_text(contents)
    with pytest.raises(IndexFolderError, match=message):
        read_info(tmp_path)


def test_nothing_and_a_file_are_no_index(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, found in (("nothing", "nothing"), ("file", "a file")):
        with pytest.raises(IndexFolderError, match=f"expected a knowledge index, found {found};"):
            read_info(tmp_path / name)


def test_damage_is_found_by_size_or_by_checksum(tmp_path: Path) -> None:
    info = written(tmp_path)
    file = tmp_path / info.generation / "inner" / "b.txt"
    file.write_text("c")
    check_files(tmp_path, info)
    with pytest.raises(IndexFolderError, match=r"the checksum differs of inner/b\.txt; build it anew"):
        check_files(tmp_path, info, verify=True)
    file.write_text("")
    with pytest.raises(IndexFolderError, match=r"the checksum differs of inner/b\.txt"):
        check_files(tmp_path, info)
    file.unlink()
    with pytest.raises(IndexFolderError, match=r"b\.txt: expected a file of the index, got 'No such file"):
        check_files(tmp_path, info)


def test_a_reader_that_is_overtaken_reads_the_newer_generation(tmp_path: Path) -> None:
    written(tmp_path, "wren")
    texts = iter(["owl", "swift"])

    def read(folder: Path, info: IndexInfo) -> str:
        if text := next(texts, None):
            written(tmp_path, text)
        return (folder / "a.txt").read_text()

    assert open_generation(tmp_path, read) == "swift"


def test_damage_that_shows_in_reading_is_named(tmp_path: Path) -> None:
    info = written(tmp_path)

    def read(folder: Path, info: IndexInfo) -> None:
        raise ValueError("rows do not\n fit")

    with pytest.raises(
        IndexFolderError, match=rf"{info.generation}: cannot be read \(rows do not fit\); build"
    ):
        open_generation(tmp_path, read)


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path: Path) -> None:
    info = written(tmp_path)
    with (
        writing(tmp_path),
        pytest.raises(IndexFolderError, match="another transfuse process is changing this index; wait"),
        writing(tmp_path),
    ):
        pass
    with writing(tmp_path):
        assert open_generation(tmp_path, lambda folder, info: info) == info


def test_a_writer_removes_what_killed_ones_left_and_nothing_else(tmp_path: Path) -> None:
    info = written(tmp_path)
    (tmp_path / "generation-0123456789ab").mkdir()
    (tmp_path / "generation-0123456789ab" / "a.txt").touch()
    (tmp_path / ".index.json.x1").touch()
    (tmp_path / "generation-of-swallows").mkdir()
    with writing(tmp_path):
        names = {entry.name for entry in tmp_path.iterdir()}
    assert names == {"index.json", ".lock", info.generation, "generation-of-swallows"}


def test_a_generation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    info = written(tmp_path)

    def interrupted() -> None:
        with writing(tmp_path), new_generation(tmp_path) as folder:
            (folder / "a.txt").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert generations(tmp_path) == [info.generation]


def test_where_index_json_cannot_be_written_the_old_generation_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = written(tmp_path)

    def fail(number: int) -> None:
        raise OSError(28, "No space left on device")

    with writing(tmp_path), new_generation(tmp_path) as folder:
        other = info_of(folder)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunFolderError, match="the disk is full"):
        make_current(tmp_path, other)
    assert read_info(tmp_path) == info
    assert generations(tmp_path) == [info.generation]


def test_an_interrupt_after_the_change_does_not_take_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path)
    with writing(tmp_path), new_generation(tmp_path) as folder:
        other = info_of(folder)
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        replace(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_current(tmp_path, other)
    monkeypatch.undo()
    assert open_generation(tmp_path, lambda folder, info: info, verify=True) == other


def test_an_index_is_not_built_over_other_things(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IndexFolderError, match="expected a folder for the index, this is a file"):
        check_place(tmp_path / "file", overwrite=True)
    with pytest.raises(IndexFolderError, match=r"found \['file'\]\. Choose another --out"):
        check_place(tmp_path, overwrite=True)
    check_place(tmp_path / "nothing", overwrite=False)
    written(tmp_path / "index")
    with pytest.raises(
        IndexFolderError, match=r"is there already; `transfuse index add .* --overwrite replaces it"
    ):
        check_place(tmp_path / "index", overwrite=False)
    check_place(tmp_path / "index", overwrite=True)


def test_an_index_that_cannot_be_read_is_replaced_only_on_request(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(IndexFolderError, match="found format 99"):
        written(tmp_path)
    info = written(tmp_path, overwrite=True)
    assert generations(tmp_path) == [info.generation]
