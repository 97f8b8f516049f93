"""What lm-eval calls for `super_ni.yaml`."""

from collections.abc import Sequence
from typing import Any

from transfuse.evaluate.benchmark_rows import Row, published_row
from transfuse.text.task_answers import score_reply


def process_docs(dataset: Any) -> Any:
    """Rows as the task reads them, of rows as they are at the hub."""
    if "prompt" in dataset.column_names:
        return dataset
    return dataset.map(
        lambda row, n: published_row("super_ni", Row(row, f"row {n + 1}")).value,
        with_indices=True,
        remove_columns=dataset.column_names,
    )


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Best score of a reply over the references."""
    scores = score_reply(results[0], doc["references"], "text")
    return {name: scores[name] for name in ("exact_match", "rouge_l")}
