"""What is evaluated: a model with whatever belongs to it, loaded when it is first asked."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from transfuse.errors import ModelError, RecipeError
from transfuse.evaluate.ensemble_model import EnsembleModel
from transfuse.generate.local import LocalGenerator, context_tokens
from transfuse.generate.remembered import RememberedReplies
from transfuse.generate.reply_cache import ReplyCache
from transfuse.io.chat import PromptFormat, prompt_format
from transfuse.io.fingerprint import adapter_fingerprint, model_fingerprint
from transfuse.io.memory import forget_peak, peak_bytes
from transfuse.io.models import LoadedModel, load_model, load_tokenizer
from transfuse.io.precision import Precision, resolve_device, resolve_precision
from transfuse.io.references import check_model_folder, resolve_model, weight_files
from transfuse.io.run_folder import key_digest
from transfuse.recipes.eval_schema import EvalRecipe, SystemSettings
from transfuse.train.adapters import load_adapter

SYSTEM_VERSION = 1
"""Raised whenever a system may answer in another way."""


class Asked(NamedTuple):
    """A system that is loaded."""

    model: nn.Module
    """With its adapter; of several members, their ensemble."""
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptFormat
    precision: torch.dtype


@dataclass(frozen=True)
class _Load:
    precision: Precision
    trust_remote_code: bool


@final
class System:
    """One system of an evaluation."""

    def __init__(self, row: str, settings: SystemSettings, recipe: EvalRecipe) -> None:
        """Check what belongs to it; no weights are loaded.

        Args:
            row: its name in the report.
            settings: model, adapter and further models.
            recipe: says how they are loaded.

        Raises:
            ModelError: a model or the adapter is not there.
        """
        self.row, self.settings = row, settings
        self._load = _Load(recipe.precision, recipe.trust_remote_code)
        for reference in self.references:
            source = resolve_model(reference)
            if source.kind == "folder" and source.path is not None:
                check_model_folder(source.path)
        self.tokenizer = load_tokenizer(settings.model, trust_remote_code=recipe.trust_remote_code)
        self.is_mixed = self._has_several_vocabularies()
        self.identity = key_digest(
            {
                "version": SYSTEM_VERSION,
                "models": [model_fingerprint(each) for each in self.references],
                "adapter": adapter_fingerprint(settings.adapter) if settings.adapter else None,
                "precision": str(resolve_precision(recipe.precision, resolve_device())),
                "device": resolve_device().type,
            }
        )
        self._loaded: Asked | None = None
        self.loading_s = 0.0
        """Spent on loading weights so far."""

    @property
    def references(self) -> list[str]:
        """Model references, the model itself first."""
        return [self.settings.model, *self.settings.ensemble]

    @property
    def model(self) -> str:
        """Reference of the model itself."""
        return self.settings.model

    @property
    def trust_remote_code(self) -> bool:
        """Whether Python code that comes with a model may run."""
        return self._load.trust_remote_code

    def load(self) -> Asked:
        """The system, loaded at the first call.

        Returns:
            Model, tokenizer and prompts.

        Raises:
            ModelError: a model or the adapter cannot be loaded.
            RecipeError: members of other vocabularies have no common next token.
        """
        if self._loaded is None:
            if self.is_mixed:
                raise RecipeError(
                    f"{self.row}: models of different vocabularies have no common next token; measure texts only."
                )
            members = [self.load_member(n) for n in range(len(self.references))]
            first = members[0]
            model = first.model if len(members) == 1 else EnsembleModel([each.model for each in members])
            prompts = prompt_format(first.tokenizer, _base(first.model).generation_config)
            self._loaded = Asked(model, first.tokenizer, prompts, first.precision)
        return self._loaded

    def load_member(self, number: int) -> LoadedModel:
        """One of the models, the first with the adapter."""
        if number == 0:
            _forget_peak()
        started = time.monotonic()
        loaded = load_model(
            self.references[number],
            precision=self._load.precision,
            trust_remote_code=self._load.trust_remote_code,
        )
        if number == 0 and self.settings.adapter is not None:
            adapted: Any = load_adapter(loaded.model, self.settings.adapter)
            loaded = replace(loaded, model=adapted)
        self.loading_s += time.monotonic() - started
        return loaded

    def release(self) -> None:
        """Let go of the weights."""
        self._loaded = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def generator(self, cache: ReplyCache) -> RememberedReplies:
        """Who answers requests; loaded only for what the cache does not know."""
        return RememberedReplies(self.identity, self.plain_generator, cache)

    def plain_generator(self) -> LocalGenerator:
        """Who answers requests, each anew."""
        asked = self.load()
        return LocalGenerator(asked.model, asked.prompts, asked.precision, identity=self.identity)

    def fits(self, question: str, context: str, max_new_tokens: int) -> bool:
        """Whether the whole prompt leaves room for the answer, as `LocalGenerator` asks for."""
        asked = self.load()
        limit = context_tokens(asked.model)
        prompt = asked.prompts.encode_question(question, context=context)
        return limit is None or len(prompt) + max_new_tokens <= limit

    @cached_property
    def size_added_bytes(self) -> int:
        """What it takes on disk beyond the model itself: the adapter's files and further models'."""
        added = _folder_bytes(self.settings.adapter) if self.settings.adapter else 0
        return added + sum(_model_bytes(each) for each in self.settings.ensemble)

    def _has_several_vocabularies(self) -> bool:
        own = self.tokenizer.get_vocab()
        return any(
            load_tokenizer(each, trust_remote_code=self.trust_remote_code).get_vocab() != own
            for each in self.settings.ensemble
        )


def _forget_peak() -> None:
    forget_peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    """The most memory held at once since the system was loaded; on a GPU, that of the GPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes()


def open_systems(recipe: EvalRecipe) -> list[System]:
    """The systems of a recipe, checked, none of them loaded.

    Args:
        recipe: names them.

    Returns:
        One or two.

    Raises:
        RecipeError: one has members of other vocabularies and is to answer something.
    """
    systems = [System(row, settings, recipe) for row, settings in recipe.systems.items()]
    for system in systems:
        if system.is_mixed:
            _refuse_questions(system, recipe)
    return systems


def _refuse_questions(system: System, recipe: EvalRecipe) -> None:
    named = {
        "benchmarks": recipe.benchmarks,
        "questions": recipe.questions,
        "unanswerable": recipe.unanswerable,
        "samples": recipe.samples,
        "judge": recipe.judge,
    }
    asked = [name for name, value in named.items() if value]
    if asked:
        raise RecipeError(
            f"{system.row}.ensemble: {', '.join(system.references)} have different vocabularies, and so no common next "
            f"token to average; leave out {', '.join(asked)} (texts alone can be measured), or choose models of one "
            f"family."
        )


def _base(model: Any) -> Any:
    return getattr(model, "get_base_model", lambda: model)()


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _model_bytes(reference: str) -> int:
    try:
        path = resolve_model(reference).path
        files: Sequence[Path] = [] if path is None else weight_files(path) if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files)
    except (OSError, ModelError):
        return 0
