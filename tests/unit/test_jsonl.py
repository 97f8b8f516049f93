"""JSON lines: every fault is named with its file and line."""

import pytest

from transfuse.errors import DataError
from transfuse.io.jsonl import read_jsonl, write_jsonl


@pytest.fixture
def path(tmp_path):
    return tmp_path / "qa.jsonl"


def test_a_round_trip(path):
    rows = [{"a": "Größe\u2028 – 東京", "b": None}, {"c": [1, 2.5]}]
    write_jsonl(path, rows)
    assert [line.value for line in read_jsonl(path)] == rows
    assert path.read_text(encoding="utf-8").startswith('{"a": "Größe\u2028 – 東京", "b": null}\n')


def test_blank_lines_count_but_give_nothing(path):
    path.write_bytes(b'\n{"a": 1}\r\n  \r\n{"a": 2}')
    lines = list(read_jsonl(path))
    assert [(line.value, line.number, line.where) for line in lines] == [
        ({"a": 1}, 2, f"{path}:2"),
        ({"a": 2}, 4, f"{path}:4"),
    ]


def test_a_byte_order_mark_is_passed_over(path):
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert next(read_jsonl(path)).value == {"a": 1}


def test_an_empty_file_gives_nothing(path):
    path.write_bytes(b"")
    assert list(read_jsonl(path)) == []


def test_broken_json_names_line_and_column(path):
    path.write_text('{"a": 1}\n{"a": 1,}\n')
    with pytest.raises(
        DataError, match=r"qa\.jsonl:2: expected one JSON object a line, got broken JSON"
    ) as caught:
        list(read_jsonl(path))
    assert "column 9" in str(caught.value)
    assert "mend or delete the line" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "kind"), [("[1]", "list"), ("3", "int"), ('"a"', "str"), ("null", "NoneType")]
)
def test_what_is_no_object_is_refused(path, line, kind):
    path.write_text(line)
    with pytest.raises(DataError, match=rf"qa\.jsonl:1: expected a JSON object, got {kind}"):
        list(read_jsonl(path))


def test_other_encodings_are_refused(path):
    path.write_bytes('{"a": "Größe"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"expected UTF-8 text, got byte 0xf6 at offset 9.*iconv"):
        list(read_jsonl(path))


def test_half_a_character_is_refused_before_a_tokenizer_meets_it(path):
    path.write_text('{"a": 1}\n{"question": "Who? \\ud83d"}\n')  # the first half of an emoji, escaped
    with pytest.raises(DataError, match=r"qa\.jsonl:2: "):
        list(read_jsonl(path))
    path.write_text('{"question": "Who? \\ud83d\\ude00"}\n')
    assert next(read_jsonl(path)).value == {"question": "Who? 😀"}


def test_a_missing_file_and_a_folder_are_refused(path):
    with pytest.raises(DataError, match="No such file or directory"):
        list(read_jsonl(path))
    with pytest.raises(DataError, match="Is a directory"):
        list(read_jsonl(path.parent))


def test_a_failed_write_leaves_the_old_file(path):
    write_jsonl(path, [{"a": 1}])
    with pytest.raises(ValueError, match="JSON compliant"):
        write_jsonl(path, [{"a": 2}, {"a": float("nan")}])
    assert [line.value for line in read_jsonl(path)] == [{"a": 1}]
    assert [file.name for file in path.parent.iterdir()] == ["qa.jsonl"]
