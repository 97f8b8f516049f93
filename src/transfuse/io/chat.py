"""Questions and texts as token ids, in the form a model was trained to read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase

from transfuse.errors import ModelError

BASE_QUESTION = "Question: {question}\nAnswer:"
"""How a base model, which has no chat template, is asked."""

CONTEXT = "Context:\n{context}\n\nAnswer the question from the context above.\n"
"""What precedes the question where a context is given."""

END_OF_TURN = (
    "<|im_end|>",
    "<end_of_turn>",
    "<|eot_id|>",
    "<|end|>",
    "<|end_of_turn|>",
    "<|end_of_role|>",
    "<|return|>",
    "<turn|>",
)
"""Tokens that close a turn in widely used chat templates."""

PROBE = "Zebra"
"""An answer that no template writes by itself."""


@dataclass(frozen=True, eq=False)
class PromptFormat:
    """How one tokenizer's model is asked and answered; made by `prompt_format`."""

    tokenizer: PreTrainedTokenizerBase
    is_chat: bool
    """Whether the tokenizer's chat template is used, or the plain `Question: ... Answer:` form."""
    end_id: int
    """The token that closes an answer."""
    stop_ids: tuple[int, ...]
    """Tokens at which generation stops."""
    pad_id: int
    """Fills up a batch; the end-of-sequence token where the tokenizer has no padding token."""
    bos_ids: tuple[int, ...]
    """What the tokenizer puts before plain text: its beginning-of-sequence token, or nothing."""

    def encode_question(
        self, question: str, *, context: str | None = None, system: str | None = None
    ) -> list[int]:
        """Token ids of the prompt, up to where the answer begins.

        Args:
            question: the question alone.
            context: text to answer from, put before the question.
            system: what the system's turn says; put before everything else where the model knows no such turn.
                None leaves the template's own default.

        Returns:
            For a chat model exactly what its `apply_chat_template` gives with the generation prompt.

        Raises:
            ModelError: the chat template cannot render a single question.
        """
        return self._prompt_ids(self._prompt_text(question, context, system))

    def encode_pair(
        self, question: str, answer: str, *, context: str | None = None
    ) -> tuple[list[int], list[int]]:
        """Token ids of a question and of its answer, for training.

        Both together are the template's own tokens of the whole conversation, without the white space some
        templates write after the last turn. Where that rendering does not begin with the prompt (templates
        that open or drop a thinking block), the answer follows the prompt directly.

        Args:
            question: the question alone.
            answer: the answer alone.
            context: text to answer from, put before the question.

        Returns:
            The prompt, equal to `encode_question`, and the answer including the token that ends it.

        Raises:
            ModelError: the chat template cannot render a question with its answer.
        """
        prompt = self._prompt_text(question, context)
        prompt_ids = self._prompt_ids(prompt)
        if self.is_chat:
            whole = _render(self.tokenizer, _conversation(question, answer, context))
            tail = whole[len(prompt) :] if whole.startswith(prompt) else answer
        else:
            tail = f" {answer.strip()}\n"
        return prompt_ids, self._closed(self._continuation(prompt, prompt_ids, tail))

    def encode_messages(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the assistant's next turn begins.

        Args:
            messages: turns with "role" and "content"; the last one is not the assistant's.

        Returns:
            The prompt that `encode_chat` gives for the same turns.

        Raises:
            ModelError: the chat template cannot render these turns.
        """
        return self._prompt_ids(self._turns_text(messages))

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[int]]:
        """Token ids of a conversation up to its last turn, and of that turn, for training.

        Args:
            messages: turns with "role" and "content"; the last one is the assistant's.

        Returns:
            The prompt, and the last turn including the token that ends it. A base model reads the turns as
            paragraphs.

        Raises:
            ModelError: the chat template cannot render these turns.
        """
        *before, last = (dict(turn) for turn in messages)
        prompt = self._turns_text(before)
        if not self.is_chat:
            tail = last["content"].strip()
        else:
            whole = _render(self.tokenizer, [*before, last])
            tail = whole[len(prompt) :] if whole.startswith(prompt) else last["content"]
        prompt_ids = self._prompt_ids(prompt)
        return prompt_ids, self._closed(self._continuation(prompt, prompt_ids, tail))

    def n_frame_tokens(self) -> int:
        """How many tokens every prompt begins with, before its question."""
        pairs = zip(self.encode_question("Why?"), self.encode_question(PROBE), strict=False)
        return next((n for n, (one, other) in enumerate(pairs) if one != other), 0)

    def encode_text(self, text: str, *, ends: bool = False) -> list[int]:
        """Token ids of plain text for language modelling.

        Args:
            text: not rendered by any template.
            ends: whether to close it with the end-of-sequence token.

        Returns:
            Ids that begin with the beginning-of-sequence token where the tokenizer adds one.
        """
        eos_id = _as_id(self.tokenizer.eos_token_id) if ends else None
        end = [] if eos_id is None else [eos_id]
        return [*self.bos_ids, *_plain_ids(self.tokenizer, text), *end]

    def _turns_text(self, turns: Sequence[Mapping[str, str]]) -> str:
        if not self.is_chat:
            return "".join(f"{turn['content'].strip()}\n\n" for turn in turns)
        return _render(self.tokenizer, [dict(turn) for turn in turns], awaits_answer=True)

    def _prompt_text(self, question: str, context: str | None, system: str | None = None) -> str:
        lead = "" if context is None else CONTEXT.format(context=context)
        if not self.is_chat:
            return _instruction(system) + lead + BASE_QUESTION.format(question=question)
        turns = _conversation(question, None, context)
        if system is not None:
            with_system = self._with_system_turn(turns, system)
            if with_system is not None:
                return with_system
            turns = _conversation(_instruction(system) + lead + question, None, None)
        return _render(self.tokenizer, turns, awaits_answer=True)

    def _with_system_turn(self, turns: list[dict[str, str]], system: str) -> str | None:
        """The prompt with a system's turn, or None where the template refuses one or leaves it out."""
        try:
            text = _render(
                self.tokenizer, [{"role": "system", "content": system}, *turns], awaits_answer=True
            )
        except ModelError:
            return None
        return text if system.strip() in text else None

    def _prompt_ids(self, prompt: str) -> list[int]:
        # A template writes its own beginning-of-sequence token; plain text needs the tokenizer's.
        lead = [] if self.is_chat else list(self.bos_ids)
        return lead + _plain_ids(self.tokenizer, prompt)

    def _continuation(self, prompt: str, prompt_ids: list[int], tail: str) -> list[int]:
        whole_ids = self._prompt_ids(prompt + tail)
        if whole_ids[: len(prompt_ids)] == prompt_ids:
            return whole_ids[len(prompt_ids) :]
        # A merge reaches over the boundary; at inference the prompt is cut here, so training is as well.
        return _plain_ids(self.tokenizer, tail)

    def _closed(self, answer_ids: list[int]) -> list[int]:
        if not self.is_chat:
            return [*answer_ids, self.end_id]
        for position in range(len(answer_ids) - 1, -1, -1):
            if answer_ids[position] == self.end_id:
                # What a template writes after the turn (a line break) is never generated.
                return answer_ids[: position + 1]
        return [*answer_ids, self.end_id]


def prompt_format(
    tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None = None
) -> PromptFormat:
    """How this tokenizer's model is asked: by its chat template, or plainly where it has none.

    Args:
        tokenizer: left as it is; no token is added.
        generation_config: the model's; names further tokens at which generation stops.

    Returns:
        The format; the template's default system prompt stays, so an adapter acts the same in transformers.

    Raises:
        ModelError: the tokenizer has no token that ends an answer, or its template cannot render a question.
    """
    is_chat = bool(tokenizer.chat_template)
    eos_id = _as_id(tokenizer.eos_token_id)
    end_id = _turn_end_id(tokenizer) if is_chat else eos_id
    if end_id is None:
        raise ModelError(
            f"tokenizer of {tokenizer.name_or_path!r}: expected an end-of-sequence or end-of-turn token, "
            "found none; set eos_token in its tokenizer_config.json."
        )
    configured = generation_config.eos_token_id if generation_config is not None else None
    further = configured if isinstance(configured, list) else [configured]
    newline = [] if is_chat else _newline_ids(tokenizer)
    candidates = [eos_id, end_id, *further, *_known_end_ids(tokenizer), *newline]
    pad_id = _as_id(tokenizer.pad_token_id)
    pad_id = eos_id if pad_id is None else pad_id
    return PromptFormat(
        tokenizer=tokenizer,
        is_chat=is_chat,
        end_id=end_id,
        stop_ids=tuple(dict.fromkeys(token_id for token_id in candidates if token_id is not None)),
        pad_id=end_id if pad_id is None else pad_id,
        bos_ids=bos_ids(tokenizer),
    )


def _instruction(system: str | None) -> str:
    return "" if system is None else f"{system.strip()}\n\n"


def _conversation(question: str, answer: str | None, context: str | None) -> list[dict[str, str]]:
    lead = "" if context is None else CONTEXT.format(context=context)
    turns = [{"role": "user", "content": lead + question}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def _render(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, awaits_answer: bool = False
) -> str:
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=awaits_answer)
    except (TemplateError, ValueError) as err:
        raise ModelError(
            f"chat template of {tokenizer.name_or_path!r}: cannot render a question: {err}; "
            "correct chat_template.jinja, or remove it to use the model as a base model."
        ) from err
    return str(text)


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # verbose=False: the length warning belongs to whoever packs the ids, not to each document.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What a tokenizer puts before plain text: its beginning-of-sequence token, or nothing."""
    bos = _as_id(tokenizer.bos_token_id)
    first = list(tokenizer("a")["input_ids"])[:1]
    return (bos,) if bos is not None and first == [bos] else ()


def _newline_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    # Base models end an answer with a line break; kept only where one token means exactly that.
    before, after = _plain_ids(tokenizer, "a"), _plain_ids(tokenizer, "a\n")
    return after[len(before) :] if after[: len(before)] == before and len(after) == len(before) + 1 else []


def _known_end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in END_OF_TURN if token in vocabulary]


def _turn_end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token the template writes after an answer; the end-of-sequence token where it writes none."""
    whole = _render(tokenizer, _conversation("Which?", PROBE, None))
    eos_id = _as_id(tokenizer.eos_token_id)
    ends = {*_known_end_ids(tokenizer), eos_id, *_control_ids(tokenizer)}
    after_answer = _plain_ids(tokenizer, whole[whole.rfind(PROBE) :])
    return next((token_id for token_id in after_answer if token_id in ends), eos_id)


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {token_id for token_id in tokenizer.all_special_ids if token_id != tokenizer.bos_token_id}


def _as_id(token_id: object) -> int | None:
    return token_id if isinstance(token_id, int) else None
