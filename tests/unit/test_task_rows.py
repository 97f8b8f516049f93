"""Samples as rows: what is read, what is learned, what is left out."""

import pytest

from transfuse.io.chat import PromptFormat, prompt_format
from transfuse.train.batches import TrainingRow
from transfuse.train.task_rows import task_row, task_rows
from transfuse.types import Dropped, TaskItem, Turn

ASKED = Turn("user", "Which country won the cup?")


@pytest.fixture(scope="module", params=["chat", "base"])
def prompts(request, make_tokenizer) -> PromptFormat:
    return prompt_format(make_tokenizer() if request.param == "chat" else make_tokenizer(None))


def test_the_answer_is_learned_with_its_end_and_the_conversation_is_read(prompts):
    row = task_row(TaskItem("a", (ASKED,), "Spain"), prompts)
    prompt_ids, answer_ids = prompts.encode_chat([ASKED._asdict(), {"role": "assistant", "content": "Spain"}])
    assert row == TrainingRow(prompt_ids + answer_ids, len(prompt_ids))
    assert prompts.tokenizer.decode(row.token_ids[row.n_prompt : -1]) == "Spain"
    assert row.token_ids[-1] == prompts.end_id


def test_a_plain_text_is_learned_whole(prompts):
    text = "The team scored."
    assert task_row(TaskItem("t", (), text), prompts) == TrainingRow(prompts.encode_text(text, ends=True), 1)


def test_samples_that_are_too_long_are_dropped_by_their_id(prompts):
    items = [TaskItem("a", (ASKED,), "Spain"), TaskItem("b", (ASKED,), "Spain, for the first time")]
    lengths = [len(task_row(item, prompts).token_ids) for item in items]
    rows, dropped = task_rows(items, prompts, lengths[1] - 1)
    assert [len(row.token_ids) for row in rows] == lengths[:1]
    assert dropped == [Dropped("record", "b", f"{lengths[1]} tokens, more than {lengths[1] - 1}")]
    assert len(task_rows(items, prompts, None)[0]) == len(task_rows(items, prompts, lengths[1])[0]) == 2


def test_a_text_of_one_token_leaves_nothing_to_learn(make_tokenizer):
    tokenizer = make_tokenizer()
    prompts = prompt_format(tokenizer)
    tokenizer.eos_token = None
    rows, dropped = task_rows([TaskItem("t", (), "a")], prompts, None)
    assert (rows, dropped) == ([], [Dropped("record", "t", "1 token, which leaves nothing to predict")])
