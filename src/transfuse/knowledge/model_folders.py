"""Folders of sentence-transformers models: where a reference leads, what is refused, and what tells models apart."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError

from transfuse.errors import MissingExtraError, ModelError
from transfuse.io.files import file_sha256
from transfuse.io.quiet import quiet
from transfuse.io.references import HUB_ID

MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
CODE_FILES = "*.py"
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, SafetensorError)


@dataclass(frozen=True, slots=True)
class ModelKind:
    """What a model is called in messages, and what else could be given."""

    name: str
    """Such as `embedding model`."""
    expected: str
    """What a reference may be beside a Hub id."""
    other: str
    """What to use where the Hub cannot be reached."""
    may_run_code: bool = False
    """Whether the user can have its own Python code run."""


def model_folder(reference: str, kind: ModelKind, *, with_code: bool = False) -> Path:
    """Where a model's files lie: a folder, or what is fetched of a Hub id.

    Args:
        reference: as the user wrote it; `~` is the home folder.
        kind: for messages.
        with_code: whether Python files are fetched as well.

    Returns:
        An existing folder.

    Raises:
        ModelError: it is neither, or cannot be fetched.
    """
    path = Path(reference).expanduser()
    if reference and path.is_dir():
        return path
    if not HUB_ID.fullmatch(reference) or path.is_file():
        got = "a file" if path.is_file() else f"neither ({path.absolute()} does not exist)"
        raise ModelError(
            f"{kind.name} {reference!r}: expected {kind.expected} or a Hub id such as 'owner/name', got {got}; "
            "check the path."
        )
    return _fetched(reference, kind, [*MODEL_FILES, *([CODE_FILES] if with_code else [])])


def _fetched(hub_id: str, kind: ModelKind, patterns: list[str]) -> Path:
    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=patterns, local_files_only=not _is_hub_reachable())
        )
    except GatedRepoError as err:
        reason = "access is gated; accept its conditions on its Hub page, then log in with `hf auth login`."
        raise ModelError(f"{kind.name} {hub_id!r}: {reason}") from err
    except RepositoryNotFoundError as err:
        reason = (
            "there is no such folder, and the Hub knows no such model, or it is private; check the name, or "
            "log in with `hf auth login`."
        )
        raise ModelError(f"{kind.name} {hub_id!r}: {reason}") from err
    except LocalEntryNotFoundError as err:
        reason = (
            "there is no such folder, the Hub cannot be reached and the model is not in its local cache; check "
            f"the connection, or use {kind.other}."
        )
        raise ModelError(f"{kind.name} {hub_id!r}: {reason}") from err
    except Exception as err:  # the HTTP libraries' own error classes differ
        reason = f"cannot be fetched from the Hub: {first_line(err)}; try again, or use a local folder."
        raise ModelError(f"{kind.name} {hub_id!r}: {reason}") from err


def _is_hub_reachable() -> bool:
    """Asked first, and briefly: without a network every file would be retried for half a minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # the session's own error classes differ from one HTTP library to the next
        return False
    return True


def check_installed(what: str, install: str) -> None:
    """Refuse to go on without sentence-transformers, which `what` (a plural) need."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise MissingExtraError(f"{what} need sentence-transformers: {install}")


def module_folders(folder: Path) -> list[Path]:
    """The folders of a model's modules, as its modules.json names them.

    Args:
        folder: of the model.

    Returns:
        Folders in order.

    Raises:
        FileNotFoundError: there is no modules.json.
        ModelError: it cannot be read.
    """
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        return [folder / str(module["path"]) for module in modules]
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ModelError(f"{folder / 'modules.json'}: cannot be read: {err!r}; copy it again.") from err


def refuse_pickled(reference: str, kind: ModelKind, folders: Sequence[Path], loader: str) -> None:
    """Refuse a model whose weights are pickled.

    Args:
        reference: as the user wrote it.
        kind: for messages.
        folders: those that hold weights.
        loader: the class that could write it anew.

    Raises:
        ModelError: a folder holds pickled weights and no safetensors.
    """
    for folder in folders:
        pickled = sorted(folder.glob("pytorch_model*.bin"))
        if pickled and not list(folder.glob("*.safetensors")):
            raise ModelError(
                f"{kind.name} {reference!r}: {pickled[0]} is pickled and could run code; expected "
                f"safetensors. If you trust it: {loader}(folder).save_pretrained(new_folder)."
            )


@contextmanager
def loading_errors(reference: str, kind: ModelKind) -> Iterator[None]:
    """Keep sentence-transformers off the console, and turn what it raises into one clear error.

    Args:
        reference: as the user wrote it.
        kind: for messages.

    Yields:
        Nothing.

    Raises:
        ModelError: the model cannot be loaded.
    """
    try:
        with quiet("sentence_transformers", "huggingface_hub"):
            yield
    except (ModelError, MissingExtraError):
        raise
    except _LOADING_ERRORS as err:
        if "trust_remote_code" in str(err):
            trusting = ", or, if you trust it, give --trust-remote-code" if kind.may_run_code else ""
            detail = f"it needs Python code of its own, which is not run; choose a model without{trusting}."
        else:
            detail = f"cannot be loaded: {first_line(err)}; copy it again, or choose another model."
        raise ModelError(f"{kind.name} {reference!r}: {detail}") from err


def model_identity(folder: Path, *, with_code: bool = False) -> str:
    """Digest of every file that a vector may depend on, so that copies of a model share it; code only where it runs."""
    patterns = [*MODEL_FILES, *([CODE_FILES] if with_code else [])]
    files = {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    parts = sorted(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}" for path in files)
    return "sentence-transformers:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def first_line(err: BaseException) -> str:
    """The first line of an error's message that is not blank, else the error's type."""
    return next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)
