"""A conversation with a model, on the command line."""

from pathlib import Path
from typing import final

import torch
from torch import nn

from transfuse.errors import GenerationError
from transfuse.generate.local import context_tokens
from transfuse.io.chat import prompt_format
from transfuse.io.models import LoadedModel, load_model
from transfuse.io.precision import Precision
from transfuse.train.adapters import load_adapter


@final
class Conversation:
    """A small greedy chat; a base model, which has no turns, is asked each question by itself."""

    def __init__(self, loaded: LoadedModel, model: nn.Module, max_new_tokens: int) -> None:
        self._loaded, self._model, self._max_new_tokens = loaded, model, max_new_tokens
        self._prompts = prompt_format(loaded.tokenizer, loaded.model.generation_config)
        self._turns: list[dict[str, str]] = []

    @torch.no_grad()
    def answer(self, question: str) -> str:
        """The model's answer, which the next question may refer to."""
        prompt_ids = self._prompt_ids(question)
        limit = context_tokens(self._loaded.model)
        room = self._max_new_tokens if limit is None else min(self._max_new_tokens, limit - len(prompt_ids))
        input_ids = torch.tensor([prompt_ids], device=self._loaded.device)
        with torch.autocast(
            self._loaded.device.type, torch.bfloat16, enabled=self._loaded.precision == torch.bfloat16
        ):
            output = self._model.generate(  # type: ignore[operator]
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=room,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=list(self._prompts.stop_ids),
                pad_token_id=self._prompts.pad_id,
            )
        reply = output[0, len(prompt_ids) :]
        text = str(self._loaded.tokenizer.decode(reply, skip_special_tokens=True)).strip()
        self._turns += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        return text

    def _prompt_ids(self, question: str) -> list[int]:
        if not self._turns or not self._prompts.is_chat:
            prompt_ids = self._prompts.encode_question(question)
        else:
            turns = [*self._turns, {"role": "user", "content": question}]
            tokenizer = self._loaded.tokenizer
            rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            prompt_ids = list(tokenizer(str(rendered), add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]
        limit = context_tokens(self._loaded.model)
        if limit is not None and len(prompt_ids) >= limit:
            raise GenerationError(
                f"the conversation has {len(prompt_ids)} tokens, the model's context holds {limit}; start a new one."
            )
        return prompt_ids


def open_conversation(
    model: str,
    adapter: Path | None,
    *,
    precision: Precision = "auto",
    max_new_tokens: int = 256,
    trust_remote_code: bool = False,
) -> Conversation:
    """Load a model, with its adapter where one is given, and begin a conversation.

    Args:
        model: a model reference.
        adapter: a PEFT folder.
        precision: the compute type.
        max_new_tokens: longest answer.
        trust_remote_code: whether Python code that comes with the model may run.

    Returns:
        The conversation.

    Raises:
        ModelError: the model or the adapter cannot be loaded.
    """
    loaded = load_model(model, precision=precision, trust_remote_code=trust_remote_code)
    adapted = load_adapter(loaded.model, adapter) if adapter else loaded.model
    return Conversation(loaded, adapted, max_new_tokens)
