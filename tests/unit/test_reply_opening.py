"""The opening is what any reply of the schema begins with, and no more."""

import json

import pytest

from transfuse.generate.reply_opening import JsonEnd, reply_opening
from transfuse.inject.fact_prompts import FACTS_SCHEMA


def schema(required: bool = True, **properties) -> str:
    return json.dumps(
        {"type": "object", "properties": properties, "required": [*properties] if required else []}
    )


@pytest.mark.parametrize(
    ("text", "opening"),
    [
        (FACTS_SCHEMA, '{"facts": [{"fact": "'),
        (schema(numbers={"type": "array", "items": {"type": "integer"}}), '{"numbers": ['),
        (schema(answer={"type": "string"}, sure={"type": "boolean"}), '{"answer": "'),
        (schema(same={"type": "boolean"}), '{"same": '),
        (schema(skip={"type": ["string", "null"]}), '{"skip": '),
        (schema(required=False, answer={"type": "string"}), ""),
        ('{"type": "array"}', "["),
        ("true", ""),
    ],
)
def test_the_opening_of_a_schema(text, opening):
    assert reply_opening(text) == opening


@pytest.mark.parametrize(
    ("opening", "rest", "whole"),
    [
        ('{"facts": [', '{"fact": "A."}]} and so on', '{"facts": [{"fact": "A."}]}'),
        ("", 'Here: {"a": {}} more', 'Here: {"a": {}}'),
        ('{"answer": "', 'a } in \\"quotes\\" ]"} x', '{"answer": "a } in \\"quotes\\" ]"}'),
    ],
)
def test_the_end_is_where_the_first_object_closes(opening, rest, whole):
    end, text = JsonEnd(opening), opening
    for sign in rest:
        text += sign
        if end.read(sign):
            break
    assert text == whole


def test_an_object_that_stays_open_has_no_end():
    assert not JsonEnd('{"a": [').read('{"b": "}]}')
