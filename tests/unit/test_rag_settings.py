"""Settings of the retrieval baseline that contradict one another."""

import pytest

from transfuse.baselines.rag_settings import RagSettings


@pytest.mark.parametrize(
    ("given_settings", "complaint"),
    [
        ({"embedder": None}, "mode 'hybrid' searches by meaning, which needs an embedder"),
        ({"embedder": None, "mode": "lexical", "reranker": "a/b"}, "reranker is set without an embedder"),
        ({"rerank": False, "reranker": "a/b"}, "reranker is set, but rerank is false"),
        ({"candidates": []}, "at least 1 item"),
        ({"candidates": [0]}, "greater than 0"),
        ({"k": 0}, "greater than 0"),
        ({"passages": {"max_tokens": 40, "overlap_tokens": 30}}, "expected at most half of max_tokens"),
    ],
)
def test_settings_that_cannot_be_searched_with_are_refused(given_settings: dict[str, object], complaint: str):
    with pytest.raises(ValueError, match=complaint):
        RagSettings.model_validate(given_settings)
