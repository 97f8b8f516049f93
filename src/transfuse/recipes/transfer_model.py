"""A new small student out of its teacher's full-rank blocks."""

from pathlib import Path

from transfuse.errors import RecipeError
from transfuse.io.models import load_tokenizer, save_model
from transfuse.io.run_folder import RunFolder
from transfuse.recipes.progress import Display
from transfuse.recipes.transfer_card import write_student_card
from transfuse.recipes.transfer_extraction import Extraction
from transfuse.recipes.transfer_pair import read_pair
from transfuse.recipes.transfer_reading import parameter_reader
from transfuse.recipes.transfer_schema import TransferRecipe
from transfuse.transfer.sub_cloning import model_with, student_shape, sub_clone

MODEL_VERSION = 1


def make_student(
    recipe: TransferRecipe, run: RunFolder, display: Display, extraction: Extraction | None
) -> Path:
    """Write the chosen blocks, at full rank, as an ordinary model folder.

    Args:
        recipe: names the teacher, and the shape.
        run: the run folder.
        display: progress.
        extraction: tells layers and cuts.

    Returns:
        The folder.

    Raises:
        ModelError: the student is of another family than its teacher.
        RecipeError: some matrices were left out, so that no whole model can be made.
    """
    assert extraction is not None  # noqa: S101 - the recipe checks it
    assert recipe.teacher is not None  # noqa: S101 - and this
    folder = run.path / "model"
    with run.stage(
        "sub-cloning", {"extraction": extraction.key}, version=MODEL_VERSION, outputs=[folder]
    ) as stage:
        if stage.is_done:
            return folder
        pair = read_pair(recipe)
        chosen = extraction.summary["layers"]["chosen"]
        layers, outside = extraction.cuts()
        missing = set(pair.student.roles) - {role for cuts in (*layers, outside) for role in cuts}
        if missing:
            raise RecipeError(
                f"--as model: expected blocks of all matrices, got none of {', '.join(sorted(missing))}; leave "
                "extract.roles out, and extract.vocabulary at 'match'."
            )
        config = pair.student_config
        if recipe.shape is not None:
            config = student_shape(pair.teacher_config, **recipe.shape.model_dump(), layers=chosen)
        read = parameter_reader(recipe, pair.teacher)
        weights = sub_clone(read, pair.teacher, config, chosen, layers, outside)
        model = model_with(config, weights)
        named = recipe.teacher if recipe.shape is not None else recipe.student
        tokenizer = load_tokenizer(named, trust_remote_code=recipe.trust_remote_code)
        save_model(model, tokenizer, folder)
        write_student_card(recipe, folder)
        n_parameters = sum(weight.numel() for weight in weights.values())
        display.say(f"New student: {len(chosen)} layers, {n_parameters:,} parameters, in {folder}.")
    return folder
