"""What a generator's reference means, told without opening it."""

from pathlib import Path

from transfuse.errors import GenerationError
from transfuse.generate.settings import GeneratorSettings, endpoint_reference
from transfuse.io.files import file_sha256
from transfuse.io.fingerprint import model_fingerprint
from transfuse.io.references import check_model_folder, resolve_model

RECORDED = "recorded:"


def is_remote(reference: str) -> bool:
    """Whether a reference means an endpoint or a recording, and so no model that can be loaded here."""
    try:
        return reference.startswith(RECORDED) or endpoint_reference(reference) is not None
    except ValueError:
        return True  # begins as an endpoint; what is wrong with it is told by its settings


def check_generator(settings: GeneratorSettings) -> None:
    """Refuse a recording or local model that is not there; endpoints are met when they are asked.

    Args:
        settings: its `reference`.

    Raises:
        GenerationError: the recording is not there.
        ModelError: the reference means no model.
    """
    reference = settings.reference
    if endpoint_reference(reference) is not None:
        return
    if reference.startswith(RECORDED):
        path = _recording(reference)
        if not path.is_file():
            raise GenerationError(f"{path}: expected a file of recorded replies, found none; check the path.")
        return
    source = resolve_model(reference)
    if source.kind == "folder" and source.path is not None:
        check_model_folder(source.path)


def generator_key(settings: GeneratorSettings) -> str:
    """What changes when the model behind the reference does, as far as that can be told from here."""
    reference = settings.reference
    if endpoint_reference(reference) is not None:
        return reference
    if reference.startswith(RECORDED):
        return file_sha256(_recording(reference))
    return model_fingerprint(reference)


def _recording(reference: str) -> Path:
    return Path(reference.removeprefix(RECORDED)).expanduser()
