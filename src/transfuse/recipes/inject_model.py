"""The model of a document run: loaded as the recipe says, untouched or trained, and asked."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from transfuse.generate.local import LocalGenerator
from transfuse.io.chat import prompt_format
from transfuse.io.models import LoadedModel, load_model
from transfuse.recipes.progress import Advance
from transfuse.recipes.schema import InjectRecipe
from transfuse.train.adapters import load_adapter


def load_student(recipe: InjectRecipe, *, trainable: bool = False, device: str | None = None) -> LoadedModel:
    """The recipe's model; with gradients where all its weights are to be trained."""
    return load_model(
        recipe.model,
        precision=recipe.precision,
        device=device,
        trust_remote_code=recipe.trust_remote_code,
        trainable=trainable and recipe.train.method == "full",
    )


def result_name(recipe: InjectRecipe) -> str:
    """What training makes, and the name of its folder and its row: an adapter or a model."""
    return "adapter" if recipe.train.method == "lora" else "model"


def load_trained(recipe: InjectRecipe, run: Path) -> tuple[LoadedModel, nn.Module]:
    """The result as its user loads it: from the saved files, onto the untouched base."""
    result = run / result_name(recipe)
    if recipe.train.method == "lora":
        loaded = load_student(recipe)
        return loaded, load_adapter(loaded.model, result)
    loaded = load_model(str(result), precision=recipe.precision, trust_remote_code=recipe.trust_remote_code)
    return loaded, loaded.model


def generator_of(loaded: LoadedModel, model: nn.Module | None = None) -> LocalGenerator:
    """Answers of a loaded model, or of another one with its tokenizer (the same with an adapter)."""
    prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
    return LocalGenerator(model if model is not None else loaded.model, prompts, loaded.precision)


def without_note(advance: Advance) -> Callable[[int, int], None]:
    """A bar's `advance` for those who only count."""
    return lambda done, total: advance(done, total, "")
