"""How a result is loaded without Transfuse, as reports show it."""

from transfuse.io.references import resolve_model


def loading_code(reference: str, name: str) -> str:
    """Python that loads a result without Transfuse.

    Args:
        reference: the base model.
        name: `adapter` or `model`, the result's folder.

    Returns:
        Lines to run in the run folder.

    Raises:
        ModelError: the reference means no model.
    """
    if name == "model":
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("model")\n'
            'tokenizer = AutoTokenizer.from_pretrained("model")\n'
        )
    source = resolve_model(reference)
    where = f'"{source.path or source.hub_id}"'
    if source.kind in ("gguf", "bundled") and source.path is not None:
        where = f'"{source.path.parent}", gguf_file="{source.path.name}"'
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({where})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({where})\n"
        'model = PeftModel.from_pretrained(base, "adapter")\n'
    )
