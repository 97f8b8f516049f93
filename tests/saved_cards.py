"""What the card of a saved model or adapter is to hold, whatever made it."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard


def read_card(folder: Path, private: Path | None = None) -> tuple[dict[str, Any], str]:
    """The metadata and the text of a folder's card, once it has been seen to be whole.

    `private` is a place on this machine that only the command, as typed, may name.
    """
    card = ModelCard.load(folder / "README.md")
    told = card.data.to_dict()
    assert told["library_name"] == ("peft" if (folder / "adapter_config.json").is_file() else "transformers")
    assert told["tags"][0] == "transfuse"
    text = str(card)
    for heading in (
        "made from",
        "Method",
        "Data",
        "Settings",
        "Results",
        "figures do not say",
        "load it",
        "Licence",
    ):
        assert f"{heading}\n" in text, heading
    assert "[More Information Needed]" not in text  # PEFT's own card
    if private is not None:
        shown = "\n".join(line for line in text.splitlines() if not line.startswith("transfuse "))
        assert str(private) not in shown
    return told, text


def metrics_of(told: dict[str, Any]) -> dict[str, float]:
    """Metric to value, as the Hub lists them."""
    results = told["model-index"][0]["results"]
    return {metric["name"].split(" (")[0]: metric["value"] for each in results for metric in each["metrics"]}
