"""The fusion route by its command line, on tiny random models."""

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_bad_input import message_of

from fusion_data import SENTENCES, Fusion, read_texts, write_texts
from saved_cards import metrics_of, read_card
from transfuse.io.bundled import is_fetched

pytestmark = pytest.mark.usefixtures("own_maps")

PATIENCE_S = 300


def rows_of(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Bits per byte by row and metric."""
    return {
        row["name"]: {name: metric["value"] for name, metric in row["metrics"].items()}
        for row in report["rows"]
    }


@pytest.fixture(scope="module")
def fused(
    transfuse: Callable, fuse_line: Callable, fusion: Fusion, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A finished run of two sources and two domains, and its command. Shared: copy it before changing it."""
    out = tmp_path_factory.mktemp("runs") / "fused"
    words = fuse_line(
        out,
        *("--control", "clm", "--control", "ensemble", "--control", "distilled", "--seeds", 2),
        source=[fusion.fine, fusion.chat],
        text=[f"wiki={fusion.wiki}", f"code={fusion.code}"],
        eval=[f"wiki={fusion.eval}", f"code={fusion.code}"],
    )
    done = transfuse(*words)
    assert done.code == 0, done.err
    assert f"Page: {out / 'report.html'}" in done.out
    return out, words


def test_fused_and_controls_are_trained_and_measured_on_the_same_pieces(fused, read_report: Callable) -> None:
    report = read_report(fused[0])
    rows = rows_of(report)
    assert list(rows) == [
        *("target", "source/fine", "source/chat", "ensemble"),
        *("fused", "clm", "distilled/fine", "distilled/chat"),
    ]
    metrics = {"bits_per_byte/wiki", "bits_per_byte/code", "bits_per_byte/average"}
    for name, found in rows.items():
        assert found.keys() == metrics, name
        assert found["bits_per_byte/average"] == pytest.approx(
            (found["bits_per_byte/wiki"] + found["bits_per_byte/code"]) / 2
        )
    for name in ("fused", "clm"):
        assert rows[name]["bits_per_byte/average"] < rows["target"]["bits_per_byte/average"]
    arms = {arm["name"]: arm for arm in report["arms"]}
    assert [arm["seeds"] for arm in arms.values()] == [[17, 18]] * 4
    assert len({arm["n_tokens"] for arm in arms.values()}) == 1  # all learn the same tokens
    against = {each["against"] for each in report["comparisons"] if each["metric"] == "bits_per_byte/average"}
    assert against == rows.keys() - {"fused"}


def test_the_report_says_what_was_fused(fused, read_report: Callable) -> None:
    report = read_report(fused[0])
    fuse = report["fuse"]
    assert [source["name"] for source in fuse["sources"]] == ["target", "fine", "chat"]
    assert [pair["source"] for pair in fuse["pairs"]] == ["fine", "chat"]
    pieces = [json.loads(text) for text in (fused[0] / "pieces" / "pieces.jsonl").read_text().splitlines()]
    assert fuse["n_pieces"] == len(pieces)
    assert fuse["n_texts"] == 9
    for chosen in fuse["chosen"]:
        assert sum(chosen["shares"].values()) + chosen["untaught"] == pytest.approx(1)
    # The long text was cut to the models' context of 256, and lies end to end in its pieces.
    cut = [piece["text"] for piece in pieces if (piece["domain"], piece["source"]) == ("code", 2)]
    assert len(cut) > 2
    assert "".join(cut) == SENTENCES[3] * 40
    page = (fused[0] / "report.html").read_text(encoding="utf-8")
    assert "fused" in page
    assert page.count("<svg") >= 4


def plain_bits_per_byte(model: Any, folder: Path, texts: list[str]) -> float:
    """By plain transformers: bits of all tokens but the first, over the bytes of these."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    nats, n_bytes = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].log_softmax(dim=-1)
        nats -= float(log_probs.gather(1, ids[0, 1:, None]).sum())
        n_bytes += len(text.encode())  # BOS has none
    return nats / math.log(2) / n_bytes


def test_the_result_is_a_plain_model_of_the_bits_per_byte_reported(
    fused, fusion: Fusion, read_report: Callable
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(fused[0] / "model").eval()
    told = next(arm for arm in read_report(fused[0])["arms"] if arm["name"] == "fused")["runs"][0]["metrics"]
    own = plain_bits_per_byte(model, fused[0] / "model", read_texts(fusion.eval))
    assert own == pytest.approx(told["bits_per_byte/wiki"]["value"], rel=1e-5)


def test_the_model_s_card_tells_sources_and_figures(fused, fusion: Fusion, read_report: Callable) -> None:
    told, text = read_card(fused[0] / "model", fusion.wiki.parent)
    assert "arxiv:2401.10491" in told["tags"]
    assert metrics_of(told) == pytest.approx(rows_of(read_report(fused[0]))["fused"], abs=1e-6)
    assert "| wiki.jsonl | learned, wiki | 6 |" in text
    assert "| clm | bits_per_byte/wiki |" in text


def test_the_same_command_again_reuses_every_stage(
    fused, transfuse: Callable, read_report: Callable, tmp_path: Path
) -> None:
    before = read_report(fused[0])
    done = transfuse(*fused[1])
    assert done.code == 0, done.err
    after = read_report(fused[0])
    assert all(stage["reused"] for stage in after["stages"])
    assert (after["rows"], after["comparisons"]) == (before["rows"], before["comparisons"])


def test_sources_fused_apart_are_merged_and_weights_merged_beside_them(
    transfuse: Callable, fuse_line: Callable, fusion: Fusion, read_report: Callable, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "run"
    how = ("--strategy", "pairwise", "--merge-method", "linear", "--control", "merged", "--seeds", 2)
    fused = ("--rule", "fair-avg-ce", "--level", "chunk", "--map", "retokenize", "--loss", "forward-kl")
    done = transfuse(*fuse_line(out, *how, *fused, source=[fusion.fine, fusion.twin]))
    assert done.code == 0, done.err
    report = read_report(out)
    rows = rows_of(report)
    assert list(rows) == [
        *("target", "source/fine", "source/twin", "merged/linear"),
        *("pairwise/linear", "fused-with/fine", "fused-with/twin"),
    ]
    chosen = report["fuse"]["chosen"]
    assert [each["text"] for each in chosen] == ["wiki, with-fine", "wiki, with-twin"]
    assert chosen[0]["shares"].keys() == {"target", "fine"}
    merged = AutoModelForCausalLM.from_pretrained(out / "model").eval()
    own = plain_bits_per_byte(merged, out / "model", read_texts(fusion.eval))
    runs = {arm["name"]: arm["runs"] for arm in report["arms"]}["pairwise/linear"]
    assert [each["seed"] for each in runs] == [17, 18]
    of_seeds = [each["metrics"]["bits_per_byte/wiki"]["value"] for each in runs]
    assert own == pytest.approx(of_seeds[0], rel=1e-5)
    assert rows["pairwise/linear"]["bits_per_byte/wiki"] == pytest.approx(sum(of_seeds) / 2)
    parts = [
        AutoModelForCausalLM.from_pretrained(out / "parts" / f"{name}-seed-17").state_dict()
        for name in ("fine", "twin")
    ]
    for name, weight in merged.state_dict().items():
        mean = (parts[0][name] + parts[1][name]) / 2
        assert float((weight - mean).abs().max()) < 1e-6, name
    assert float((parts[0]["lm_head.weight"] - parts[1]["lm_head.weight"]).abs().max()) > 0
    assert "Weighted mean of the weights." in read_card(out / "model")[1]
    told, text = read_card(out / "parts" / "twin-seed-18")
    assert metrics_of(told)["bits_per_byte/wiki"] == pytest.approx(
        rows["fused-with/twin"]["bits_per_byte/wiki"], abs=1e-6
    )
    assert "Sources: `twin` (local folder)." in text


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_an_adapter_by_the_papers_alignment(
    transfuse: Callable, fuse_line: Callable, fusion: Fusion, read_report: Callable, tmp_path: Path
) -> None:
    """With the published code's choices, all of them."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    paper = ("--rule", "min-ce", "--align", "min-edit", "--map", "min-edit")
    code = {"renormalises": "true", "duplicates": "keep-likeliest", "fallback": "current-token"}
    more = [part for name, value in code.items() for part in ("--set", f"fusion.{name}={value}")]
    done = transfuse(*fuse_line(tmp_path / "run", "--method", "lora", *paper, *more, "--set", "controls=[]"))
    assert done.code == 0, done.err
    report = read_report(tmp_path / "run")
    assert any("learns the token it has just read" in note for note in report["warnings"])
    assert [chosen["untaught"] for chosen in report["fuse"]["chosen"]] == [0]
    assert read_card(tmp_path / "run" / "adapter")[0]["library_name"] == "peft"
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(fusion.target), tmp_path / "run" / "adapter"
    ).eval()
    own = plain_bits_per_byte(adapted, fusion.target, read_texts(fusion.eval))
    assert own == pytest.approx(rows_of(report)["fused"]["bits_per_byte/wiki"], rel=1e-5)


@pytest.mark.parametrize(
    "how",
    [
        ("--rule", "avg-ce", "--loss", "uld", "--map", "exact", "--set", "fusion.min_coverage=0"),
        ("--loss", "chunk-likelihood", "--level", "chunk", "--set", "distributions.k=0"),
        ("--loss", "reverse-kl", "--level", "chunk", "--set", "distributions.selection=sampled"),
        ("--loss", "cross-entropy-renormalised", "--clm-weight", 0, "--set", "fusion.with_target=false"),
    ],
)
def test_other_losses_rules_and_selections_train(
    transfuse: Callable,
    fuse_line: Callable,
    fusion: Fusion,
    read_report: Callable,
    tmp_path: Path,
    how: tuple,
) -> None:
    out = tmp_path / "run"
    few = ("--set", "controls=[]", "--set", "evaluate.sources=false")
    done = transfuse(*fuse_line(out, *how, *few, source=[fusion.fine, fusion.chat]))
    assert done.code == 0, done.err
    report = read_report(out)
    assert list(rows_of(report)) == ["target", "fused"]
    (arm,) = report["arms"]
    assert all(math.isfinite(point["loss"]) for point in arm["runs"][0]["curve"])
    names = ["fine", "chat"] if "fusion.with_target=false" in how else ["target", "fine", "chat"]
    assert [source["name"] for source in report["fuse"]["sources"]] == names


def test_a_run_stops_after_pieces_and_after_targets(
    transfuse: Callable, fuse_line: Callable, fusion: Fusion, read_report: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for stage, there in (("pieces", ["pieces", "eval-pieces"]), ("targets", ["distributions", "targets"])):
        done = transfuse(*fuse_line(out, "--stop-after", stage, "--set", "controls=[]"))
        assert done.code == 0, done.err
        assert all((out / name).is_dir() for name in there)
        assert not (out / "report.json").exists()
        assert (out / "targets").exists() == (stage == "targets")
    done = transfuse(*fuse_line(out, "--set", "controls=[]"))
    assert done.code == 0, done.err
    reused = {stage["name"]: stage["reused"] for stage in read_report(out)["stages"]}
    assert reused["targets/together"]
    assert reused["distributions/fine"]
    assert not reused["arms/fused/seed-17"]
    # Another rule is another run; taken over, it keeps what does not depend on the rule.
    other = fuse_line(out, "--rule", "min-ce", "--set", "controls=[]")
    assert "fusion.rule: 'fair-min-ce' there, 'min-ce' now" in message_of(transfuse(*other))
    done = transfuse(*other, "--overwrite")
    assert done.code == 0, done.err
    reused = {stage["name"]: stage["reused"] for stage in read_report(out)["stages"]}
    kept = {"pieces", "eval-pieces", "coverage", "distributions/target", "distributions/fine"}
    kept |= {"measured/target", "measured/source/fine"}
    assert {name for name, is_reused in reused.items() if is_reused} == kept
    done = transfuse(*fuse_line(out, "--stop-after", "facts", "--set", "controls=[]"))
    assert "--stop-after: expected 'pieces' or 'targets', got 'facts'" in message_of(done)


def test_a_recipe_file_is_planned_and_run(
    transfuse: Callable, fusion: Fusion, read_report: Callable, tmp_path: Path
) -> None:
    recipe = tmp_path / "fuse.yaml"
    recipe.write_text(
        f"kind: fuse\ntarget: {fusion.target}\nsources: [{fusion.fine}]\nseed: 5\ntexts: {{wiki: {fusion.wiki}}}\n"
        "n_pieces: 4\nprecision: float32\ncontrols: []\ntrain: {batch_rows: 2, learning_rate: 0.001}\n"
        "evaluate: {texts: {own: null}, n_texts: 2, sources: false}\n"
    )
    done = transfuse("plan", recipe)
    assert done.code == 0, done.err
    assert "4 pieces; 1 trainings of" in " ".join(done.out.split())
    done = transfuse("run", recipe, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert (
        "Note: 4 pieces make 2 training steps of 2; for more of them set train.batch_rows lower" in done.err
    )
    report = read_report(tmp_path / "run")
    assert list(rows_of(report)["target"]) == ["bits_per_byte/own"]
    measured = (tmp_path / "run/eval-pieces/pieces.jsonl").read_text().splitlines()
    assert {json.loads(row)["source"] for row in measured} == {0, 1}
    pieces = [
        json.loads(row)["text"] for row in (tmp_path / "run/pieces/pieces.jsonl").read_text().splitlines()
    ]
    texts = read_texts(fusion.wiki)
    assert len(pieces) == 4
    assert [texts.index(piece) for piece in pieces] == sorted(texts.index(piece) for piece in pieces)


def test_nothing_needs_to_be_measured(
    transfuse: Callable, fuse_line: Callable, read_report: Callable, tmp_path: Path
) -> None:
    done = transfuse(*fuse_line(tmp_path / "run", eval=[]))
    assert done.code == 0, done.err
    report = read_report(tmp_path / "run")
    assert report["rows"] == []
    assert [arm["name"] for arm in report["arms"]] == ["fused", "clm"]
    assert (tmp_path / "run" / "report.html").is_file()


# check, plan, distributions, inspect


def test_check_tells_coverage_of_each_pair_without_weights(
    transfuse: Callable, fusion: Fusion, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(fusion.fine, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    words = ("fuse", "check", "--target", fusion.target, "--source", bare, "--source", fusion.chat)
    words += ("--text", fusion.wiki)
    done = transfuse(*words, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [pair["source"] for pair in told["pairs"]] == ["bare", "chat"]
    for pair in told["pairs"]:
        assert 0.3 < pair["coverage"]["taught_share"] <= 1
        assert 0 < pair["vocabulary"]["overlap"] <= 1
        assert pair["align_seconds"] >= 0
    done = transfuse(*words)
    assert done.code == 0, done.err
    assert "bare" in done.out
    assert "chat" in done.out
    assert [path.name for path in tmp_path.iterdir()] == ["bare"]


def test_a_plan_of_a_fusion(transfuse: Callable, fusion: Fusion) -> None:
    done = transfuse(
        "plan",
        "--target",
        fusion.target,
        "--source",
        fusion.fine,
        "--text",
        fusion.wiki,
        "--set",
        "n_seeds=3",
    )
    assert done.code == 0, done.err
    assert "6 trainings of" in " ".join(done.out.split())


@pytest.fixture(scope="module")
def cached(
    transfuse: Callable, fuse_line: Callable, fusion: Fusion, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run folder with pieces only, and a cache over them. Shared: copy them before changing them."""
    folder = tmp_path_factory.mktemp("cached")
    done = transfuse(*fuse_line(folder / "run", "--stop-after", "pieces"))
    assert done.code == 0, done.err
    words = ("fuse", "distributions", "--source", fusion.fine, "--with", fusion.target)
    words += ("--text", folder / "run" / "pieces" / "pieces.jsonl", "--out", folder / "cache")
    done = transfuse(*words, "--set", "shard_tokens=300", "--precision", "float32")
    assert done.code == 0, done.err
    assert "bytes a token" in done.out
    return folder / "run", folder / "cache"


def with_cache(folder: Path, name: str = "fine") -> tuple[str, str]:
    return "--set", f"caches={json.dumps({name: str(folder)})}"


def test_a_cache_made_apart_teaches_what_the_run_would_have_passed(
    cached, transfuse: Callable, fuse_line: Callable, fusion: Fusion, read_report: Callable, tmp_path: Path
) -> None:
    done = transfuse("fuse", "inspect", cached[1], "--verify", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["damaged"] == []
    assert len(told["shards"]) > 1
    done = transfuse("fuse", "inspect", cached[1])
    assert done.code == 0, done.err
    # The source's weights are never needed here, and its cache only once the pieces are there to pass.
    bare, brought = tmp_path / "fine", tmp_path / "brought"
    shutil.copytree(fusion.fine, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    alike = ("--set", "controls=[]", "--set", "evaluate.sources=false")
    line = fuse_line(tmp_path / "given", *alike, *with_cache(brought), source=[bare])
    stopped = transfuse(*line, "--stop-after", "pieces")
    assert stopped.code == 0, stopped.err
    shutil.copytree(cached[1], brought)
    given = transfuse(*line)
    assert given.code == 0, given.err
    passed = transfuse(*fuse_line(tmp_path / "passed", *alike))
    assert passed.code == 0, passed.err
    ours, theirs = read_report(tmp_path / "given"), read_report(tmp_path / "passed")
    assert ours["rows"] == theirs["rows"]
    assert "distributions/fine" not in {stage["name"] for stage in ours["stages"]}


# killed, and in several processes

SLOW = """
import sys, time
from transfuse.io.distribution_writing import CacheWriter
from transfuse.recipes import fuse_arms, fuse_lessons

def stopping(place, function, n_calls):
    calls = []
    def counted(*args, **kwargs):
        calls.append(None)
        result = function(*args, **kwargs)
        if len(calls) == n_calls:
            print("stopped in " + place, flush=True)
            time.sleep(600)
        return result
    return counted

place, sys.argv = sys.argv[1], ["transfuse", *sys.argv[4:]]
if place == "distributions":
    CacheWriter.write_shard = stopping(place, CacheWriter.write_shard, 2)
elif place == "targets":
    fuse_lessons.fuse_piece = stopping(place, fuse_lessons.fuse_piece, 3)
else:
    show = fuse_arms.show_steps
    fuse_arms.show_steps = lambda advance: stopping(place, show(advance), 4)
from transfuse.cli import main
main()
"""
LONG = ("--set", "train.n_epochs=4", "--set", "train.checkpoint_s=0.000001", "--set", "controls=[]")
LONG += ("--set", "distributions.shard_tokens=200", "--set", "evaluate.sources=false")


@pytest.fixture(scope="module")
def uninterrupted(
    transfuse: Callable, fuse_line: Callable, read_report: Callable, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    done = transfuse(*fuse_line(out, *LONG))
    assert done.code == 0, done.err
    return read_report(out)


def test_a_run_killed_at_each_stage_ends_with_the_same_numbers(
    uninterrupted: dict[str, Any],
    start: Callable,
    transfuse: Callable,
    fuse_line: Callable,
    read_report: Callable,
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    for place in ("distributions", "targets", "training"):
        process = start(*fuse_line(out, *LONG), launcher=("-c", SLOW, place))
        assert process.stdout.readline() == f"stopped in {place}\n", process.communicate()
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == -signal.SIGKILL
    assert list((out / "arms").rglob("progress.json"))
    done = transfuse(*fuse_line(out, *LONG))
    assert done.code == 0, done.err
    report = read_report(out)
    assert report["rows"] == uninterrupted["rows"]
    curves = [each["arms"][0]["runs"][0]["curve"] for each in (report, uninterrupted)]
    assert curves[0] == curves[1]
    reused = {stage["name"]: stage["reused"] for stage in report["stages"]}
    assert reused["distributions/fine"]
    assert reused["targets/together"]
    assert not reused["arms/fused/seed-17"]
    left = sorted(str(path.relative_to(out)) for path in out.rglob(".*") if path.name != ".lock")
    assert left == []


def test_two_processes_train_what_one_does(
    uninterrupted: dict[str, Any], start: Callable, fuse_line: Callable, read_report: Callable, tmp_path: Path
) -> None:
    """`--multi_gpu` starts as many processes as asked for, on a CPU as well."""
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    launch += ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
    process = start(*fuse_line(tmp_path / "run", *LONG), launcher=(*launch, "--main_process_port", "0"))
    printed, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert printed.count("Page: ") == 1
    together = read_report(tmp_path / "run")
    curves = [
        [point["loss"] for point in each["arms"][0]["runs"][0]["curve"]] for each in (together, uninterrupted)
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
    assert rows_of(together)["target"] == rows_of(uninterrupted)["target"]


@pytest.mark.bundled
@pytest.mark.skipif(not is_fetched("smollm2-135m"), reason="run `transfuse models get smollm2-135m`")
def test_a_tiny_stranger_teaches_a_real_model(
    transfuse: Callable,
    fuse_line: Callable,
    fusion: Fusion,
    read_report: Callable,
    tmp_path: Path,
) -> None:
    few = write_texts(tmp_path / "few.jsonl", list(SENTENCES))
    words = fuse_line(
        tmp_path / "run",
        *("--method", "lora", "--set", "controls=[]", "--set", "evaluate.sources=false"),
        *("--set", "fusion.min_coverage=0.1", "--loss", "forward-kl"),
        target="smollm2-135m",
        source=[fusion.fine],
        text=[f"few={few}"],
        eval=[f"few={few}"],
    )
    done = transfuse(*words)
    assert done.code == 0, done.err
    report = read_report(tmp_path / "run")
    rows = rows_of(report)
    assert rows["fused"]["bits_per_byte/few"] < rows["target"]["bits_per_byte/few"] < 2
    shares = report["fuse"]["chosen"][0]["shares"]
    assert shares["target"] > 0.9  # the random model is worse everywhere
    assert (tmp_path / "run" / "adapter").is_dir()


def test_strategy_clm_learns_what_the_control_learns_without_reading_a_source(
    transfuse: Callable, fuse_line: Callable, fusion: Fusion, read_report: Callable, tmp_path: Path
) -> None:
    sources = [fusion.fine, fusion.chat]
    alone = fuse_line(tmp_path / "alone", "--set", "strategy=clm", eval=[], source=sources)
    done = transfuse(*alone)
    assert done.code == 0, done.err
    assert not (tmp_path / "alone" / "distributions").exists()
    assert (tmp_path / "alone" / "model" / "config.json").is_file()
    done = transfuse(*fuse_line(tmp_path / "both", "--control", "clm", source=sources))
    assert done.code == 0, done.err
    control = next(arm for arm in read_report(tmp_path / "both")["arms"] if arm["name"] == "clm")
    (arm,) = read_report(tmp_path / "alone")["arms"]
    assert arm["runs"][0]["curve"] == control["runs"][0]["curve"]

    done = transfuse(*alone, "--overwrite", "--set", "controls=[clm]")
    assert "strategy clm is itself what fusion is compared with" in message_of(done)
