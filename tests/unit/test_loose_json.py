import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.text.loose_json import find_values, whole_characters

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.booleans())
def test_valid_json_amid_prose_reads_as_json_does(value: dict, is_ascii: bool) -> None:
    text = f"Here it is:\n{json.dumps(value, ensure_ascii=is_ascii)}\nDone."
    (found,) = find_values(text)
    assert found.value == value
    assert found.is_whole
    assert found.n_unread == 0
    assert json.loads(text[found.start : found.end]) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2,],}', {"a": [1, 2]}),
        ('{"a": "He said "yes", and left"}', {"a": 'He said "yes", and left'}),
        ("{'a': 'the team's best', b: True, c: None}", {"a": "the team's best", "b": True, "c": None}),
        ('[{"a": [1}, {"a": 2]', [{"a": [1]}, {"a": 2}]),
        ('[{"a": 1} {"a": 2}]', [{"a": 1}, {"a": 2}]),
        ('{"a": "line\nbreak \\d"}', {"a": "line\nbreak \\d"}),
        ('{"a": "\\ud83d\\ude00 \\ud800"}', {"a": "😀 \ufffd"}),
    ],
)
def test_common_faults_are_mended(text: str, value: object) -> None:
    assert [found.value for found in find_values(text)] == [value]


def test_a_broken_end_keeps_whole_items_only() -> None:
    whole = '{"facts": [{"fact": "a", "sentences": [1]}, {"fact": "b", "sentences": [1, 2]}]}'
    for end in range(whole.index(', {"fact": "b"'), len(whole) - 3):
        (found,) = find_values(whole[:end])
        assert found.value == {"facts": [{"fact": "a", "sentences": [1]}]}
        assert not found.is_whole


def test_nesting_without_end_is_given_up() -> None:
    assert find_values("[" * 100_000) == []
    assert find_values('{"a":' * 100_000) == []


def test_lone_halves_of_characters_are_replaced() -> None:
    assert whole_characters("a\ud800b\ud83d\ude00") == "a\ufffdb😀"
