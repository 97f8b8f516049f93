"""`ask`, `merge`, `report`, `models`, and the command line itself."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import transfuse as package
from saved_cards import read_card

QUESTION = "I would like to hear what Marrow sells."


def test_ask_answers_with_and_without_an_adapter(
    finished: Path, transfuse: Callable, chat_folder: Path, read_report: Callable
):
    options = ["--model", chat_folder, "--max-new-tokens", "8", "--precision", "float32"]
    alone = transfuse("ask", *options, QUESTION)
    adapted = transfuse("ask", *options, "--adapter", finished / "adapter", QUESTION)
    assert (alone.code, adapted.code) == (0, 0), (alone.err, adapted.err)
    (item,) = [
        item
        for fact in read_report(finished)["facts"]
        for item in fact["items"]
        if item["question"] == QUESTION
    ]
    assert alone.out.strip().startswith(item["answers"]["base"])
    assert adapted.out.strip().startswith(item["answers"]["adapter"])
    assert alone.out != adapted.out
    assert (alone.err, adapted.err) == ("", "")


def test_a_chat_answers_each_line_until_an_empty_one(transfuse: Callable, chat_folder: Path):
    options = ["--model", chat_folder, "--max-new-tokens", "4", "--precision", "float32"]
    single = transfuse("ask", *options, QUESTION)
    chat = transfuse("ask", *options, stdin=f"{QUESTION}\nAnd why?\n\nNever read.\n")
    assert chat.code == 0, chat.err
    assert chat.out.startswith(single.out)
    assert len(chat.out) > len(single.out)
    no_end = transfuse("ask", *options, stdin=QUESTION)
    assert no_end.out == single.out


def test_an_answer_ends_where_the_context_does(transfuse: Callable, make_model_folder: Callable):
    model = make_model_folder("narrow", max_position_embeddings=64)
    done = transfuse("ask", "--model", model, "--max-new-tokens", "500", "Hi")
    assert done.code == 0, done.err
    assert len(done.out.encode()) < 64 * 12  # a token is a few bytes


@pytest.fixture(scope="module")
def merged(
    finished: Path, chat_folder: Path, transfuse: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("merged") / "model"
    done = transfuse("merge", "--model", chat_folder, "--adapter", finished / "adapter", "--out", out)
    assert done.code == 0, done.err
    assert str(out) in done.out
    assert done.err == ""
    return out


def test_a_merged_model_answers_as_the_adapter_does_in_plain_transformers(
    merged: Path, finished: Path, read_report: Callable, greedy_answers: Callable
):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    items = [item for fact in read_report(finished)["facts"] for item in fact["items"]]
    answers = greedy_answers(model, tokenizer, [item["question"] for item in items])
    assert answers == [item["answers"]["adapter"] for item in items]
    assert not list(merged.glob("adapter*"))
    assert "An adapter folded into its base" in read_card(merged)[1]


def test_merge_replaces_a_model_folder_only_when_told(
    merged: Path, finished: Path, chat_folder: Path, transfuse: Callable, tmp_path: Path
):
    out = tmp_path / "model"
    shutil.copytree(merged, out)
    (out / "model.safetensors").write_bytes(b"older")
    line = ["merge", "--model", chat_folder, "--adapter", finished / "adapter", "--out", out]
    refused = transfuse(*line)
    assert refused.code == 1
    assert refused.err == f"Error: {out}: is there already; choose another --out, or give --overwrite.\n"
    assert (out / "model.safetensors").read_bytes() == b"older"
    assert transfuse(*line, "--overwrite").code == 0
    assert (out / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()


def test_report_rebuilds_the_page_and_prints_the_table(finished: Path, transfuse: Callable, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "report.html").unlink()
    done = transfuse("report", run)
    assert done.code == 0, done.err
    assert (run / "report.html").read_text() == (finished / "report.html").read_text()
    assert "adapter/kept-out" in done.out
    assert "Bits per byte (tiny)" in " ".join(done.out.split())
    assert f"Page: {run / 'report.html'}" in done.out


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Code in a process of its own, where no annotation of the parser's own classes is checked."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_models_lists_the_bundled_model(tmp_path: Path):
    code = "import sys; from transfuse.cli import main; sys.argv = ['transfuse', 'models']; main()"
    done = python(code, TRANSFUSE_CACHE=str(tmp_path), HF_HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "smollm2-135m (n" in done.stdout
    assert "fetched)" in done.stdout  # the columns fold
    assert "Apache-2.0" in done.stdout


FETCHED = """
import sys
from transfuse.cli import main
from transfuse.io import bundled
bundled.fetch_bundled = lambda name, *, force=False: f"/cache/{name}/{force}"
sys.argv = ["transfuse", "models", "get", "smollm2-135m", "--force"]
main()
"""


def test_models_get_fetches_and_says_where():
    done = python(FETCHED)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "smollm2-135m is at /cache/smollm2-135m/True\n"


def test_models_get_of_an_unknown_name():
    code = "import sys; from transfuse.cli import main; sys.argv = ['', 'models', 'get', 'smol']; main()"
    done = python(code)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: 'smol' is no bundled model; the bundled ones are: smollm2-135m.\n"


def test_version_and_help(transfuse: Callable):
    assert transfuse("--version") == (0, f"transfuse {package.__version__}\n", "")
    done = transfuse("--help")
    assert done.code == 0
    for command in ("inject", "run", "report", "ask", "merge", "models"):
        assert f"\n  {command} " in done.out
    for command in ("inject", "run", "report", "ask", "merge", "models"):
        assert transfuse(command, "--help").code == 0


def test_the_command_line_starts_without_the_heavy_libraries():
    code = "import sys, transfuse.cli; print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    done = python(code)
    assert (done.stdout, done.stderr) == ("[]\n", "")
