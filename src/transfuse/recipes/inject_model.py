"""The model of a document run: loaded as the recipe says, and asked."""

from collections.abc import Callable

from torch import nn

from transfuse.generate.local import LocalGenerator
from transfuse.io.chat import prompt_format
from transfuse.io.models import LoadedModel, load_model
from transfuse.recipes.progress import Advance
from transfuse.recipes.schema import InjectRecipe


def load_student(recipe: InjectRecipe, *, trainable: bool = False, device: str | None = None) -> LoadedModel:
    """The recipe's model; with gradients where all its weights are to be trained."""
    return load_model(
        recipe.model,
        precision=recipe.precision,
        device=device,
        trust_remote_code=recipe.trust_remote_code,
        trainable=trainable and recipe.train.method == "full",
    )


def generator_of(loaded: LoadedModel, model: nn.Module | None = None) -> LocalGenerator:
    """Answers of a loaded model, or of another one with its tokenizer (the same with an adapter)."""
    prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
    return LocalGenerator(model if model is not None else loaded.model, prompts, loaded.precision)


def without_note(advance: Advance) -> Callable[[int, int], None]:
    """A bar's `advance` for those who only count."""
    return lambda done, total: advance(done, total, "")
