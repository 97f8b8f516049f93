"""Wrong input ends with exit code 1, one clear message, no traceback, and nothing half-written."""

import errno
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SHORT = ["--set", "evaluate.oracle=false", "--set", "train.n_epochs=1"]


@pytest.fixture
def refused(transfuse: Callable, inject_arguments: Callable, tmp_path: Path) -> Callable[..., str]:
    """`refused("inject", "--scale", 0, model=...)`: the message of a run that must not begin; no folder stays."""

    def run(*more: object, **instead: object) -> str:
        out = Path(str(instead.pop("out", tmp_path / "run")))
        was_there = out.exists()
        message = message_of(transfuse(*inject_arguments(out, *more, **instead)))
        if not was_there:
            assert not out.exists() or not any(out.iterdir()), "a refused run leaves no folder"
        return message

    return run


def message_of(done: Any) -> str:
    """The error of a command that failed as it should: after any progress, from `Error:` to the end."""
    assert done.code == 1, (done.code, done.out, done.err)
    assert "Traceback" not in done.err
    assert done.out == ""
    starts = [found.start() for found in re.finditer("^Error: ", done.err, re.MULTILINE)]
    assert len(starts) == 1, done.err
    return done.err[starts[0] :]


def copy_without(folder: Path, target: Path, *patterns: str) -> Path:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*patterns))
    return target


# models


def test_a_model_without_weights(refused: Callable, chat_folder: Path, tmp_path: Path):
    model = copy_without(chat_folder, tmp_path / "model", "*.safetensors")
    message = refused(model=model)
    assert message.startswith(f"Error: {model}: expected weights in model.safetensors")
    assert "found neither" in message
    assert "save_pretrained" in message or "copy" in message


def test_a_model_without_tokenizer(refused: Callable, chat_folder: Path, tmp_path: Path):
    model = copy_without(chat_folder, tmp_path / "model", "tokenizer*")
    message = refused(model=model)
    assert f"{model}: expected tokenizer files (such as tokenizer.json), found none; copy" in message


def test_weights_that_are_cut_short(refused: Callable, chat_folder: Path, tmp_path: Path):
    model = copy_without(chat_folder, tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    message = refused(model=model)
    assert f"{weights}: the weights are damaged or cut short" in message
    assert "copy the file again" in message


def test_an_unknown_bundled_name(refused: Callable):
    message = refused(model="smollm2-135")
    assert "model 'smollm2-135': expected a bundled name (smollm2-135m), a folder, a .gguf file" in message
    assert "Did you mean 'smollm2-135m'?" in message


def test_a_bundled_model_that_is_not_fetched(
    refused: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))
    message = refused(model="smollm2-135m")
    assert "is not fetched" in message
    assert "`transfuse models get smollm2-135m`" in message


def test_a_fetched_file_that_was_altered(refused: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from transfuse.io.bundled import bundled_location

    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))
    path = bundled_location("smollm2-135m")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF, but another")
    message = refused(model="smollm2-135m")
    assert f"{path}: the file of bundled model 'smollm2-135m' was altered: expected SHA-256" in message
    assert "`transfuse models get smollm2-135m --force`" in message


def test_an_adapter_given_as_the_model(refused: Callable, finished: Path, chat_folder: Path):
    message = refused(model=finished / "adapter")
    assert "this is an adapter, not a model; give it as --adapter" in message
    assert str(chat_folder) in message


def test_ask_with_an_adapter_of_another_shape(
    transfuse: Callable, finished: Path, make_model_folder: Callable
):
    other = make_model_folder("wider", hidden_size=48)
    message = message_of(transfuse("ask", "--model", other, "--adapter", finished / "adapter", "Hi"))
    assert f"{finished / 'adapter'}: the adapter does not fit the model" in message
    assert "give the base model that it was trained on" in message


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"adapter_model.safetensors": b"xx"}, "the adapter is damaged"),
        ({"adapter_config.json": b"{"}, "the adapter is damaged"),
        ({"adapter_config.json": b"{}"}, "the adapter is damaged"),
    ],
)
def test_ask_with_a_damaged_adapter(
    damage: dict[str, bytes],
    said: str,
    transfuse: Callable,
    finished: Path,
    chat_folder: Path,
    tmp_path: Path,
):
    adapter = tmp_path / "adapter"
    shutil.copytree(finished / "adapter", adapter)
    for name, content in damage.items():
        (adapter / name).write_bytes(content)
    message = message_of(transfuse("ask", "--model", chat_folder, "--adapter", adapter, "Hi"))
    assert f"{adapter}: {said}" in message
    assert "copy or train it again" in message


def test_ask_for_no_tokens(transfuse: Callable, chat_folder: Path):
    done = transfuse("ask", "--model", chat_folder, "--max-new-tokens", "0", "Hi")
    assert done.code == 2  # a wrong flag, told by the parser
    assert "--max-new-tokens" in done.err


def test_a_conversation_longer_than_the_context(transfuse: Callable, chat_folder: Path):
    message = message_of(transfuse("ask", "--model", chat_folder, "why " * 1200))
    assert "the model's context holds 1024; start a new one" in message


def test_merge_onto_the_base_model_itself(
    transfuse: Callable, finished: Path, chat_folder: Path, tmp_path: Path
):
    model = copy_without(chat_folder, tmp_path / "model")
    before = (model / "model.safetensors").read_bytes()
    done = transfuse(
        "merge", "--model", model, "--adapter", finished / "adapter", "--out", model, "--overwrite"
    )
    message = message_of(done)
    assert f"{model}: is the base model itself" in message
    assert (model / "model.safetensors").read_bytes() == before


def test_merge_over_another_folder(transfuse: Callable, finished: Path, chat_folder: Path, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"\xff")
    line = ["merge", "--model", chat_folder, "--adapter", finished / "adapter", "--out", tmp_path / "photos"]
    assert "is no model folder, so it is not replaced" in message_of(transfuse(*line, "--overwrite"))
    assert (tmp_path / "photos" / "cat.jpg").is_file()


# documents


def encrypted_pdf() -> bytes:
    import pypdf
    from reportlab.pdfgen.canvas import Canvas

    plain, locked = io.BytesIO(), io.BytesIO()
    canvas = Canvas(plain)
    canvas.drawString(50, 700, "Secret.")
    canvas.save()
    writer = pypdf.PdfWriter(clone_from=pypdf.PdfReader(plain))
    writer.encrypt("word", "owner", algorithm="AES-256")
    writer.write(locked)
    return locked.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.md", b"", "expected text, the file is empty; give a file that holds text"),
        ("binary.md", b"# A\n\nb\0c", "expected text, found binary content (a NUL byte at byte 6)"),
        ("latin.md", "# A\n\nGrüße".encode("latin-1"), "expected UTF-8, found byte 0xfc at byte 7"),
        ("damaged.pdf", b"hello", "expected a PDF file, it is damaged"),
        ("damaged.docx", b"hello", "expected a .docx file, it is damaged"),
        ("isles.xyz", b"hello", "expected a document (.md, "),
        ("title.md", b"# The Tiny Isles\n", "expected sections with text, found none"),
    ],
)
def test_a_document_that_cannot_be_read(
    name: str, content: bytes, said: str, refused: Callable, tmp_path: Path
):
    path = tmp_path / name
    path.write_bytes(content)
    message = refused(documents=path)
    assert message.startswith(f"Error: {path}: {said}")


def test_an_encrypted_pdf(refused: Callable, tmp_path: Path):
    path = tmp_path / "locked.pdf"
    path.write_bytes(encrypted_pdf())
    message = refused(documents=path)
    assert f"{path}: expected a readable PDF file, it is encrypted with a password; decrypt it" in message


def test_nothing_but_the_message_is_printed_for_a_damaged_pdf(
    transfuse: Callable, inject_arguments: Callable, tmp_path: Path
):
    (tmp_path / "damaged.pdf").write_bytes(b"hello")
    done = transfuse(*inject_arguments(tmp_path / "run", documents=tmp_path / "damaged.pdf"))
    assert done.err == message_of(done)


def test_a_document_that_is_not_there(refused: Callable, tmp_path: Path):
    message = refused(documents=tmp_path / "nowhere.md")
    assert f"{tmp_path / 'nowhere.md'}: expected a file or a folder, nothing is there" in message


# facts and questions


@pytest.fixture
def qa_lines(isles: Any) -> list[str]:
    return isles.qa.read_text(encoding="utf-8").splitlines()


def test_a_broken_line_is_named(refused: Callable, qa_lines: list[str], tmp_path: Path):
    path = tmp_path / "qa.jsonl"
    path.write_text("\n".join([*qa_lines[:3], '{"basis": "fact", ', *qa_lines[4:]]))
    message = refused(qa=path)
    assert f"{path}:4: expected one JSON object a line, got broken JSON" in message
    assert "mend or delete the line" in message


def test_unknown_fact_ids_are_listed(refused: Callable, qa_lines: list[str], tmp_path: Path):
    path = tmp_path / "qa.jsonl"
    path.write_text("\n".join([*qa_lines, qa_lines[0].replace('"f1"', '"f99"')]))
    message = refused(qa=path)
    assert f"'f99' ({path}:{len(qa_lines) + 1})" in message
    assert "known are 'f1' to 'f8'" in message


@pytest.mark.parametrize(("kept", "missing"), [("train", "eval"), ("eval", "train")])
def test_questions_of_one_split_only(
    kept: str, missing: str, refused: Callable, qa_lines: list[str], tmp_path: Path
):
    path = tmp_path / "qa.jsonl"
    path.write_text("\n".join(line for line in qa_lines if f'"split": "{kept}"' in line))
    assert f"{path}: no rows with 'split': '{missing}' of basis 'fact'" in refused(qa=path)


def test_a_question_in_both_splits_is_listed(refused: Callable, qa_lines: list[str], tmp_path: Path):
    path = tmp_path / "qa.jsonl"
    path.write_text("\n".join([*qa_lines, qa_lines[0].replace('"train"', '"eval"')]))
    message = refused(qa=path)
    assert f"{path}: 1 eval question" in message
    assert f"q{len(qa_lines) + 1} and q1: 'Tell me how many people live on the Tiny Isles.'" in message


def test_no_questions_of_the_basis(refused: Callable, qa_lines: list[str], tmp_path: Path):
    path = tmp_path / "qa.jsonl"
    path.write_text("\n".join(line for line in qa_lines if '"basis": "fact"' in line))
    assert "no pairs of basis 'token'; use --basis fact" in refused("--basis", "token", qa=path)


@pytest.mark.parametrize("name", ["facts", "qa"])
def test_a_file_of_facts_or_questions_that_is_not_there(name: str, refused: Callable, tmp_path: Path):
    path = tmp_path / "nowhere.jsonl"
    assert f"{path}: expected a JSONL file, got 'No such file or directory'" in refused(**{name: path})


@pytest.mark.parametrize(
    "setting",
    ['evaluate.texts={{"own": "{path}"}}', "records.replay_texts={path}"],
)
def test_a_text_file_that_is_not_there(setting: str, refused: Callable, tmp_path: Path):
    path = tmp_path / "nowhere.jsonl"
    share = ["--set", "records.replay_share=0.5"]
    message = refused(*share, "--set", setting.format(path=path))
    assert f"{path}: expected a JSONL file, got 'No such file or directory'; check the path." in message


# recipes and flags


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--scale", "0"], "scale: Input should be greater than 0, got 0"),
        (["--scale", "-3"], "scale: Input should be greater than 0, got -3"),
        (["--basis", "tokens"], "basis: Input should be 'fact' or 'token', got 'tokens'"),
        (["--set", "trian.n_epochs=2"], "trian: unknown key"),
        (["--set", "train.n_epoch=2"], "train.n_epoch: unknown key"),
        (["--set", "train.n_epochs=two"], "train.n_epochs: Input should be a valid integer"),
        (["--set", "n_epochs"], "--set 'n_epochs': expected key=value, such as train.n_epochs=6."),
        (["--set", "seed=null"], "seed: Input should be a valid integer"),
        (["--seed", "-1"], "seed: Input should be greater than or equal to 0, got -1"),
        (["--set", "seed=99999999999999999999"], "seed: Input should be less than"),
        (["--set", "precision=fp16"], "precision: Input should be 'auto', 'float32' or 'bfloat16'"),
        (["--set", "kept_out_share=1"], "kept_out_share: Input should be less than 1"),
        (
            ["--set", "train.method=full", "--set", "train.lora.rank=4"],
            "train: train.lora is set, but train.method is 'full'; set one of the two",
        ),
        (["--include", "Nowhere*"], "include pattern 'Nowhere*' matches none of the 4 sections"),
        (["--exclude", "*"], "none of the 4 sections is left (excluded by pattern '*')"),
        (["--set", "train.report_to=[nosuch]"], "train.report_to: ['nosuch'] cannot be used"),
    ],
)
def test_a_wrong_flag(flags: list[str], said: str, refused: Callable):
    assert said in refused(*flags)


def recipe_with(path: Path, isles: Any, chat_folder: Path, **changes: object) -> Path:
    tree = {
        "kind": "inject",
        "seed": 17,
        "model": str(chat_folder),
        "documents": str(isles.document),
        "facts": str(isles.facts),
        "qa": str(isles.qa),
    } | changes
    path.write_text(json.dumps({name: value for name, value in tree.items() if value is not ...}))
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": ...}, "seed: is missing: a run without a seed cannot be repeated; add one, such as"),
        ({"sacle": 5}, "sacle: unknown key"),
        (
            {"kind": "fusion"},
            "kind: expected one of ['compare', 'eval', 'fuse', 'inject', 'transfer'], got 'fusion'",
        ),
        (
            {"kind": ["inject"]},
            "kind: expected one of ['compare', 'eval', 'fuse', 'inject', 'transfer'], got ['inject']",
        ),
        ({"model": ...}, "model: is missing"),
    ],
)
def test_a_wrong_recipe(
    changes: dict[str, object], said: str, isles: Any, chat_folder: Path, transfuse: Callable, tmp_path: Path
):
    recipe = recipe_with(tmp_path / "recipe.yaml", isles, chat_folder, **changes)
    message = message_of(transfuse("run", recipe, "--out", tmp_path / "run"))
    assert f"{recipe}: {said}" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "expected a recipe file, got 'No such file or directory'"),
        ("kind: [inject", "expected YAML"),
        ("- kind", "expected a recipe with keys and values, got"),
        ("", "expected a recipe with keys and values, got"),
    ],
)
def test_a_file_that_is_no_recipe(content: str | None, said: str, transfuse: Callable, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    if content is not None:
        recipe.write_text(content)
    message = message_of(transfuse("run", recipe, "--out", tmp_path / "run"))
    assert f"{recipe}: {said}" in message


# run folders


def test_the_folder_of_a_different_run(finished: Path, refused: Callable):
    before = (finished / "recipe.resolved.yaml").read_bytes()
    message = refused("--set", "train.n_epochs=5", out=finished)
    assert f"{finished}: holds a different run:\n  train.n_epochs: 2 there, 5 now\n" in message
    assert "Choose another --out, or give --overwrite" in message
    assert (finished / "recipe.resolved.yaml").read_bytes() == before


def test_a_folder_of_strangers_files(refused: Callable, tmp_path: Path):
    out = tmp_path / "photos"
    out.mkdir()
    (out / "cat.jpg").write_bytes(b"\xff")
    message = refused(out=out)
    assert f"{out}: expected a new or empty folder, or one of this run; found ['cat.jpg']" in message
    assert [path.name for path in out.iterdir()] == ["cat.jpg"]


def test_an_input_that_is_mended_needs_no_other_folder(
    transfuse: Callable, inject_arguments: Callable, isles: Any, tmp_path: Path
):
    out = tmp_path / "run"
    assert transfuse(*inject_arguments(out, *SHORT, qa=tmp_path / "nowhere.jsonl")).code == 1
    done = transfuse(*inject_arguments(out, *SHORT, qa=isles.qa))
    assert done.code == 0, done.err


def test_a_place_below_a_file(refused: Callable, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    message = refused(out=tmp_path / "file" / "run")
    assert f"{tmp_path / 'file' / 'run'}: expected to write here" in message
    assert "a part of the path is a file, not a folder; choose another folder" in message
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_without_permission(refused: Callable, tmp_path: Path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere")
    assert "no permission to write there; choose a folder of your own" in refused(out=locked / "run")


def test_a_folder_that_another_process_holds(
    transfuse: Callable, inject_arguments: Callable, finished: Path, tmp_path: Path
):
    import fcntl

    out = tmp_path / "run"
    shutil.copytree(finished, out)
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = message_of(transfuse(*inject_arguments(out)))
    assert f"{out}: another transfuse process is at work there; wait for it" in message


@pytest.mark.parametrize("content", ["{", "[1, 2]"])
def test_a_recipe_file_in_the_run_folder_that_is_damaged(
    content: str, transfuse: Callable, inject_arguments: Callable, tmp_path: Path
):
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.resolved.yaml").write_text(content)
    message = message_of(transfuse(*inject_arguments(out)))
    assert f"{out / 'recipe.resolved.yaml'}: cannot be read; choose another --out, or give" in message


def test_a_stage_whose_file_was_deleted_is_done_again(
    transfuse: Callable, inject_arguments: Callable, finished: Path, tmp_path: Path, reused_stages: Callable
):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "base" / "answers.jsonl").unlink()
    done = transfuse(*inject_arguments(out))
    assert done.code == 0, done.err
    assert (reused_stages(out)["base"], reused_stages(out)["training"]) == (False, True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "expected the folder of a finished run, found nothing; check the path."),
        ("file", "expected the folder of a finished run, found a file"),
        ("empty", "holds no report.json: the run is not finished, or this is not a run folder"),
    ],
)
def test_a_report_of_no_run(name: str, said: str, transfuse: Callable, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    message = message_of(transfuse("report", tmp_path / name))
    assert message.startswith(f"Error: {tmp_path / name}: {said}")


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
    small_disk: Path,
    transfuse: Callable,
    inject_arguments: Callable,
    reused_stages: Callable,
):
    out, filler = small_disk / "run", small_disk / "filler"
    filler.write_bytes(bytes(2_000_000))  # the base measurement fits beside it, the adapter does not
    rank = ["--set", "train.lora.rank=32"]
    message = message_of(transfuse(*inject_arguments(out, *SHORT, *rank)))
    assert "the disk is full; free space or choose another folder, then run again to continue" in message
    assert not (out / "adapter").exists()
    assert [path.name for path in out.rglob(".*")] == [".lock"]
    filler.unlink()
    done = transfuse(*inject_arguments(out, *SHORT, *rank))
    assert done.code == 0, done.err
    assert (reused_stages(out)["base"], reused_stages(out)["training"]) == (True, False)


def test_a_disk_that_fills_while_a_file_is_written(
    transfuse: Callable, inject_arguments: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_text = Path.write_text

    def write(path: Path, *args: Any, **kwargs: Any) -> int:
        if ".manifest.json." in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", write)
    message = message_of(transfuse(*inject_arguments(tmp_path / "run", *SHORT)))
    assert f"{tmp_path / 'run' / 'manifest.json'}: expected to write here" in message
    assert "the disk is full" in message
    assert [path.name for path in (tmp_path / "run").glob(".*")] == [".lock"]


# training


def test_a_learning_rate_that_breaks_the_model(
    transfuse: Callable, inject_arguments: Callable, tmp_path: Path
):
    from safetensors.torch import load_file

    out = tmp_path / "run"
    calm = ["--set", "train.checkpoint_s=0.000001"]
    done = transfuse(*inject_arguments(out, *SHORT, *calm, "--set", "train.learning_rate=1e30"))
    message = message_of(done)
    assert "of 6: expected a finite loss and gradient, got loss nan" in message
    assert "Lower train.learning_rate" in message
    assert "--overwrite" in message  # another learning rate is a different run
    kept = out / "training" / "checkpoint"
    assert f"checkpoint is kept in {kept}" in message
    assert all(weight.isfinite().all() for weight in load_file(kept / "weights.safetensors").values())
    assert not (out / "adapter").exists()
    assert not (out / "report.json").exists()
    again = transfuse(*inject_arguments(out, *SHORT, *calm, "--overwrite"))
    assert again.code == 0, again.err


def test_lora_targets_that_the_model_lacks(transfuse: Callable, inject_arguments: Callable, tmp_path: Path):
    done = transfuse(*inject_arguments(tmp_path / "run", *SHORT, "--set", "train.lora.targets=[nosuch]"))
    message = message_of(done)
    assert "train.lora.targets: ['nosuch'] do not fit the model" in message
    assert not (tmp_path / "run" / "adapter").exists()


def test_records_that_are_all_too_long(transfuse: Callable, inject_arguments: Callable, tmp_path: Path):
    done = transfuse(*inject_arguments(tmp_path / "run", *SHORT, "--set", "train.max_length_tokens=3"))
    assert "expected training rows, got none; check the scale, the kept-out share" in message_of(done)
