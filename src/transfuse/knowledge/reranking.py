"""Passages scored together with the query by a cross-encoder: slower than vectors, and nearer to the point."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

from transfuse.errors import ModelError
from transfuse.io.precision import resolve_device
from transfuse.knowledge.model_folders import (
    ModelKind,
    check_installed,
    loading_errors,
    model_folder,
    module_folders,
    refuse_pickled,
)
from transfuse.knowledge.records import Reranker

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

_INSTALL = "pip install 'transfuse[index]'"
_KIND = ModelKind("reranker", expected="a cross-encoder's folder", other="a local folder")
_BATCH_PAIRS = 16
_HEAD = "ForSequenceClassification"


@final
class CrossEncoderReranker:
    """A sentence-transformers cross-encoder; of a pair beyond the model's limit only the beginning counts."""

    def __init__(self, model: "CrossEncoder") -> None:
        self._model = model

    def __call__(self, query: str, texts: Sequence[str]) -> list[float]:
        """Score texts for a query; those of like length share a batch, so that little is padded.

        Args:
            query: what is looked for.
            texts: what may answer it.

        Returns:
            A score for each text, in the order given; greater is better.
        """
        if not texts:
            return []
        # `predict` sorts the pairs by length itself.
        scores = self._model.predict(
            [(query, text) for text in texts], batch_size=_BATCH_PAIRS, show_progress_bar=False
        )
        return [float(score) for score in scores]


def load_reranker(reference: str, device: str | None = None) -> Reranker:
    """A cross-encoder, from safetensors only; no code that comes with a model is run.

    Args:
        reference: a folder that CrossEncoder.save_pretrained wrote, or a Hub id, looked for in this order.
        device: None picks CUDA, then MPS, then the CPU.

    Returns:
        What scores texts for a query.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        ModelError: the reference leads to no cross-encoder that can be loaded, or it gives more than one score.
    """
    on_device = resolve_device(device)
    check_installed("rerankers", _INSTALL)
    with loading_errors(reference, _KIND):
        folder = model_folder(reference, _KIND)
        _check_folder(reference, folder)
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(
            str(folder),
            device=str(on_device),
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
        if model.num_labels != 1:
            raise ModelError(
                f"reranker {reference!r}: expected a model that gives one score for a pair, got one with "
                f"{model.num_labels} labels; choose one trained to rank passages."
            )
        return CrossEncoderReranker(model)


def _check_folder(reference: str, folder: Path) -> None:
    """Refuse what would be loaded wrongly: a model without a head for scores is given a random one."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architectures = [str(name) for name in config.get("architectures") or ["none"]]
    except FileNotFoundError as err:
        raise ModelError(
            f"reranker {reference!r}: expected a cross-encoder with config.json, found none in {folder}; give "
            "one that CrossEncoder.save_pretrained wrote."
        ) from err
    except (OSError, ValueError, AttributeError, TypeError) as err:
        raise ModelError(f"{folder / 'config.json'}: cannot be read: {err!r}; copy it again.") from err
    if not architectures[0].endswith(_HEAD):
        raise ModelError(
            f"reranker {reference!r}: expected a cross-encoder (an architecture ...{_HEAD}), got "
            f"{architectures[0]}, whose scores would be random; choose a model trained to rank passages."
        )
    try:
        parts = module_folders(folder)
    except FileNotFoundError:
        parts = [folder]
    refuse_pickled(reference, _KIND, parts, "CrossEncoder")
