"""A generator for what the settings name."""

from pathlib import Path

from transfuse.errors import GenerationError
from transfuse.generate.endpoint import EndpointGenerator
from transfuse.generate.local import LocalGenerator
from transfuse.generate.protocol import Generator
from transfuse.generate.recorded import RecordedGenerator
from transfuse.generate.references import RECORDED
from transfuse.generate.settings import GeneratorSettings, endpoint_reference
from transfuse.io.chat import prompt_format
from transfuse.io.fingerprint import model_fingerprint
from transfuse.io.models import LoadedModel, load_model
from transfuse.io.precision import Precision, resolve_precision
from transfuse.io.references import ModelSource, resolve_model


def open_generator(
    settings: GeneratorSettings,
    *,
    precision: Precision,
    trust_remote_code: bool,
    student: LoadedModel | None = None,
) -> Generator:
    """The generator that a reference names.

    Args:
        settings: its `reference` is an endpoint, a recording or a model.
        precision: compute type of a local model.
        trust_remote_code: whether Python code that comes with a local model may run.
        student: a model that is loaded already; used where the reference means the same one in the same
            precision.

    Returns:
        An endpoint, a recording, or a model on this machine.

    Raises:
        GenerationError: the endpoint or its key is unusable, or the recording is malformed.
        DataError: the recording cannot be read.
        ModelError: the model cannot be loaded.
        MissingExtraError: an endpoint is named and the `aiohttp` package is not installed.
    """
    reference = settings.reference
    try:
        is_endpoint = endpoint_reference(reference) is not None
    except ValueError as err:
        raise GenerationError(f"generator: {err}.") from err
    if is_endpoint:
        return EndpointGenerator(
            reference,
            key_env=settings.key_env,
            n_at_once=settings.n_at_once,
            timeout_s=settings.timeout_s,
            max_retries=settings.max_retries,
        )
    if reference.startswith(RECORDED):
        return RecordedGenerator(Path(reference.removeprefix(RECORDED)).expanduser())
    return _local_generator(reference, precision, trust_remote_code, student)


def _local_generator(
    reference: str, precision: Precision, trust_remote_code: bool, student: LoadedModel | None
) -> LocalGenerator:
    loaded = student
    if (
        loaded is None
        or _place(loaded.source) != _place(resolve_model(reference))
        or loaded.precision != resolve_precision(precision, loaded.device)
    ):
        loaded = load_model(reference, precision=precision, trust_remote_code=trust_remote_code)
    prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
    identity = f"local:{model_fingerprint(reference)}:{str(loaded.precision).removeprefix('torch.')}:opened"
    return LocalGenerator(loaded.model, prompts, loaded.precision, identity=identity)


def _place(source: ModelSource) -> tuple[str, str, str]:
    path = "" if source.path is None else str(source.path.resolve())
    return source.kind, path, source.hub_id or ""
