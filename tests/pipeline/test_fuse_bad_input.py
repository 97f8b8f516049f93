"""Wrong input of the fusion route ends with exit code 1, one clear message, and nothing half-written."""

import errno
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_bad_input import message_of

from fusion_data import Fusion, write_texts

pytestmark = pytest.mark.usefixtures("own_maps")

FEW = ("--set", "controls=[]", "--set", "evaluate.sources=false")
TARGETS = ("--stop-after", "targets")


@pytest.fixture
def refused(transfuse: Callable, fuse_line: Callable, tmp_path: Path) -> Callable[..., str]:
    """`refused("--rule", ..., source=...)`: the message of a run that must not begin; no folder stays."""

    def run(*more: object, **instead: object) -> str:
        message = message_of(transfuse(*fuse_line(tmp_path / "run", *more, **instead)))
        assert not (tmp_path / "run").exists(), "a refused run leaves no folder"
        return message

    return run


@pytest.fixture(scope="module")
def cache(
    transfuse: Callable, fuse_line: Callable, fusion: Fusion, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Distributions of source `fine` over the pieces of the plain run. Shared: copy it before changing it."""
    folder = tmp_path_factory.mktemp("cache")
    done = transfuse(*fuse_line(folder / "run", "--stop-after", "pieces"))
    assert done.code == 0, done.err
    done = transfuse(*pass_line(fusion, folder / "cache", folder / "run" / "pieces" / "pieces.jsonl"))
    assert done.code == 0, done.err
    return folder / "cache"


def pass_line(fusion: Fusion, out: Path, texts: Path, *more: object) -> list[object]:
    words = ["fuse", "distributions", "--source", fusion.fine, "--text", texts, "--out", out]
    return [*words, "--precision", "float32", "--set", "shard_tokens=300", *more]


def given(folder: Path, name: str = "fine") -> tuple[str, str]:
    return "--set", f"caches={json.dumps({name: str(folder)})}"


# texts


def test_a_text_file_that_is_not_utf8(refused: Callable, tmp_path: Path):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    assert f"{path}" in (message := refused(text=[path]))
    assert "UTF-8" in message
    assert "line 2" in message or ":2" in message


def test_an_eval_domain_without_texts(refused: Callable, tmp_path: Path):
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    assert f'{path}: expected texts, one {{"text"}} a line; the file holds none' in refused(eval=[path])


def test_a_text_file_that_is_not_there(refused: Callable, tmp_path: Path):
    assert f"{tmp_path / 'none.jsonl'}" in refused(text=[f"wiki={tmp_path / 'none.jsonl'}"])


def test_a_domain_named_twice(refused: Callable, fusion: Fusion):
    message = refused(text=[f"wiki={fusion.wiki}", f"wiki={fusion.code}"])
    assert "--text: two files are named 'wiki'; name them: --text NAME=FILE" in message


# models


def test_a_source_that_is_not_there(refused: Callable, tmp_path: Path):
    assert f"model '{tmp_path / 'nowhere'}'" in refused(source=[tmp_path / "nowhere"])


def test_a_source_without_weights(refused: Callable, fusion: Fusion, tmp_path: Path):
    bare = tmp_path / "bare"
    shutil.copytree(fusion.fine, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    assert f"{bare}: expected weights in model.safetensors" in refused(source=[bare])


def test_a_tokenizer_written_in_python(refused: Callable, fusion: Fusion, tmp_path: Path):
    from transformers import ByT5Tokenizer

    slow = tmp_path / "slow"
    shutil.copytree(fusion.fine, slow, ignore=shutil.ignore_patterns("tokenizer*"))
    ByT5Tokenizer().save_pretrained(slow)
    message = refused(source=[slow])
    assert "tokenizer ByT5Tokenizer" in message
    assert "expected a fast tokenizer" in message


def test_a_context_too_short_for_anything(refused: Callable, make_model_folder: Callable):
    short = make_model_folder("short", chat_template=None, max_position_embeddings=4)
    message = refused(source=[short])
    assert f"pieces: expected room for at least 8 tokens, got 4 (the context of {short})" in message


def test_pieces_are_cut_to_the_shortest_context(
    transfuse: Callable, fuse_line: Callable, fusion: Fusion, make_model_folder: Callable, tmp_path: Path
):
    from transformers import AutoTokenizer

    short = make_model_folder("short", chat_template=None, vocab_size=270, max_position_embeddings=24)
    out = tmp_path / "run"
    done = transfuse(*fuse_line(out, *FEW, source=[short, fusion.chat]))
    assert done.code == 0, done.err
    rows = [json.loads(row) for row in (out / "pieces" / "pieces.jsonl").read_text().splitlines()]
    for folder in (short, fusion.chat, fusion.target):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert max(len(tokenizer(row["text"])["input_ids"]) for row in rows) <= 24
    assert len(rows) > 12


# settings


def test_pairwise_with_one_source(refused: Callable):
    message = refused("--strategy", "pairwise")
    assert "strategy pairwise merges one result a source; give two sources or more" in message


def test_a_merge_method_without_pairwise(refused: Callable):
    assert "--merge-method is for --strategy pairwise" in refused("--merge-method", "linear")


@pytest.mark.parametrize(("option", "value"), [("--rule", "best"), ("--loss", "mse"), ("--level", "word")])
def test_a_word_that_is_none_of_those_known(refused: Callable, option: str, value: str):
    message = refused(option, value)
    assert "fusion." in message
    assert value in message


@pytest.mark.parametrize("option", ["target", "source", "text"])
def test_what_cannot_be_left_out(refused: Callable, option: str):
    assert f"transfuse fuse: expected --{option} " in refused(**{option: []})


def test_coverage_under_the_threshold_stops_before_any_pass(
    transfuse: Callable, fuse_line: Callable, tmp_path: Path
):
    out = tmp_path / "run"
    message = message_of(transfuse(*fuse_line(out, "--set", "fusion.min_coverage=0.99")))
    assert "fine" in message
    assert "99" in message
    assert "fusion.min_coverage" in message
    assert not (out / "distributions").exists()
    # Another threshold changes no result, so the same folder goes on.
    done = transfuse(*fuse_line(out, *TARGETS, "--set", "fusion.min_coverage=0.1"))
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["check", "--target", "{target}", "--source", "{fine}"], "fuse check: expected --text FILE"),
        (["check", "--source", "{fine}", "--text", "{wiki}"], "fuse check: expected --target MODEL"),
        (["distributions", "--source", "{fine}", "--text", "{wiki}"], "distributions: expected --out FOLDER"),
        (["distributions", "--text", "{wiki}", "--out", "{out}"], "distributions: expected --source MODEL"),
        (
            ["distributions", "--source", "{fine}", "--text", "{wiki}", "--out", "{out}", "--set", "kk=3"],
            "kk",
        ),
        (["inspect", "{out}"], "expected a cache of distributions, found nothing"),
    ],
)
def test_parts_of_the_command_given_wrong_words(
    transfuse: Callable, fusion: Fusion, tmp_path: Path, words: list[str], expected: str
):
    known = {**fusion._asdict(), "out": tmp_path / "out"}
    message = message_of(transfuse("fuse", *(word.format(**known) for word in words)))
    assert expected in message
    assert not (tmp_path / "out").exists()


# caches


def test_a_cache_of_an_unknown_source(refused: Callable, cache: Path):
    assert "caches: 'coarse' is no source; expected target, fine" in refused(*given(cache, "coarse"))


def test_a_cache_that_is_not_there(refused: Callable, tmp_path: Path):
    message = refused(*given(tmp_path / "nothing"))
    assert f"{tmp_path / 'nothing'}: expected a cache of distributions, found nothing" in message


def test_a_cache_of_another_tokenizer(refused: Callable, cache: Path, fusion: Fusion):
    message = refused(*given(cache, "chat"), source=[fusion.chat])
    assert (
        f"{cache}: expected the distributions of source 'chat', got those of a model with another" in message
    )
    assert str(fusion.fine) in message


def test_a_cache_that_keeps_no_tokens(refused: Callable, transfuse: Callable, fusion: Fusion, tmp_path: Path):
    done = transfuse(*pass_line(fusion, tmp_path / "bare", fusion.wiki, "--set", "k=0"))
    assert done.code == 0, done.err
    message = refused(*given(tmp_path / "bare"))
    assert f"{tmp_path / 'bare'}: keeps no tokens (k = 0)" in message


def test_caches_of_other_texts(transfuse: Callable, fuse_line: Callable, fusion: Fusion, tmp_path: Path):
    texts = write_texts(tmp_path / "other.jsonl", ["Another text altogether."])
    done = transfuse(*pass_line(fusion, tmp_path / "cache", texts))
    assert done.code == 0, done.err
    message = message_of(transfuse(*fuse_line(tmp_path / "run", *given(tmp_path / "cache"))))
    assert f"{tmp_path / 'cache'}: text 0 is another one than that of the pieces of this run" in message
    assert "'Which country won" in message


def test_a_shard_that_is_cut_short(refused: Callable, cache: Path, tmp_path: Path):
    copy = tmp_path / "cache"
    shutil.copytree(cache, copy)
    shard = copy / "shard-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-5])
    message = refused(*given(copy))
    assert f"{copy}: shard-00001.bin is truncated; copy it again, or give --rebuild" in message


def test_a_shard_that_was_altered_is_rebuilt_on_request(
    transfuse: Callable, fuse_line: Callable, fusion: Fusion, cache: Path, tmp_path: Path
):
    copy, out = tmp_path / "cache", tmp_path / "run"
    shutil.copytree(cache, copy)
    shard = copy / "shard-00001.bin"
    whole = shard.read_bytes()
    shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    message = message_of(transfuse(*fuse_line(out, *TARGETS, *given(copy))))
    assert f"{copy}: shard-00001.bin is altered; copy it again, or give --rebuild where it is made" in message
    assert not (out / "targets" / "together" / "targets").exists()
    inspected = transfuse("fuse", "inspect", copy, "--verify", "--json")
    assert inspected.code == 1
    assert json.loads(inspected.out)["damaged"] == ["shard-00001.bin is altered"]
    assert f"Error: {copy}: shard-00001.bin is altered; copy it again" in inspected.err
    pieces = out / "pieces" / "pieces.jsonl"
    done = transfuse(*pass_line(fusion, copy, pieces, "--rebuild"))
    assert done.code == 0, done.err
    assert shard.read_bytes() == whole
    done = transfuse(*fuse_line(out, *TARGETS, *given(copy)))
    assert done.code == 0, done.err


def test_a_damaged_cache_of_the_run_itself_is_made_anew_once_it_is_deleted(
    transfuse: Callable, fuse_line: Callable, tmp_path: Path
):
    out = tmp_path / "run"
    done = transfuse(*fuse_line(out, *TARGETS))
    assert done.code == 0, done.err
    own = out / "distributions" / "fine"
    shard = own / "cache" / "shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    message = message_of(transfuse(*fuse_line(out, *TARGETS)))
    assert "shard-00000.bin is truncated" in message
    assert f"delete {own} and run the same command again" in message
    shutil.rmtree(own)
    done = transfuse(*fuse_line(out, *TARGETS))
    assert done.code == 0, done.err


def test_targets_that_are_cut_short(transfuse: Callable, fuse_line: Callable, tmp_path: Path):
    out = tmp_path / "run"
    done = transfuse(*fuse_line(out, *FEW, *TARGETS))
    assert done.code == 0, done.err
    path = out / "targets" / "together" / "targets" / "kept_ids.bin"
    path.write_bytes(path.read_bytes()[:-2])
    message = message_of(transfuse(*fuse_line(out, *FEW)))
    assert f"{path}: expected" in message
    assert "delete the folder and run the same command again" in message
    shutil.rmtree(path.parent.parent)
    done = transfuse(*fuse_line(out, *FEW))
    assert done.code == 0, done.err


# disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if mount.returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_said_and_the_run_continues_once_there_is_room(
    small_disk: Path, transfuse: Callable, fuse_line: Callable, read_report: Callable
):
    out, filler = small_disk / "run", small_disk / "filler"
    filler.write_bytes(bytes(1_980_000))  # the pieces fit beside it, the caches do not
    message = message_of(transfuse(*fuse_line(out, *FEW)))
    assert "of free space for 478 tokens" in message
    assert not list(out.rglob("shard-*"))
    filler.unlink()
    done = transfuse(*fuse_line(out, *FEW, *TARGETS))
    assert done.code == 0, done.err
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(bytes(free - 100_000))  # the model does not fit
    message = message_of(transfuse(*fuse_line(out, *FEW)))
    assert "the disk is full; free space or choose another folder, then run again to continue" in message
    assert not (out / "model").exists()
    assert {path.name for path in out.rglob(".*")} == {".lock"}
    filler.unlink()
    done = transfuse(*fuse_line(out, *FEW))
    assert done.code == 0, done.err
    reused = {stage["name"]: stage["reused"] for stage in read_report(out)["stages"]}
    assert (reused["targets/together"], reused["arms/fused/seed-17"]) == (True, False)


def test_a_disk_that_fills_while_targets_are_written(
    transfuse: Callable, fuse_line: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transfuse.recipes import fuse_lessons

    fuse_piece, n_done = fuse_lessons.fuse_piece, []

    def filling(*args: Any) -> Any:
        n_done.append(None)
        if len(n_done) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return fuse_piece(*args)

    monkeypatch.setattr(fuse_lessons, "fuse_piece", filling)
    out = tmp_path / "run"
    message = message_of(transfuse(*fuse_line(out, *TARGETS)))
    targets = out / "targets" / "together"
    assert f"{targets / 'targets'}: expected to write here" in message
    assert "the disk is full" in message
    assert sorted(path.name for path in targets.iterdir()) == ["started.json"]
    done = transfuse(*fuse_line(out, *TARGETS))
    assert done.code == 0, done.err
