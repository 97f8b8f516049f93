"""References to endpoints: model names hold anything, URLs hold no key."""

import pytest
from pydantic import ValidationError

from transfuse.generate.settings import (
    WITHOUT_EFFECT,
    EndpointReference,
    GeneratorSettings,
    endpoint_reference,
)


@pytest.mark.parametrize(
    ("reference", "model", "url"),
    [
        ("openai:gpt-x@https://api.openai.com/v1", "gpt-x", "https://api.openai.com/v1"),
        ("openai:m@http://localhost:8000", "m", "http://localhost:8000/v1"),
        ("openai:m@http://localhost:8000/", "m", "http://localhost:8000/v1"),
        ("openai:org/m:free@v2@http://h/api/v1/", "org/m:free@v2", "http://h/api/v1"),
        ("openai:m@http://[::1]:8000/v1", "m", "http://[::1]:8000/v1"),
        ("openai:m@https://h/v1/chat/completions", "m", "https://h/v1"),
        ("http://localhost:8000/v1", None, "http://localhost:8000/v1"),
        ("openai:http://localhost:8000", None, "http://localhost:8000/v1"),
    ],
)
def test_endpoints(reference: str, model: str | None, url: str):
    assert endpoint_reference(reference) == EndpointReference(model, url)
    assert GeneratorSettings(reference=reference).reference == reference


@pytest.mark.parametrize(
    "reference", ["smollm2-135m", "org/model", "recorded:a@http.jsonl", "./folder", "C:/m.gguf"]
)
def test_what_is_no_endpoint(reference: str):
    assert endpoint_reference(reference) is None


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("openai:m", "expected openai:MODEL@URL"),
        ("openai:m@localhost:8000", "begins with http"),
        ("openai:@http://h", "got no model"),
        ("openai:m@http://", "expected a URL"),
        ("openai:m@http://h:port/v1", "a broken one"),
        ("openai:m@http://user:sk-1@h/v1", "URL of h holds a user name"),
        ("openai:m@http://h/v1?key=sk-1", "environment variable that key_env names"),
        ("recorded:", "expected openai:MODEL@URL, recorded:FILE"),
        (" ", "or a model reference"),
    ],
)
def test_what_is_refused(reference: str, says: str):
    with pytest.raises(ValidationError, match=says):
        GeneratorSettings(reference=reference)


def test_the_usual_keys():
    assert EndpointReference("m", "https://api.openai.com/v1").default_key_env == "OPENAI_API_KEY"
    assert (
        EndpointReference("m", "https://api.openai.com.evil.example/v1").default_key_env
        == "TRANSFUSE_API_KEY"
    )


def test_settings_without_effect_are_settings():
    assert set(GeneratorSettings.model_fields) > WITHOUT_EFFECT
    assert set(GeneratorSettings.model_fields) - WITHOUT_EFFECT == {
        "reference",
    }
