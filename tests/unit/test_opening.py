"""A reference opens the generator it names; a model that is loaded already is not loaded again."""

from pathlib import Path

import pytest

from faulty_endpoint import FaultyEndpoint
from transfuse.errors import DataError, GenerationError, ModelError
from transfuse.generate import opening
from transfuse.generate.endpoint import EndpointGenerator
from transfuse.generate.local import LocalGenerator
from transfuse.generate.opening import open_generator
from transfuse.generate.protocol import Generator, Request
from transfuse.generate.recorded import RecordedGenerator, record_replies
from transfuse.generate.settings import GeneratorSettings
from transfuse.io.models import LoadedModel, load_model

ASKED = [Request("Where?", max_new_tokens=4)]


def opened(reference: object, student: LoadedModel | None = None, **more) -> Generator:
    settings = GeneratorSettings(reference=str(reference), **more)
    return open_generator(settings, precision="float32", trust_remote_code=False, student=student)


@pytest.fixture(scope="module")
def student(tiny_model_folder: Path) -> LoadedModel:
    return load_model(str(tiny_model_folder), precision="float32")


def test_a_model_is_loaded_once(tiny_model_folder: Path, tiny_base_folder: Path, student, monkeypatch):
    own = opened(tiny_model_folder)
    assert isinstance(own, LocalGenerator)
    monkeypatch.setattr(opening, "load_model", lambda *_, **__: pytest.fail("loaded again"))
    shared = opened(tiny_model_folder.parent / "." / tiny_model_folder.name, student)
    assert shared.identity == own.identity
    assert shared.identity.endswith(":float32:opened")
    assert shared.generate(ASKED) == own.generate(ASKED)
    with pytest.raises(pytest.fail.Exception, match="loaded again"):
        opened(tiny_base_folder, student)


def test_identities_tell_models_apart(tiny_model_folder: Path, tiny_base_folder: Path):
    assert opened(tiny_model_folder).identity != opened(tiny_base_folder).identity


def test_a_recording(tiny_model_folder: Path, tmp_path: Path):
    path = tmp_path / "replies.jsonl"
    replies = record_replies(opened(tiny_model_folder), ASKED, path)
    recorded = opened(f"recorded:{path}")
    assert isinstance(recorded, RecordedGenerator)
    assert recorded.generate(ASKED) == replies


def test_an_endpoint_with_its_settings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", "sk-right")
    with FaultyEndpoint(key="sk-right", faults=lambda number, body: "500") as server:
        asked = opened(f"openai:tiny@{server.url}", key_env="MY_KEY", max_retries=0, timeout_s=3)
        assert isinstance(asked, EndpointGenerator)
        assert asked.identity == f"openai:tiny@{server.url}"
        assert "(1 attempts)" in asked.generate(ASKED)[0].error
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reference", "kind", "says"),
    [
        ("./nowhere", ModelError, "no such file or folder"),
        ("recorded:nowhere.jsonl", DataError, "nowhere.jsonl"),
        ("http://127.0.0.1:9/v1", GenerationError, "expected a list of models"),
    ],
)
def test_what_is_not_there_is_named(reference: str, kind: type[Exception], says: str):
    with pytest.raises(kind, match=says):
        opened(reference)
