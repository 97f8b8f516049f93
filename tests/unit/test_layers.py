import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfuse.errors import ModelError, RecipeError
from transfuse.transfer.layers import CHOICES, LayerChoice, choose_layers

SCORES = [2.0, 9.0, 4.0, 9.0, 1.0, 4.0]


@pytest.mark.parametrize(
    ("choice", "n_student", "expected"),
    [
        ("sensitive", 3, [1, 2, 3]),  # of the two fours the lower layer
        ("proportional", 3, [0, 3, 5]),  # 0, 2.5, 5
        ("proportional", 4, [0, 2, 3, 5]),  # 0, 1.67, 3.33, 5
        ("proportional", 1, [2]),
        ("first", 2, [0, 1]),
        ("last", 2, [4, 5]),
        ([5, 0], 2, [5, 0]),
    ],
)
def test_layers_by_hand(choice: LayerChoice, n_student: int, expected: list[int]) -> None:
    assert choose_layers(choice, SCORES, n_student, torch.Generator()) == expected


@settings(max_examples=30, deadline=None)
@given(data=st.data(), choice=st.sampled_from(sorted(CHOICES)), n_teacher=st.integers(1, 90))
def test_named_choices_give_distinct_ascending_layers(data: st.DataObject, choice, n_teacher: int) -> None:
    n_student = data.draw(st.integers(1, n_teacher))
    scores = data.draw(st.lists(st.floats(0, 1e9), min_size=n_teacher, max_size=n_teacher))
    chosen = choose_layers(choice, scores, n_student, torch.Generator().manual_seed(1))
    assert len(chosen) == n_student
    assert chosen == sorted(set(chosen))
    assert chosen[0] >= 0
    assert chosen[-1] < n_teacher
    if choice == "proportional" and n_student > 1:
        assert (chosen[0], chosen[-1]) == (0, n_teacher - 1)


def test_drawn_layers_depend_on_the_generator_only() -> None:
    def draw(seed: int) -> list[int]:
        return choose_layers("random", [0.0] * 40, 12, torch.Generator().manual_seed(seed))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_a_student_deeper_than_its_teacher_is_refused() -> None:
    with pytest.raises(ModelError, match="the teacher has 6, the student 7"):
        choose_layers("sensitive", SCORES, 7, torch.Generator())


@pytest.mark.parametrize("wrong", [[0], [0, 0], [0, 6], [-1, 2]])
def test_a_list_that_does_not_name_a_layer_for_each_of_the_students_is_refused(wrong: list[int]) -> None:
    with pytest.raises(RecipeError, match=r"expected 2 different numbers in 0\.\.5 .*, got \["):
        choose_layers(wrong, SCORES, 2, torch.Generator())
