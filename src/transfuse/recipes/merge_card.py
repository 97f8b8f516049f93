"""What the cards of models say that were folded or merged without training."""

from collections.abc import Sequence
from pathlib import Path

from transfuse.baselines.merging_settings import WITHOUT_BASE, AnyMerge
from transfuse.io.model_cards import CardContent, write_card
from transfuse.recipes.card_methods import FOLDED, MERGED, method_of
from transfuse.recipes.card_parts import (
    data_files,
    hub_ids,
    licence_of,
    named,
    plain_name,
)
from transfuse.recipes.loading_code import loading_code


def write_folded_card(model: str, adapter: Path, folder: Path, command: str) -> None:
    """The card of a model with an adapter folded in.

    Args:
        model: the base.
        adapter: the PEFT folder.
        folder: the model.
        command: as typed.
    """
    licence, note = licence_of([model], [adapter])
    write_card(
        folder,
        CardContent(
            title=f"{plain_name(model)} with {adapter.resolve().name}",
            kind="model",
            base=f"{named(model)}, and the adapter `{adapter.resolve().name}`.",
            method=FOLDED.told,
            route="merge",
            load=loading_code(model, "model", is_portable=True),
            base_models=hub_ids([model]),
            relation="finetune",
            data=data_files([("adapter weights", adapter / "adapter_model.safetensors")]),
            limits=[
                "None was measured here: what the adapter's own card says holds for base and adapter together."
            ],
            command=command,
            licence=licence,
            licence_note=note,
        ),
    )


def write_merged_card(
    models: Sequence[str], settings: AnyMerge, folder: Path, *, base: str | None, command: str
) -> None:
    """The card of several models merged.

    Args:
        models: references.
        settings: of the method.
        folder: the model.
        base: what the models started from.
        command: as typed.
    """
    has_base = base is not None and settings.method not in WITHOUT_BASE
    makers = [*models, *([base] if has_base and base else [])]
    way = method_of(MERGED, settings.method)
    started = f" They started from {named(base)}." if has_base and base else ""
    licence, note = licence_of(makers)
    write_card(
        folder,
        CardContent(
            title=f"{' + '.join(map(plain_name, models))}, merged",
            kind="model",
            base=f"The weights of {', '.join(map(named, models))}.{started}",
            method=f"Merging of weights (`transfuse merge --method {settings.method}`). {way.told} Nothing was "
            "trained.",
            route="merge",
            load=loading_code(models[0], "model", is_portable=True),
            base_models=hub_ids(makers),
            relation="merge",
            arxiv=way.arxiv,
            settings=settings.model_dump(mode="json"),
            limits=[
                "None was measured here: a merge may be worse than each of its models; measure it before use."
            ],
            command=command,
            licence=licence,
            licence_note=note,
        ),
    )
