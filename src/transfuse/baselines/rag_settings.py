"""How passages are found and put before a question, to compare training with."""

from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from transfuse.knowledge.records import PassageSettings, SearchMode
from transfuse.types import ModelReference, StrictModel


class RagSettings(StrictModel):
    """Retrieval in place of training."""

    embedder: ModelReference | None = "minilm-l6-v2"
    """Embedding model: a sentence-transformers folder, a Hub id, or the packaged `minilm-l6-v2`; none searches by
    words alone and takes mode `lexical`."""
    passages: PassageSettings = PassageSettings()
    mode: SearchMode = "hybrid"
    """By meaning and by words together, by meaning (`dense`), or by words (`lexical`, BM25)."""
    rerank: bool = True
    """Whether the best hits are scored again: by `reranker`, or where there is none exactly, with the full-precision
    vectors (which mode `lexical` has none of)."""
    reranker: ModelReference | None = None
    """Cross-encoder: a folder or a Hub id."""
    k: PositiveInt | None = None
    """Passages that stand before each question; none chooses among `candidates` on training questions."""
    candidates: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 2, 3, 5]
    """Of these the smallest number with the greatest mean F1 is taken."""
    n_tuning_questions: PositiveInt = 32
    """Training questions that are asked once with each of the candidates; one a fact as far as they go."""

    @property
    def rerank_by(self) -> str | None:
        """What scores the best hits again: the reranker, `exact`, or nothing."""
        if not self.rerank:
            return None
        return self.reranker or ("exact" if self.mode != "lexical" else None)

    @model_validator(mode="after")
    def _parts_fit(self) -> "RagSettings":
        if self.embedder is None and self.mode != "lexical":
            raise ValueError(
                f"mode {self.mode!r} searches by meaning, which needs an embedder; name one, or use mode 'lexical'"
            )
        if self.reranker is not None and self.embedder is None:
            raise ValueError("reranker is set without an embedder, which its index is built with; name one")
        if self.reranker is not None and not self.rerank:
            raise ValueError("reranker is set, but rerank is false; set rerank: true, or leave reranker out")
        return self
