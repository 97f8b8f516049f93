"""Settings of the training loop; part of every recipe that trains."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from transfuse.types import StrictModel

DEFAULT_LEARNING_RATE: dict[str, float] = {"lora": 1e-3, "full": 1e-4}
"""Peak learning rate where the recipe names none."""

PASS_TOKENS, CPU_PASS_TOKENS = 4096, 1024
"""Tokens of a forward pass where the recipe names no number."""

_Beta = Annotated[float, Field(ge=0, lt=1)]


class LoraSettings(StrictModel):
    """Shape of the low-rank adapter (PEFT's `LoraConfig`)."""

    rank: PositiveInt = 16
    """Rank r of each adapted matrix."""
    alpha: PositiveFloat = 32.0
    """Numerator of the scaling alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs set to zero while training."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Modules to adapt: every linear layer but the output head, or names as PEFT takes them."""


class TrainSettings(StrictModel):
    """How a model is trained; the same for every route."""

    method: Literal["lora", "full"] = "lora"
    """A LoRA adapter on a frozen model, or all weights."""
    lora: LoraSettings = LoraSettings()
    learning_rate: PositiveFloat | None = None
    """Peak learning rate of AdamW; none means 1e-3 for LoRA and 1e-4 for full fine-tuning."""
    n_epochs: PositiveInt = 4
    """Passes over the training records; without meaning where `n_tokens` is given."""
    n_tokens: PositiveInt | None = None
    """Train until so many tokens have been read, prompts counted and padding not: the training ends with the step that
    reads the last of them, after as many passes over the records as it takes. None trains `n_epochs`."""
    batch_rows: PositiveInt = 16
    """Records a step, over all processes together."""
    gradient_accumulation: PositiveInt = 1
    """Batches added up before each step."""
    max_tokens_per_pass: PositiveInt | None = None
    """A batch of more tokens (padding counted) runs in several forward passes, with the same result. None means
    4,096 on an accelerator, and 1,024 on a CPU, where attention over more packed tokens costs more than it saves."""
    packing: Literal["auto", "on", "off"] = "auto"
    """Records of a batch laid end to end without padding, their common beginning computed once. `auto` tries
    it on the model and falls back to padded batches of like length where the results differ."""
    head: Literal["auto", "chunked", "whole"] = "auto"
    """Output head and loss on a few positions at a time, so that full logits never exist. `auto` does so where they
    are large, tries it on the model, and falls back where the results differ."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    """How much of AdamW's running means of gradients, and of their squares, each step keeps."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients of a greater norm are scaled down to it."""
    max_length_tokens: PositiveInt | None = None
    """Longer records are dropped, and reported; none means the model's context length."""
    checkpoint_s: PositiveFloat = 60.0
    """Seconds between checkpoints; a killed run continues from the last one."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    report_to: list[str] = []
    """Trackers as transformers names them: tensorboard, wandb, mlflow, ..."""

    def pass_tokens(self, device_type: str) -> int:
        """Tokens of a forward pass, as given or the default of a device such as `cuda`."""
        return self.max_tokens_per_pass or (CPU_PASS_TOKENS if device_type == "cpu" else PASS_TOKENS)

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate given, or the method's default."""
        return self.learning_rate or DEFAULT_LEARNING_RATE[self.method]

    def read_tokens(self, n_row_tokens: int) -> int:
        """Tokens that a training reads, of records that have so many together; a step's worth more at most."""
        return self.n_tokens or n_row_tokens * self.n_epochs

    @model_validator(mode="after")
    def _lora_fits_method(self) -> "TrainSettings":
        if self.method == "full" and "lora" in self.model_fields_set and self.lora != LoraSettings():
            raise ValueError("train.lora is set, but train.method is 'full'; set one of the two")
        return self
