"""`transfuse eval` by its command line: tiny random models, a killed run, bad input, and the bundled model once."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from faulty_endpoint import FaultyEndpoint
from transfuse.io.bundled import is_fetched

PATIENCE_S = 120

pytestmark = pytest.mark.usefixtures("own_maps")


class Sets(NamedTuple):
    """Files of a small evaluation."""

    qa: Path
    facts: Path
    document: Path
    unanswerable: Path
    samples: Path
    texts: Path
    instructions: Path
    gsm8k: Path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def sets(isles: Any, tmp_path_factory: pytest.TempPathFactory) -> Sets:
    folder = tmp_path_factory.mktemp("sets")
    chat = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} and 2?"},
                {"role": "assistant", "content": f"The answer is {n + 2}."},
            ]
        }
        for n in range(5)
    ]
    gsm8k = [{"question": f"{n} and 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(4)]
    return Sets(
        isles.qa,
        isles.facts,
        isles.document,
        write(folder / "none.jsonl", [{"question": "Who?"}, {"question": "When?"}, {"question": "Where?"}]),
        write(folder / "chat.jsonl", chat),
        isles.texts,
        write(
            folder / "instructions.jsonl",
            [{"instruction": "Say hi.", "output": "Hi."}, {"instruction": "Go.", "output": "No."}],
        ),
        write(folder / "gsm8k.jsonl", gsm8k),
    )


@pytest.fixture(scope="module")
def line(sets: Sets, chat_folder: Path, own_maps: None) -> Callable[..., list[str]]:
    """`line(out, ...)`: everything but benchmarks, few items, short answers."""

    def arguments(out: Path, *more: object) -> list[str]:
        words = ["eval", "--model", chat_folder, "--out", out, "--limit", 4]
        words += ["--qa", f"isles={sets.qa}", "--unanswerable", sets.unanswerable]
        words += ["--samples", f"sums={sets.samples}", "--text", f"small={sets.texts}"]
        for key, value in {
            "precision": "float32",
            "questions.isles.max_new_tokens": 5,
            "unanswerable.max_new_tokens": 5,
            "samples.sums.max_new_tokens": 5,
            "latency_n": 2,
        }.items():
            words += ["--set", f"{key}={value}"]
        return [str(word) for word in [*words, *more]]

    return arguments


@pytest.fixture(scope="module")
def other_folder(make_model_folder: Callable[..., Path]) -> Path:
    return make_model_folder("eval-other", seed=5, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def finished(
    transfuse: Callable[..., Any],
    line: Callable[..., list[str]],
    other_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A finished run of two models. Shared: do not change it."""
    out = tmp_path_factory.mktemp("runs") / "eval"
    done = transfuse(*line(out, "--against", other_folder))
    assert done.code == 0, done.err
    assert "isles, knowledge questions" in done.out
    assert "peak memory" in done.out
    return out


def test_every_metric_of_both_models_and_their_differences(
    finished: Path, read_report: Callable[..., Any]
) -> None:
    report = read_report(finished)
    assert report["kind"] == "eval"
    metrics = [row["metrics"] for row in report["rows"]]
    assert [row["name"] for row in report["rows"]] == ["model", "against"]
    expected = {
        *(f"{name}/isles" for name in ("exact_match", "f1", "gold_recall", "contains")),
        "wrong_answers/unanswerable",
        "accuracy/sums",
        "bits_per_byte/sums",
        "bits_per_byte/small",
    }
    assert set(metrics[0]) == set(metrics[1]) == expected
    assert {each["metric"] for each in report["comparisons"]} == expected
    bits = {each["metric"]: each for each in report["comparisons"]}["bits_per_byte/small"]
    values = [each["bits_per_byte/small"]["value"] for each in metrics]
    assert bits["difference"]["value"] == pytest.approx(values[0] - values[1])
    assert bits["is_better_lower"]
    costs = report["costs"]
    assert set(costs) == {"model", "against"}
    for row in costs.values():
        assert row["seconds"] > 0
        assert row["latency_s"] > 0
        assert row["peak_memory_bytes"] > 2**20
        assert row["size_added_bytes"] == 0


def test_scores_of_every_item_stand_at_the_top(finished: Path) -> None:
    for name in ("scores.jsonl", "scores_against.jsonl"):
        rows = [json.loads(each) for each in (finished / name).read_text().splitlines()]
        assert {tuple(row) for row in rows} == {("metric", "item", "cluster", "numerator", "denominator")}
        asked = [row for row in rows if row["metric"] == "f1/isles"]
        assert len(asked) == 4
        assert all(row["item"] != row["cluster"] for row in asked)  # facts are drawn, not questions


def test_the_page_shows_every_item_escaped(
    finished: Path, transfuse: Callable[..., Any], tmp_path: Path
) -> None:
    page = (finished / "report.html").read_text()
    for shown in ("Item by item", "wrong ✗", "Should be declined", "What is 3 and 2?"):
        assert shown in page
    report = json.loads((finished / "report.json").read_text())
    report["eval"]["sets"][0]["items"][0]["answers"]["model"] = "<script>alert(1)</script>"
    report["eval"]["sets"][0]["name"] = "<b>isles"
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert transfuse("report", tmp_path).code == 0
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<b>isles" not in page


def test_another_folder_takes_what_is_known(
    finished: Path,
    tmp_path: Path,
    transfuse: Callable[..., Any],
    line: Callable[..., list[str]],
    read_report: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transfuse.recipes import eval_system

    loaded: list[str] = []
    load = eval_system.load_model

    def counted(reference: str, **settings: Any) -> Any:
        loaded.append(reference)
        return load(reference, **settings)

    monkeypatch.setattr(eval_system, "load_model", counted)
    done = transfuse(*line(tmp_path / "again", "--set", "latency_n=0"))
    assert done.code == 0, done.err
    assert loaded == []
    first, again = read_report(finished), read_report(tmp_path / "again")
    assert again["rows"][0]["metrics"] == first["rows"][0]["metrics"]
    assert again["costs"]["model"]["peak_memory_bytes"] > 2**20  # as it was measured
    done = transfuse(*line(tmp_path / "anew", "--no-cache", "--set", "latency_n=0"))
    assert done.code == 0, done.err
    assert len(loaded) == 1
    assert read_report(tmp_path / "anew")["rows"][0]["metrics"] == first["rows"][0]["metrics"]


def test_a_killed_run_goes_on_item_by_item(
    tmp_path: Path,
    sets: Sets,
    chat_folder: Path,
    start: Callable[..., Any],
    transfuse: Callable[..., Any],
    read_report: Callable[..., Any],
) -> None:
    from transfuse.generate.reply_cache import ReplyCache

    many = write(
        tmp_path / "many.jsonl", [{"question": f"Who is number {n}?", "answer": f"{n}"} for n in range(200)]
    )

    def words(out: Path) -> list[str]:
        limits = [
            "--set",
            "questions.many.max_new_tokens=30",
            "--set",
            "latency_n=0",
            "--set",
            "precision=float32",
        ]
        return [
            "eval",
            "--model",
            str(chat_folder),
            "--qa",
            f"many={many}",
            "--no-cache",
            "--out",
            str(out),
            *limits,
        ]

    run = tmp_path / "killed"
    process = start(*words(run))
    kept = run / "measured" / "replies.sqlite"
    until = time.monotonic() + PATIENCE_S
    n_kept = 0
    while time.monotonic() < until and process.poll() is None and not n_kept:
        time.sleep(0.05)
        if kept.is_file():
            with ReplyCache(kept) as cache:
                n_kept = len(cache)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGKILL
    assert not (run / "report.json").exists()
    with ReplyCache(kept) as cache:
        n_kept = len(cache)
    assert 0 < n_kept < 200
    assert transfuse(*words(run)).code == 0
    with ReplyCache(kept) as cache:
        assert len(cache) == 200
    assert transfuse(*words(tmp_path / "whole")).code == 0
    resumed, whole = read_report(run), read_report(tmp_path / "whole")
    assert resumed["rows"] == whole["rows"]
    assert resumed["eval"]["sets"][0]["items"] == whole["eval"]["sets"][0]["items"]


def test_passages_and_the_right_section_stand_before_questions(
    tmp_path: Path,
    sets: Sets,
    transfuse: Callable[..., Any],
    line: Callable[..., list[str]],
    read_report: Callable[..., Any],
) -> None:
    words = [
        "--retrieval",
        sets.document,
        "--set",
        "retrieval.embedder=null",
        "--set",
        "retrieval.mode=lexical",
    ]
    done = transfuse(*line(tmp_path / "rag", *words))
    assert done.code == 0, done.err
    report = read_report(tmp_path / "rag")
    asked = report["eval"]["sets"][0]["items"]
    assert all(item["contexts"]["model"] for item in asked)
    assert report["rag"]["k"] == 3
    words += ["--set", f"retrieval.tuning={sets.qa}", "--set", "retrieval.candidates=[1, 2]"]
    done = transfuse(*line(tmp_path / "tuned", *words, "--set", "retrieval.n_tuning_questions=3"))
    assert done.code == 0, done.err
    tuned = read_report(tmp_path / "tuned")["rag"]
    assert tuned["k"] in (1, 2)
    assert [each["k"] for each in tuned["tuning"]] == [1, 2]
    done = transfuse(*line(tmp_path / "oracle", "--section-context", sets.document, "--facts", sets.facts))
    assert done.code == 0, done.err
    asked = read_report(tmp_path / "oracle")["eval"]["sets"][0]["items"]
    assert all(item["contexts"]["model"] for item in asked)
    assert asked[0]["gold"] in asked[0]["contexts"]["model"]


def test_an_ensemble_is_asked_everything(
    tmp_path: Path,
    other_folder: Path,
    transfuse: Callable[..., Any],
    line: Callable[..., list[str]],
    read_report: Callable[..., Any],
) -> None:
    done = transfuse(*line(tmp_path / "run", "--ensemble", other_folder))
    assert done.code == 0, done.err
    report = read_report(tmp_path / "run")
    assert len(report["rows"][0]["metrics"]) == 8
    assert report["costs"]["model"]["size_added_bytes"] > 0


def test_an_ensemble_of_other_vocabularies_reads_texts_only(
    tmp_path: Path,
    sets: Sets,
    make_model_folder: Callable[..., Path],
    chat_folder: Path,
    transfuse: Callable[..., Any],
    line: Callable[..., list[str]],
    read_report: Callable[..., Any],
) -> None:
    stranger = make_model_folder("eval-stranger", vocab_size=290, seed=3)
    done = transfuse(*line(tmp_path / "run", "--ensemble", stranger))
    assert done.code == 1
    assert "different vocabularies" in done.err
    assert "leave out questions, unanswerable, samples" in done.err
    words = ["eval", "--model", chat_folder, "--ensemble", stranger, "--text", f"small={sets.texts}"]
    done = transfuse(
        *words, "--against", chat_folder, "--out", tmp_path / "texts", "--set", "precision=float32"
    )
    assert done.code == 0, done.err
    both, alone = (
        row["metrics"]["bits_per_byte/small"]["value"] for row in read_report(tmp_path / "texts")["rows"]
    )
    assert 0 < both < 20
    assert both != alone


def test_a_benchmark_gives_what_lm_eval_says(
    tmp_path: Path,
    sets: Sets,
    chat_folder: Path,
    transfuse: Callable[..., Any],
    read_report: Callable[..., Any],
) -> None:
    pytest.importorskip("lm_eval")
    words = [
        "eval",
        "--model",
        chat_folder,
        "--tasks",
        "gsm8k",
        "--data",
        f"gsm8k={sets.gsm8k}",
        "--shots",
        0,
    ]
    words += ["--limit", 3, "--set", "benchmarks.gsm8k.max_new_tokens=4", "--set", "precision=float32"]
    done = transfuse(*words, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    report = read_report(tmp_path / "run")
    metrics = report["rows"][0]["metrics"]
    assert set(metrics) == {"exact_match/gsm8k:strict-match", "exact_match/gsm8k:flexible-extract"}
    assert {each["n"] for each in metrics.values()} == {3}
    (shown,) = report["eval"]["sets"]
    assert "0 and 1?" in shown["items"][0]["question"]
    own = report["eval"]["harness"]["model"]["gsm8k"]["gsm8k"]
    assert own["exact_match,strict-match"] == metrics["exact_match/gsm8k:strict-match"]["value"]
    assert (tmp_path / "run" / "measured/model/benchmarks/gsm8k/scores.jsonl").is_file()
    done = transfuse(*words, "--plan")
    assert done.code == 0, done.err
    assert "gsm8k (benchmarks)" in done.out


def test_a_judge_says_who_is_better(
    tmp_path: Path,
    sets: Sets,
    chat_folder: Path,
    other_folder: Path,
    transfuse: Callable[..., Any],
    read_report: Callable[..., Any],
) -> None:
    with FaultyEndpoint(lambda body: '{"winner": "first"}') as endpoint:
        done = transfuse(
            *["eval", "--model", chat_folder, "--against", other_folder, "--out", tmp_path / "run"],
            *["--judge", f"openai:tiny@{endpoint.url}", "--instructions", sets.instructions],
            *["--set", "judge.max_new_tokens=5", "--set", "precision=float32", "--set", "latency_n=0"],
        )
    assert done.code == 0, done.err
    report = read_report(tmp_path / "run")
    assert report["rows"][0]["metrics"]["win_rate/instructions"]["n"] == 2
    assert report["eval"]["judge"]["n_items"] == 2


def test_a_judge_that_was_to_be_asked_too_often_goes_on_with_a_higher_limit(
    tmp_path: Path,
    sets: Sets,
    chat_folder: Path,
    other_folder: Path,
    transfuse: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))
    asked: list[Any] = []

    def judged(body: Any) -> str:
        asked.append(body)
        return '{"winner": "first"}'

    with FaultyEndpoint(judged) as endpoint:
        words = [
            *["eval", "--model", chat_folder, "--against", other_folder, "--out", tmp_path / "run"],
            *["--judge", f"openai:tiny@{endpoint.url}", "--instructions", sets.instructions],
            *["--set", "judge.max_new_tokens=5", "--set", "precision=float32", "--set", "latency_n=0"],
        ]
        stopped = transfuse(*words, "--set", "judge.max_requests=1")
        assert stopped.code == 1
        assert "max_requests" in stopped.err
        done = transfuse(*words, "--set", "judge.max_requests=100")
        assert done.code == 0, done.err
    assert len(asked) == len({str(body) for body in asked})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "run"], "expected --model MODEL"),
        (["--model", "MODEL"], "expected --out FOLDER"),
        (["--model", "MODEL", "--out", "run"], "nothing to measure; name benchmarks"),
        (["--model", "no-such-model", "--text", "generic", "--out", "run"], "expected a bundled name"),
        (["--model", "MODEL", "--qa", "gone.jsonl", "--out", "run"], "gone.jsonl: expected a JSONL file"),
        (
            ["--model", "MODEL", "--adapter", ".", "--text", "generic", "--out", "run"],
            "expected an adapter folder",
        ),
        (
            ["--model", "MODEL", "--text", "generic", "--data", "gsm8k=x", "--out", "run"],
            "not among --tasks (none)",
        ),
        (["--model", "MODEL", "--tasks", "gsm8k", "--data", "x", "--out", "run"], "expected TASK=PATH"),
        (["--model", "MODEL", "--tasks", "gsm8k", "--shots", "many", "--out", "run"], "expected [TASK=]N"),
        (["--model", "MODEL", "--judge", "MODEL", "--out", "run"], "--judge and --instructions together"),
        (["--model", "MODEL", "--qa", "a=QA", "--text", "a=TEXTS", "--out", "run"], "'a' names two sets"),
    ],
)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(
    words: list[str],
    message: str,
    tmp_path: Path,
    sets: Sets,
    chat_folder: Path,
    transfuse: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    real = {"MODEL": str(chat_folder), "QA": str(sets.qa), "TEXTS": str(sets.texts)}
    given = [next((w.replace(k, v) for k, v in real.items() if w.endswith(k)), w) for w in words]
    done = transfuse("eval", *given)
    assert done.code == 1
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "run").exists()


def test_a_recipe_file_runs_and_is_planned(
    tmp_path: Path, sets: Sets, chat_folder: Path, transfuse: Callable[..., Any]
) -> None:
    recipe = tmp_path / "eval.yaml"
    recipe.write_text(
        f"kind: eval\nmodel: {chat_folder}\nseed: 1\nprecision: float32\nlatency_n: 0\n"
        f"texts: {{small: {sets.texts}}}\ncoverage: {{facts: {sets.facts}, qa: {sets.qa}, embedder: null}}\n"
    )
    done = transfuse("plan", recipe)
    assert done.code == 0, done.err
    assert "small (texts)" in done.out
    done = transfuse("run", recipe, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "Facts carried" in done.out


@pytest.mark.bundled
@pytest.mark.skipif(
    not is_fetched("smollm2-135m"), reason="not fetched; run `transfuse models get smollm2-135m`"
)
def test_the_bundled_model_knows_a_capital(
    tmp_path: Path, transfuse: Callable[..., Any], read_report: Callable[..., Any]
) -> None:
    qa = write(
        tmp_path / "qa.jsonl",
        [
            {"question": "What is the capital of France?", "answer": "Paris"},
            {"question": "What is the capital of the invented land of Qwerzenia?", "answer": "Zuiop"},
        ],
    )
    words = ["--model", "smollm2-135m", "--qa", f"capitals={qa}", "--out", tmp_path / "run"]
    done = transfuse("eval", *words, "--set", "questions.capitals.max_new_tokens=12", "--set", "latency_n=1")
    assert done.code == 0, done.err
    report = read_report(tmp_path / "run")
    marks = [item["scores"]["model"]["contains"] for item in report["eval"]["sets"][0]["items"]]
    assert marks == [1, 0]
    assert report["costs"]["model"]["peak_memory_bytes"] > 100 * 2**20


def test_the_list_names_benchmarks(transfuse: Callable[..., Any]) -> None:
    done = transfuse("eval", "--list")
    assert done.code == 0
    for name in ("gsm8k", "mmlu", "hellaswag"):
        assert name in done.out
