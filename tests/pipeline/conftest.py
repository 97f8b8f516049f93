"""The real command line on a tiny random model: small documents, one finished run, and a way to call commands."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fusion_data import SENTENCES, Fusion, write_texts
from isles_data import SECTIONS, qa_rows


class Done(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int | str | None
    out: str
    err: str


class Isles(NamedTuple):
    """Files about invented islands: eight facts in four sections, each with questions of both splits."""

    folder: Path
    document: Path
    facts: Path
    qa: Path
    texts: Path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost a model this small more than they bring, and the same sums come out everywhere."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="session")
def isles(tmp_path_factory: pytest.TempPathFactory) -> Isles:
    """The files of one small run. Shared: do not write into their folder."""
    folder = tmp_path_factory.mktemp("isles")
    text = "# The Tiny Isles\n\n" + "\n\n".join(
        f"## {title}\n\n" + " ".join(sentence for _, sentence, _, _ in facts)
        for title, facts in SECTIONS.items()
    )
    document = folder / "isles.md"
    document.write_text(text + "\n", encoding="utf-8")
    facts = [
        {"id": name, "section": title, "fact": sentence}
        for title, facts in SECTIONS.items()
        for name, sentence, _, _ in facts
    ]
    texts = [{"text": "The quick brown fox jumps over the lazy dog."}, {"text": "A second, shorter text."}]
    return Isles(
        folder,
        document,
        write_rows(folder / "facts.jsonl", facts),
        write_rows(folder / "qa.jsonl", qa_rows()),
        write_rows(folder / "texts.jsonl", texts),
    )


@pytest.fixture(scope="session")
def chat_folder(make_model_folder: Callable) -> Path:
    """A tiny random chat model whose context holds a section and a question."""
    return make_model_folder("isles-chat", max_position_embeddings=1024)


@pytest.fixture(scope="session")
def transfuse() -> Callable[..., Done]:
    """`transfuse("inject", ..., stdin="")`: the command line in this process."""

    def call(*arguments: object, stdin: str = "") -> Done:
        from transfuse.cli import main

        out, err = io.StringIO(), io.StringIO()
        code: int | str | None = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["transfuse", *map(str, arguments)])
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    main()
                except SystemExit as end:
                    code = end.code or 0
        if code == 130:
            raise KeyboardInterrupt  # whoever runs the tests meant them, not the command
        return Done(code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`start("inject", ..., launcher=[...])`: the command line in a process of its own, ended with the test."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        # A shell's background job ignores Ctrl-C, and so would everything that it starts.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "transfuse.cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,  # so that what it launches ends with it
        )
        signal.signal(signal.SIGINT, handler)
        begun.append(process)
        return process

    yield begin
    for process in begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="session")
def inject_arguments(isles: Isles, chat_folder: Path) -> Callable[..., list[str]]:
    """`inject_arguments(out, *more, model=..., ...)`: a whole `inject` command line, settings that take a second."""

    def arguments(out: Path, *more: object, **instead: object) -> list[str]:
        files: dict[str, object] = {
            "documents": isles.document,
            "model": chat_folder,
            "facts": isles.facts,
            "qa": isles.qa,
            "scale": 3,
            **instead,
        }
        line = ["inject", str(files.pop("documents")), "--out", str(out)]
        line += [part for name, value in files.items() for part in (f"--{name}", str(value))]
        settings = {
            "precision": "float32",
            "train.n_epochs": 2,
            "train.batch_rows": 4,
            "train.learning_rate": 0.05,
            "coverage.embedder": "null",
            "rag": "null",
            "evaluate.max_new_tokens": 8,
            "evaluate.texts": json.dumps({"tiny": str(isles.texts)}),
        }
        line += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        return [*line, *map(str, more)]

    return arguments


@pytest.fixture(scope="session")
def finished(
    transfuse: Callable[..., Done], inject_arguments: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run of the document route. Shared: copy it before changing it."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    done = transfuse(*inject_arguments(out))
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="session")
def read_report() -> Callable[[Path], dict[str, Any]]:
    """`read_report(run)`: its `report.json`."""
    return lambda run: json.loads((run / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def reused_stages(read_report: Callable) -> Callable[[Path], dict[str, bool]]:
    """`reused_stages(run)`: of each stage, whether it was reused."""
    return lambda run: {stage["name"]: stage["reused"] for stage in read_report(run)["stages"]}


@pytest.fixture(scope="session")
def greedy_answers() -> Callable:
    """`greedy_answers(model, tokenizer, questions)`: first lines of greedy answers, by plain transformers."""

    def ask(model: Any, tokenizer: Any, questions: list[str], max_new_tokens: int = 8) -> list[str]:
        import torch

        answers: list[str] = []
        for question in questions:
            turns = [{"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            with torch.no_grad():
                output = model.eval().generate(
                    **prompt,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=tokenizer.eos_token_id,
                )
            reply = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
            answers.append(reply.split("\n")[0].strip())
        return answers

    return ask


@pytest.fixture(scope="session")
def fusion(make_model_folder: Callable, tmp_path_factory: pytest.TempPathFactory) -> Fusion:
    """The models and files of one small fusion. Shared: do not write into their folders."""
    from transformers import AutoModelForCausalLM

    chat = make_model_folder("chat", vocab_size=320, seed=2)
    model = AutoModelForCausalLM.from_pretrained(chat)
    model.resize_token_embeddings(model.config.vocab_size + 24, mean_resizing=False)
    model.save_pretrained(chat)
    folder = tmp_path_factory.mktemp("texts")
    texts = [f"{SENTENCES[n % 3]} {SENTENCES[(n + 1) % 3]} Goal {n}." for n in range(9)]
    return Fusion(
        make_model_folder("target", chat_template=None),
        make_model_folder("fine", chat_template=None, vocab_size=270, seed=1),
        chat,
        make_model_folder("twin", chat_template=None, vocab_size=270, seed=3),
        write_texts(folder / "wiki.jsonl", texts[:6]),
        write_texts(folder / "code.jsonl", [SENTENCES[3] * n for n in (1, 2, 40)]),
        write_texts(folder / "eval.jsonl", [*texts[6:], SENTENCES[3]]),
    )


@pytest.fixture(scope="module")
def own_maps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own, for vocabulary maps; the bundled model is seen there if it was fetched."""
    from transfuse.io.bundled import bundled_location

    name = "smollm2-135m"
    fetched = bundled_location(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFUSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        if fetched.is_file():
            bundled_location(name).parent.mkdir(parents=True)
            bundled_location(name).symlink_to(fetched)
        yield


@pytest.fixture(scope="module")
def fuse_line(fusion: Fusion, own_maps: None) -> Callable[..., list[str]]:
    """`fuse_line(out, *more, source=[...], ...)`: a whole `fuse` command line, settings that take a second."""

    def arguments(out: Path, *more: object, **instead: Any) -> list[str]:
        given: dict[str, Any] = {
            "target": fusion.target,
            "source": [fusion.fine],
            "text": [f"wiki={fusion.wiki}"],
            "eval": [f"wiki={fusion.eval}"],
            **instead,
        }
        words = ["fuse", "--out", str(out)]
        for name, values in given.items():
            listed = values if isinstance(values, list) else [values]
            words += [part for value in listed for part in (f"--{name}", str(value))]
        settings = {"precision": "float32", "train.batch_rows": 4, "train.learning_rate": 0.003}
        words += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        return [*words, *map(str, more)]

    return arguments
