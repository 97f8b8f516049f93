"""What the model is trained on: answers to questions, and perhaps facts and general text beside them."""

import random
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, NonNegativeInt, model_validator

from transfuse.errors import DataError
from transfuse.io.chat import PromptFormat
from transfuse.io.jsonl import read_jsonl
from transfuse.io.texts import read_texts
from transfuse.train.batches import TrainingRow
from transfuse.types import Dropped, Fact, QAPair, StrictModel

_Drawn = TypeVar("_Drawn")


class RecordSettings(StrictModel):
    """Training records beside the question-answer pairs."""

    fact_texts: NonNegativeInt = 0
    """Texts of each trained fact for language modelling: its sentence and its paraphrases in turn."""
    fact_answers: NonNegativeInt = 0
    """Training questions of each trained fact that are asked once more with the whole fact as the answer."""
    joint_questions: NonNegativeInt = 0
    """Pairs of training questions of one trained fact that are asked together and answered together."""
    question_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight of the loss on the question's tokens, an answer's weighing 1; 0 learns answers only (the paper)."""
    replay_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the records that is general text, against forgetting."""
    replay_texts: Path | None = None
    """JSONL of `{"text"}` for replay; none means the texts that come with the package."""
    chat_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the records that is general chat, against forgetting how to talk; needs `chats`."""
    chats: Path | None = None
    """JSONL of `{"messages": [{"role", "content"}, ...]}` that end with an assistant's turn."""

    @model_validator(mode="after")
    def _chats_are_there(self) -> "RecordSettings":
        if self.chat_share and self.chats is None:
            raise ValueError("records.chat_share is set, but records.chats names no file of conversations")
        if self.chat_share + self.replay_share >= 1:
            raise ValueError("records.chat_share and records.replay_share leave no room for the document")
        return self


FACT_INSTRUCTION = "Answer with a full sentence: {question}"
JOINT_QUESTION = "{first} And: {second}"
JOINT_ANSWER = "{first}; {second}"


def training_rows(
    pairs: Sequence[QAPair],
    facts: Sequence[Fact],
    settings: RecordSettings,
    prompts: PromptFormat,
    *,
    max_length_tokens: int | None,
    seed: int,
    n_further: int = 0,
) -> tuple[list[TrainingRow], list[Dropped]]:
    """Rows of tokens for the training loop, the loss on answers and texts only.

    Args:
        pairs: training pairs; none of a kept-out source.
        facts: all facts; only those that `pairs` refer to are used.
        settings: which further records to make.
        prompts: the model's own prompt format.
        max_length_tokens: rows that are longer are dropped; None keeps all.
        seed: of the choice of pairs to join and of what is replayed.
        n_further: records made elsewhere, beside which the replayed ones are to have their share.

    Returns:
        The rows, and those dropped as too long.
    """
    rng = random.Random(seed)  # noqa: S311 - no secret
    trained = {pair.source for pair in pairs if pair.basis == "fact"}
    known = {fact.id: fact for fact in facts if fact.id in trained}
    asked = [(pair.question, pair.answer) for pair in pairs]
    asked += _fact_answers(pairs, known, settings.fact_answers, rng)
    asked += _joint_questions(pairs, settings.joint_questions, rng)
    texts = [text for fact in known.values() for text in _fact_texts(fact, settings.fact_texts)]
    n_own = len(asked) + len(texts) + n_further
    texts += _replay(settings, n_own, rng)
    chats = _drawn_chats(settings, n_own, rng)
    rows: list[TrainingRow] = []
    dropped: list[Dropped] = []
    made = chain(_rows(asked, texts, prompts, settings.question_weight), _chat_rows(chats, prompts))
    for what, row in made:
        if max_length_tokens is not None and len(row.token_ids) > max_length_tokens:
            reason = f"{len(row.token_ids)} tokens, more than {max_length_tokens}"
            dropped.append(Dropped("record", what[:80], reason))
        else:
            rows.append(row)
    return rows, dropped


def _rows(
    asked: Iterable[tuple[str, str]], texts: Iterable[str], prompts: PromptFormat, question_weight: float
) -> Iterable[tuple[str, TrainingRow]]:
    # The question's first token is never learned: rows share the computation of what stands before it.
    n_read = prompts.n_frame_tokens() + 1
    for question, answer in asked:
        prompt_ids, answer_ids = prompts.encode_pair(question, answer)
        n_question = len(prompt_ids) - n_read if question_weight else 0
        row = TrainingRow(prompt_ids + answer_ids, len(prompt_ids) - n_question, n_question, question_weight)
        yield question, row
    for text in texts:
        token_ids = prompts.encode_text(text, ends=True)
        if len(token_ids) > 1:
            yield text, TrainingRow(token_ids, 1)


def _chat_rows(
    chats: Iterable[list[dict[str, str]]], prompts: PromptFormat
) -> Iterable[tuple[str, TrainingRow]]:
    for messages in chats:
        prompt_ids, answer_ids = prompts.encode_chat(messages)
        yield messages[-1]["content"], TrainingRow(prompt_ids + answer_ids, len(prompt_ids))


def _fact_texts(fact: Fact, n_texts: int) -> list[str]:
    wordings = (fact.fact, *fact.paraphrases)
    return [wordings[i % len(wordings)] for i in range(n_texts)]


def _by_source(pairs: Sequence[QAPair]) -> dict[str, list[QAPair]]:
    grouped: dict[str, list[QAPair]] = {}
    for pair in pairs:
        grouped.setdefault(pair.source, []).append(pair)
    return grouped


def _fact_answers(
    pairs: Sequence[QAPair], facts: dict[str, Fact], n_each: int, rng: random.Random
) -> list[tuple[str, str]]:
    if not n_each:
        return []
    return [
        (FACT_INSTRUCTION.format(question=pair.question), facts[source].fact)
        for source, members in _by_source(pairs).items()
        if source in facts
        for pair in rng.sample(members, min(n_each, len(members)))
    ]


def _joint_questions(pairs: Sequence[QAPair], n_each: int, rng: random.Random) -> list[tuple[str, str]]:
    """Two questions of one fact with different answers, asked together."""
    joint: list[tuple[str, str]] = []
    if not n_each:
        return joint
    for members in _by_source(pairs).values():
        couples = [(a, b) for a in members for b in members if a.answer.casefold() != b.answer.casefold()]
        joint += [
            (
                JOINT_QUESTION.format(first=a.question, second=b.question),
                JOINT_ANSWER.format(first=a.answer, second=b.answer),
            )
            for a, b in rng.sample(couples, min(n_each, len(couples)))
        ]
    return joint


def _replay(settings: RecordSettings, n_records: int, rng: random.Random) -> list[str]:
    if settings.replay_share == 0:
        return []
    if settings.replay_texts is None:
        with resources.as_file(resources.files("transfuse.train") / "replay_text.jsonl") as bundled:
            pool = read_texts(bundled)
    else:
        pool = read_texts(settings.replay_texts)
    return _drawn(pool, _n_shared(settings, n_records, settings.replay_share), rng)


def _drawn_chats(settings: RecordSettings, n_records: int, rng: random.Random) -> list[list[dict[str, str]]]:
    if settings.chats is None or settings.chat_share == 0:
        return []
    return _drawn(load_chats(settings.chats), _n_shared(settings, n_records, settings.chat_share), rng)


def _n_shared(settings: RecordSettings, n_records: int, share: float) -> int:
    """How many records make `share` of all, beside `n_records` of the document's own."""
    return round(n_records * share / (1 - settings.replay_share - settings.chat_share))


def _drawn(pool: list[_Drawn], n_drawn: int, rng: random.Random) -> list[_Drawn]:
    whole, rest = divmod(n_drawn, len(pool))
    return pool * whole + rng.sample(pool, rest)


def load_chats(path: Path) -> list[list[dict[str, str]]]:
    """Conversations for replay.

    Args:
        path: JSONL of `{"messages": [{"role", "content"}, ...]}`.

    Returns:
        The turns of each; at least one conversation.

    Raises:
        DataError: a line holds no conversation that ends with an assistant's turn, or the file holds none.
    """
    chats: list[list[dict[str, str]]] = []
    for line in read_jsonl(path):
        messages: Any = line.value.get("messages")
        if not _is_chat(messages):
            raise DataError(
                f'{line.where}: expected "messages", a list of {{"role", "content"}} that ends with an '
                f"assistant's turn, got {str(messages)[:80]!r}; mend or delete the line."
            )
        chats.append([{"role": turn["role"], "content": turn["content"]} for turn in messages])
    if not chats:
        raise DataError(f"{path}: expected conversations, one a line; the file holds none.")
    return chats


def _is_chat(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and len(messages) >= 2
        and all(
            isinstance(turn, dict) and all(isinstance(turn.get(name), str) for name in ("role", "content"))
            for turn in messages
        )
        and messages[-1]["role"] == "assistant"
    )
