"""The bundled real model learns invented facts in a minute."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from transfuse.io.bundled import is_fetched

NAME = "smollm2-135m"
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "orvessa"
N_FACTS = 6

pytestmark = [
    pytest.mark.bundled,
    pytest.mark.skipif(not is_fetched(NAME), reason=f"not fetched; run `transfuse models get {NAME}`"),
]


def test_smollm2_learns_the_first_facts_of_orvessa(
    tmp_path: Path, transfuse: Callable, read_report: Callable
):
    facts = (EXAMPLE / "facts.jsonl").read_text(encoding="utf-8").splitlines()[:N_FACTS]
    ids = {json.loads(line)["id"] for line in facts}
    pairs = (EXAMPLE / "qa.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "facts.jsonl").write_text("\n".join(facts), encoding="utf-8")
    (tmp_path / "qa.jsonl").write_text(
        "\n".join(line for line in pairs if json.loads(line)["fact"] in ids), encoding="utf-8"
    )
    (tmp_path / "texts.jsonl").write_text('{"text": "The harbour lay still, and the ferry was late."}\n')
    settings = {
        "evaluate.oracle": "false",
        "rag": "null",
        "evaluate.max_new_tokens": 16,
        "evaluate.texts": json.dumps({"harbour": str(tmp_path / "texts.jsonl")}),
        "kept_out_share": 0.17,
        "train.n_epochs": 6,
        "train.batch_rows": 8,
    }
    line = ["inject", EXAMPLE / "document.md", "--model", NAME, "--facts", tmp_path / "facts.jsonl"]
    line += ["--qa", tmp_path / "qa.jsonl", "--scale", 5, "--out", tmp_path / "run"]
    line += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    done = transfuse(*line)
    assert done.code == 0, done.err
    report = read_report(tmp_path / "run")
    contained = {row["name"]: row["metrics"]["contains"] for row in report["rows"]}
    assert contained["base"]["n"] == contained["adapter"]["n"] == N_FACTS - 1
    assert contained["base"]["value"] <= 0.2
    assert contained["adapter"]["value"] >= 0.6
    assert [fact["kept_out"] for fact in report["facts"]].count(True) == 1
