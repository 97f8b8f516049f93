"""Distillation by the command line: another vocabulary, an endpoint as teacher, and no teacher at all."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from faulty_endpoint import FaultyEndpoint

SETTINGS = ("precision=float32", "train.n_epochs=2", "train.batch_rows=4", "evaluate.generate=false")


def samples(path: Path, n: int) -> Path:
    rows = [
        {
            "id": f"s{number}",
            "messages": [
                {"role": "user", "content": f"How many isles has group {number}?"},
                {"role": "assistant", "content": f"It has {number % 5} and 2, which makes {number % 5 + 2}."},
            ],
        }
        for number in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def line(make_model_folder: Callable, tmp_path: Path) -> Callable[..., list[str]]:
    student = make_model_folder("student")
    train, evaluation = samples(tmp_path / "train.jsonl", 20), samples(tmp_path / "eval.jsonl", 4)

    def words(method: str, out: Path, *more: object, teacher: object = None) -> list[str]:
        given = ["transfer", "--method", method, "--student", student, "--train", train, "--eval", evaluation]
        given += ["--out", out, "--rank", "4", *(["--teacher", teacher] if teacher is not None else [])]
        return [*map(str, given), *(word for each in SETTINGS for word in ("--set", each)), *map(str, more)]

    return words


def test_a_teacher_of_another_vocabulary_teaches_by_bytes(
    transfuse: Callable, line: Callable, read_report: Callable, make_model_folder: Callable, tmp_path: Path
) -> None:
    teacher = make_model_folder("strange", chat_template=None, vocab_size=280, seed=2)
    out = tmp_path / "run"
    words = line("online-distillation", out, "--set", "distillation.divergence=jsd", teacher=teacher)
    refused = transfuse(*words, "--set", "distillation.other_vocabulary=refuse")
    assert refused.code == 1
    assert "expected one vocabulary, got 280 tokens of the teacher and 300 of the student" in refused.err
    done = transfuse(*words)
    assert done.code == 0, done.err
    (note,) = read_report(out)["warnings"]
    share = float(note.partition("teaches ")[2].partition("%")[0])
    assert 50 < share <= 100
    assert (out / "adapter" / "adapter_model.safetensors").is_file()


def test_answers_of_an_endpoint_are_learned_and_asked_for_once(
    transfuse: Callable, line: Callable, read_report: Callable, tmp_path: Path
) -> None:
    with FaultyEndpoint(lambda body: f"So it is {len(str(body['messages']))}.") as endpoint:
        for name in ("first", "second"):
            out = tmp_path / name
            done = transfuse(*line("offline-distillation", out, teacher=f"openai:tiny@{endpoint.url}"))
            assert done.code == 0, done.err
            report = read_report(out)
            assert [row["name"] for row in report["rows"]] == ["student", "offline-distillation"]
            assert report["dropped"] == []
        assert len(endpoint.requests) == 20  # once each: the second run finds them kept


def test_plain_lora_needs_no_teacher_and_can_train_for_a_budget_of_tokens(
    transfuse: Callable, line: Callable, read_report: Callable, tmp_path: Path
) -> None:
    done = transfuse(*line("lora", tmp_path / "run", "--set", "train.n_tokens=900"))
    assert done.code == 0, done.err
    (arm,) = read_report(tmp_path / "run")["arms"]
    assert 900 <= arm["n_tokens"] < 1400  # a step of four samples more at most


def test_a_cache_of_distributions_teaches_without_its_model(
    transfuse: Callable, read_report: Callable, make_model_folder: Callable, tmp_path: Path
) -> None:
    """Offline distillation on plain texts: one source, which is gone by then, and no loss on the texts themselves."""
    student, teacher = make_model_folder("student"), make_model_folder("big", hidden_size=48, seed=1)
    texts = tmp_path / "texts.jsonl"
    rows = [
        f"The team scored {n} goals in the first half, and the captain lifted the cup." for n in range(12)
    ]
    texts.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    done = transfuse(
        "fuse", "distributions", "--source", teacher, "--text", texts, "--out", tmp_path / "caches" / "big"
    )
    assert done.code == 0, done.err
    (teacher / "model.safetensors").unlink()
    settings = (
        "fusion.with_target=false",
        "fusion.divergence=jsd",
        "fusion.map=exact",
        f"caches={{big: {tmp_path / 'caches' / 'big'}}}",
        "controls=[]",
        "evaluate.sources=false",
        "train.batch_rows=4",
        "train.learning_rate=0.01",
        "train.n_tokens=2000",
    )
    words = ["fuse", "--target", student, "--source", teacher, "--text", texts, "--out", tmp_path / "run"]
    words += ["--clm-weight", "0", *(word for each in settings for word in ("--set", each))]
    done = transfuse(*words)
    assert done.code == 0, done.err
    report = read_report(tmp_path / "run")
    curve = json.loads(next((tmp_path / "run").rglob("run.json")).read_text())["curve"]
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]  # nothing but the divergence from the teacher
    assert report["fuse"]["divergence"] == "jsd of beta 0.5"
