"""What a fusion will take, told before it starts: tokens, disk, memory and time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich import box
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from transfuse.evaluate.bits_per_byte import load_texts
from transfuse.fuse.pieces import cut_texts
from transfuse.io.memory import available_bytes
from transfuse.io.precision import resolve_device, resolve_precision
from transfuse.io.token_spans import token_spans
from transfuse.recipes.fuse_pieces import TARGET, load_tokenizers, piece_limit
from transfuse.recipes.fuse_schema import FuseRecipe
from transfuse.recipes.progress import size_text, span_text
from transfuse.recipes.transfer_plan import Rates, measured_rates, model_sizes, pass_s
from transfuse.tensors.packed_records import RecordLayout, widest_value_bits

MAX_PLANNED_TEXTS = 400
"""Texts that are tokenized to estimate all; the others are taken to be like them, byte for byte."""

_TRAINING_COPIES = 4
"""Weights, gradients and AdamW's two moments, in float32."""
_ADAPTED_COPIES = 1.1
"""A frozen model with LoRA factors."""
_TARGET_BYTES_A_KEPT_TOKEN = 6
"""Of a fused target: an id and a half-precision log-probability, at most."""


@dataclass(frozen=True)
class PlannedModel:
    """One model of a fusion."""

    name: str
    n_parameters: int
    n_tokens: int
    """Of all texts, about."""
    pass_s: float
    cache_bytes: int
    memory_bytes: int
    """Of the pass: the weights, in the type that computes."""


@dataclass(frozen=True)
class FusionPlan:
    """Figures of a whole run."""

    models: list[PlannedModel]
    """Target first."""
    n_pieces: int
    n_target_tokens: int
    """One training's, over all its epochs."""
    n_trainings: int
    target_bytes: int
    training_s: float
    """Of all trainings together."""
    training_memory_bytes: int
    result_bytes: int

    @property
    def disk_bytes(self) -> int:
        """Caches, fused targets and the result."""
        return sum(each.cache_bytes for each in self.models) + self.target_bytes + self.result_bytes


def fusion_plan(recipe: FuseRecipe, rates: Rates) -> FusionPlan:
    """What a run takes, from configurations, tokenizers and texts; no weight is read.

    Args:
        recipe: as it will be run.
        rates: of this machine.

    Returns:
        Estimates: tokens from a sample of the texts, times from multiplications at the machine's rate.

    Raises:
        TransfuseError: a model or a text cannot be read.
    """
    tokenizers = load_tokenizers(recipe)
    texts = [text for path in recipe.texts.values() for text in load_texts(path)]
    chosen = np.linspace(0, len(texts) - 1, min(len(texts), MAX_PLANNED_TEXTS)).round().astype(int)
    sample = [texts[int(n)] for n in np.unique(chosen)]
    pieces = [piece.text for piece in cut_texts(sample, tokenizers.all, piece_limit(recipe))]
    share = sum(len(text.encode()) for text in texts) / max(1, sum(len(text.encode()) for text in sample))
    n_pieces = round(len(pieces) * share)
    if recipe.n_pieces is not None and recipe.n_pieces < n_pieces:
        share *= recipe.n_pieces / n_pieces
        n_pieces = recipe.n_pieces
    is_fused = recipe.strategy != "clm"
    models = [
        _planned(recipe, name, reference, tokenizer, pieces, share, rates, is_passed=is_passed)
        for name, reference, tokenizer, is_passed in [
            (
                TARGET,
                recipe.target,
                tokenizers.target,
                is_fused and recipe.fusion.with_target and TARGET not in recipe.caches,
            ),
            *(
                (name, reference, tokenizers.sources[name], is_fused and name not in recipe.caches)
                for name, reference in zip(recipe.names, recipe.sources, strict=True)
            ),
        ]
    ]
    target = models[0]
    n_tokens = recipe.train.read_tokens(target.n_tokens)
    n_arms = len(recipe.sources) if recipe.strategy == "pairwise" else 1
    n_arms += ("clm" in recipe.controls) + len(recipe.sources) * ("distilled" in recipe.controls)
    n_lessons = len(recipe.sources) if recipe.strategy == "pairwise" else int(is_fused)
    n_lessons += len(recipe.sources) * ("distilled" in recipe.controls)
    n_kept = recipe.fusion.n_kept or recipe.distributions.k
    is_full = recipe.train.method == "full"
    return FusionPlan(
        models=models,
        n_pieces=n_pieces,
        n_target_tokens=n_tokens,
        n_trainings=n_arms * recipe.n_seeds,
        target_bytes=n_lessons * target.n_tokens * (n_kept * _TARGET_BYTES_A_KEPT_TOKEN + 5),
        training_s=n_arms * recipe.n_seeds * 3 * pass_s(target.n_parameters, n_tokens, rates),
        training_memory_bytes=round(
            4 * target.n_parameters * (_TRAINING_COPIES if is_full else _ADAPTED_COPIES)
        ),
        result_bytes=4 * target.n_parameters if is_full else 0,
    )


def plan_fusion(recipe: FuseRecipe, rates: Rates | None = None) -> Table:
    """The figures of a recipe, for a terminal.

    Args:
        recipe: as it will be run.
        rates: of this machine; None measures them.

    Returns:
        A table for a rich console.

    Raises:
        TransfuseError: a model or a text cannot be read.
    """
    used = rates or measured_rates()
    plan = fusion_plan(recipe, used)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, caption_justify="left")
    for name in ("Model", "Parameters", "Tokens", "Pass", "Cache", "Memory"):
        table.add_column(name, justify="left" if name == "Model" else "right", overflow="fold")
    for each in plan.models:
        table.add_row(
            each.name,
            f"{each.n_parameters:,}",
            f"{each.n_tokens:,}",
            span_text(each.pass_s) if each.pass_s else "–",
            size_text(each.cache_bytes) if each.cache_bytes else "–",
            size_text(each.memory_bytes),
        )
    free = available_bytes()
    table.caption = "\n".join(
        [
            f"{plan.n_pieces:,} pieces; {plan.n_trainings} trainings of {plan.n_target_tokens:,} tokens, about "
            f"{span_text(plan.training_s)} together, in {size_text(plan.training_memory_bytes)} and activations"
            + (f" ({size_text(free)} are free)." if free is not None else "."),
            f"Disk: {size_text(plan.disk_bytes)} in all, {size_text(plan.target_bytes)} of it fused targets, "
            f"{size_text(plan.result_bytes)} the result.",
            "Times are from the multiplications alone, at this machine's float32 rate; bfloat16 in hardware and a GPU "
            "take less, small batches more.",
        ]
    )
    return table


def _planned(
    recipe: FuseRecipe,
    name: str,
    reference: str,
    tokenizer: PreTrainedTokenizerBase,
    pieces: Sequence[str],
    share: float,
    rates: Rates,
    *,
    is_passed: bool,
) -> PlannedModel:
    n_sampled = sum(len(spans.token_ids) for spans in token_spans(tokenizer, pieces))
    n_tokens = round(share * n_sampled)
    n_parameters, n_logits = model_sizes(reference, trust_remote_code=recipe.trust_remote_code)
    precision = resolve_precision(recipe.precision, resolve_device())
    cache_bytes = 0
    if is_passed:
        settings, n_vocab = recipe.distributions, min(n_logits, len(tokenizer))
        is_sampled = settings.selection == "sampled"
        bits = settings.value_bits or widest_value_bits(n_vocab, settings.k, is_sampled=is_sampled)
        cache_bytes = n_tokens * RecordLayout(n_vocab, settings.k, bits, is_sampled).record_bytes
    return PlannedModel(
        name=name,
        n_parameters=n_parameters,
        n_tokens=n_tokens,
        pass_s=pass_s(n_parameters, n_tokens, rates) if is_passed else 0.0,
        cache_bytes=cache_bytes,
        memory_bytes=n_parameters * (2 if precision == torch.bfloat16 else 4),
    )
