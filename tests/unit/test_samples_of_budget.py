"""Of a training for a number of tokens: the samples that it has time to read."""

import pytest

from transfuse.io.chat import PromptFormat, prompt_format
from transfuse.recipes.transfer_lessons import samples_of_budget
from transfuse.train.task_rows import task_row
from transfuse.types import TaskItem, Turn

ITEMS = [
    TaskItem(str(n), (Turn("user", "Which country won the cup?"),), "Spain " * (1 + n % 5)) for n in range(40)
]


@pytest.fixture(scope="module")
def prompts(make_tokenizer) -> PromptFormat:
    return prompt_format(make_tokenizer())


def lengths(items, prompts):
    return [len(task_row(item, prompts).token_ids) for item in items]


@pytest.mark.parametrize("n_tokens", [1, 100, 333])
def test_they_hold_the_tokens_and_none_is_spare(prompts, n_tokens):
    kept = samples_of_budget(ITEMS, prompts, None, n_tokens, 17)
    assert sum(lengths(kept, prompts)) >= n_tokens
    assert sum(lengths(kept, prompts)) - max(lengths(kept, prompts)) < n_tokens
    assert [int(item.id) for item in kept] == sorted(int(item.id) for item in kept)


def test_they_are_drawn_from_the_whole_file_by_the_seed(prompts):
    kept = samples_of_budget(ITEMS, prompts, None, 100, 17)
    assert kept == samples_of_budget(ITEMS, prompts, None, 100, 17)
    assert kept != samples_of_budget(ITEMS, prompts, None, 100, 18)
    assert kept != ITEMS[: len(kept)]


def test_all_are_taken_without_a_number_and_where_they_do_not_suffice(prompts):
    n_all = sum(lengths(ITEMS, prompts))
    assert samples_of_budget(ITEMS, prompts, None, None, 17) == ITEMS
    assert samples_of_budget(ITEMS, prompts, None, n_all + 1, 17) == ITEMS
    assert len(samples_of_budget(ITEMS, prompts, None, n_all // 2, 17)) < len(ITEMS)


def test_what_is_too_long_to_be_learned_counts_for_nothing(prompts):
    limit = min(lengths(ITEMS, prompts))
    kept = samples_of_budget(ITEMS, prompts, limit, 3 * limit, 17)
    assert sum(length <= limit for length in lengths(kept, prompts)) == 3
