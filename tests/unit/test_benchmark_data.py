"""Local items: files by split and by subject, in every layout that the hub and the releases have."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from transfuse.errors import DataError
from transfuse.evaluate.benchmark_data import ASKED, Leaf, local_rows

GSM8K = Leaf("gsm8k", "main", "gsm8k")
MMLU = [Leaf(f"mmlu_{subject}", subject, "mmlu") for subject in ("anatomy", "virology")]
OTHER = Leaf("winogrande", "winogrande_xl")


def gsm8k(n: int) -> dict[str, Any]:
    return {"question": f"What is {n}?", "answer": f"#### {n}"}


def mmlu(subject: str | None, n: int = 0) -> dict[str, Any]:
    row = {"question": f"q{n}", "choices": ["a", "b", "c", "d"], "answer": n % 4}
    return row | ({"subject": subject} if subject else {})


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows[0]), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def questions(found: Any, task: str) -> dict[str, list[str]]:
    return {split: [row.value["question"] for row in rows] for split, rows in found[task].splits.items()}


def test_a_file_is_what_is_asked(tmp_path):
    for path in (
        write(tmp_path / "a.jsonl", gsm8k(1), gsm8k(2)),
        write(tmp_path / "b.json", [gsm8k(1), gsm8k(2)]),
        write(tmp_path / "c.json", {"examples": [gsm8k(1), gsm8k(2)]}),
        write(tmp_path / "d.parquet", gsm8k(1), gsm8k(2)),
    ):
        found = local_rows("gsm8k", [GSM8K], path)
        assert questions(found, "gsm8k") == {ASKED: ["What is 1?", "What is 2?"]}
        assert str(path) in found["gsm8k"].splits[ASKED][0].where


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (("test.jsonl", "train.jsonl"), {"test": [0], "train": [1]}),
        (("test_rest.jsonl", "train_1000.jsonl", "seed_32.jsonl"), {"test": [0], "train": [1]}),
        (
            ("main/test-00000-of-00001.parquet", "main/train-00000-of-00001.parquet"),
            {"test": [0], "train": [1]},
        ),
        (("data/validation-0.jsonl", "data/dev.json"), {"validation": [0], "dev": [1]}),
        (("test/task1_test.jsonl", "train/task1_train.jsonl"), {"test": [0], "train": [1]}),
        (("val.jsonl", "test.a.jsonl", "test.b.jsonl"), {"validation": [0], "test": [1, 2]}),
    ],
)
def test_a_folder_holds_splits(tmp_path, files, splits):
    for n, name in enumerate(files):
        write(tmp_path / name, *([[gsm8k(n)]] if name.endswith(".json") else [gsm8k(n)]))
    found = local_rows("gsm8k", [GSM8K], tmp_path)
    assert questions(found, "gsm8k") == {
        split: [f"What is {n}?" for n in numbers] for split, numbers in splits.items()
    }


def test_rows_of_a_group_go_to_their_tasks(tmp_path):
    write(tmp_path / "test.jsonl", mmlu("virology", 1), mmlu("anatomy", 2), mmlu("virology", 3))
    write(tmp_path / "dev.jsonl", mmlu("anatomy", 4))
    found = local_rows("mmlu", MMLU, tmp_path)
    assert questions(found, "mmlu_anatomy") == {"test": ["q2"], "dev": ["q4"]}
    assert questions(found, "mmlu_virology") == {"test": ["q1", "q3"]}
    alone = local_rows("mmlu_virology", MMLU[1:], tmp_path / "test.jsonl")
    assert questions(alone, "mmlu_virology") == {ASKED: ["q1", "q3"]}
    assert alone["mmlu_virology"].notes == ["1 rows of test.jsonl belong to other tasks"]


def test_files_and_folders_named_after_tasks(tmp_path):
    write(tmp_path / "anatomy" / "test-00000-of-00001.parquet", mmlu(None, 1))
    write(tmp_path / "anatomy" / "dev-00000-of-00001.parquet", mmlu(None, 2))
    write(tmp_path / "virology.json", {"examples": [mmlu(None, 3)]})
    found = local_rows("mmlu", MMLU, tmp_path)
    assert questions(found, "mmlu_anatomy") == {"test": ["q1"], "dev": ["q2"]}
    assert questions(found, "mmlu_virology") == {ASKED: ["q3"]}


def test_rows_of_an_unknown_form_stay_as_they_are(tmp_path):
    path = write(tmp_path / "test.jsonl", {"sentence": "s", "answer": "1", "category": "x"})
    found = local_rows("winogrande", [OTHER], path)
    assert found["winogrande"].splits[ASKED][0].value == {"sentence": "s", "answer": "1", "category": "x"}


def test_converted_files_are_told(tmp_path):
    turns = [{"role": "user", "content": "Question: q"}, {"role": "assistant", "content": "It is 4."}]
    path = write(tmp_path / "test.jsonl", {"messages": turns})
    found = local_rows("gsm8k", [GSM8K], path)
    assert found["gsm8k"].notes == ["test.jsonl: rows were brought into the published form"]


def test_what_is_not_there_or_not_readable_is_refused(tmp_path):
    def refused(
        message: str, path: Path, benchmark: str = "gsm8k", leaves: Sequence[Leaf] = (GSM8K,)
    ) -> None:
        with pytest.raises(DataError, match=message):
            local_rows(benchmark, leaves, path)

    refused("gsm8k: expected its items in .*nothing, found no such file or folder", tmp_path / "nothing")
    write(tmp_path / "odd" / "items.jsonl", gsm8k(1))
    refused(r"gsm8k: expected .*odd to hold files such as test.jsonl.* but items.jsonl", tmp_path / "odd")
    (tmp_path / "empty.jsonl").write_text("\n")
    refused("empty.jsonl: expected items, one a row; the file holds none", tmp_path / "empty.jsonl")
    (tmp_path / "list.csv").write_text("a,b\n")
    refused(r"list.csv: expected a file that ends in .jsonl, .json, .parquet", tmp_path / "list.csv")
    (tmp_path / "broken.parquet").write_text("PAR?")
    refused("broken.parquet: expected a parquet file", tmp_path / "broken.parquet")
    (tmp_path / "lines.json").write_text('{"a": 1}\n{"a": 2}\n')
    refused("lines.json: expected a JSON file.*name JSON lines .jsonl", tmp_path / "lines.json")
    refused("expected a list of JSON objects", write(tmp_path / "number.json", {"examples": 3}))
    strays = write(tmp_path / "strays.jsonl", mmlu("anatomy"), mmlu("anatomie"))
    refused(
        r"strays.jsonl:2: mmlu: expected 'subject' to name one of its 2 tasks.*'anatomie'",
        strays,
        "mmlu",
        MMLU,
    )
    bare = write(tmp_path / "bare.jsonl", mmlu(None))
    refused("bare.jsonl:1: mmlu: .*got no such field", bare, "mmlu", MMLU)
    lame = write(tmp_path / "lame.jsonl", gsm8k(1), {"question": "q"})
    refused("lame.jsonl:2: gsm8k: .*got no 'answer' but 'question'", lame)


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "test.jsonl", gsm8k(1))
    assert questions(local_rows("gsm8k", [GSM8K], path), "gsm8k") == {ASKED: ["What is 1?"]}
    write(path, gsm8k(2), gsm8k(3))
    assert len(local_rows("gsm8k", [GSM8K], path)["gsm8k"].splits[ASKED]) == 2
