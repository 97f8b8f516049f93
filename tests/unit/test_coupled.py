from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tiny_families import hidden_student, random_model, role_matrices, tiny_config
from transfuse.errors import ModelError
from transfuse.tensors.sub_matrices import Cut
from transfuse.transfer.architecture import Architecture, Role
from transfuse.transfer.coupled import Marginals, RoleSums, coupled_cuts, marginals_of
from transfuse.transfer.families import architecture_of


def sizes(**changes: int) -> Architecture:
    """A Llama of one group of heads; everything can be set."""
    whole = architecture_of(tiny_config("llama"))
    given = {
        "hidden": 4,
        "n_heads": 2,
        "n_kv_heads": 1,
        "head_dim": 4,
        "rotary_dim": 4,
        "n_neurons": 4,
        "vocab": 3,
    }
    return replace(whole, **{**given, **changes})


def sums_of(architecture: Architecture, **ones: dict[str, list[float]]) -> Marginals:
    """Zeros but for what is given, as `role={"rows": [...], "columns": [...]}`."""
    found: Marginals = {}
    for role in architecture.roles:
        rows, columns = architecture.shape(role)
        given = ones.get(role, {})
        found[role] = RoleSums(
            torch.tensor(given.get("rows", [0.0] * rows), dtype=torch.float64),
            torch.tensor(given.get("columns", [0.0] * columns), dtype=torch.float64),
        )
    return found


def test_marginals_are_row_and_column_sums_in_float64() -> None:
    architecture = sizes(n_neurons=3)
    scores = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [1e8, 1, 1, 1]])
    rows, columns = marginals_of(architecture, {"up": scores})["up"]
    assert rows.tolist() == [10, 26, 100000003]
    assert columns.tolist() == [100000006, 9, 11, 13]
    with pytest.raises(ModelError, match=r"down: expected scores of shape \(4, 3\) \(llama\), got \(3, 4\)"):
        marginals_of(architecture, {"down": scores})


def test_marginals_of_a_matrix_of_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transfuse.transfer.coupled.N_CELLS_AT_ONCE", 13)
    architecture = sizes(n_neurons=101)
    scores = torch.rand(101, 4)
    rows, columns = marginals_of(architecture, {"gate": scores})["gate"]
    torch.testing.assert_close(rows, scores.double().sum(1))
    torch.testing.assert_close(columns, scores.double().sum(0))


def test_residual_and_neurons_are_chosen_by_the_sum_over_all_that_they_cut() -> None:
    teacher, student = sizes(), sizes(hidden=2, n_neurons=2)
    first = sums_of(
        teacher,
        query={"columns": [0, 5, 0, 0]},
        output={"rows": [3, 0, 0, 0]},
        gate={"rows": [0, 3, 0, 4]},
        down={"columns": [5, 2, 0, 0]},
    )
    second = sums_of(teacher, down={"rows": [0, 0, 2, 0]}, up={"rows": [0, 0, 2, 1]})
    outside: Marginals = {
        "embedding": RoleSums(torch.zeros(3).double(), torch.tensor([0.0, 0, 2, 0]).double())
    }
    coupling = coupled_cuts(teacher, student, [first, second], outside)

    assert coupling.residual.tolist() == [1, 2]  # 3, 5, 2 + 2, 0
    assert [cuts["up"].rows.tolist() for cuts in coupling.layers] == [
        [0, 1],
        [2, 3],
    ]  # 5, 5, 0, 4 and 0, 0, 2, 1
    for cuts in coupling.layers:
        assert cuts["gate"].rows.tolist() == cuts["up"].rows.tolist() == cuts["down"].columns.tolist()
        assert cuts["query"].columns.tolist() == cuts["output"].rows.tolist() == [1, 2]
    for role in ("embedding", "head"):
        assert coupling.outside[role].rows.tolist() == [0, 1, 2]
        assert coupling.outside[role].columns.tolist() == [1, 2]


def test_pairs_that_turn_together_are_kept_together_and_groups_stay_whole() -> None:
    teacher = sizes(n_heads=4, n_kv_heads=2)
    student = sizes(n_heads=1, n_kv_heads=1, head_dim=2, rotary_dim=2)
    sums = sums_of(
        teacher,
        #       group 0: head 0   head 1      group 1: head 2   head 3
        query={"rows": [9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3, 0, 0]},
        key={"rows": [0, 0, 0, 0, 4, 0, 4, 0]},  # pair 0 of group 1: places 0 and 2
        value={"rows": [0, 0, 0, 0, 0, 1, 0, 2]},
    )
    cuts = coupled_cuts(teacher, student, [sums], {}).layers[0]
    # Group 0 has 9 in all, group 1 3 + 8 + 3 with its better head 3, of which pair 0 (8) is kept before pair 1 (3).
    assert cuts["query"].rows.tolist() == [12, 14]
    assert cuts["key"].rows.tolist() == [4, 6]
    assert cuts["value"].rows.tolist() == [5, 7]
    assert cuts["output"].columns.tolist() == [13, 15]


def test_unrotated_dimensions_are_chosen_among_themselves() -> None:
    teacher = sizes(n_heads=1, head_dim=8, rotary_dim=4)
    student = sizes(n_heads=1, head_dim=4, rotary_dim=2)
    sums = sums_of(teacher, query={"rows": [0, 1, 0, 1, 9, 0, 8, 7]})
    cuts = coupled_cuts(teacher, student, [sums], {}).layers[0]
    assert cuts["query"].rows.tolist() == cuts["key"].rows.tolist() == [1, 3, 4, 6]


def test_one_norm_for_all_heads_makes_them_keep_the_same_pairs() -> None:
    changes = {"n_heads": 2, "n_kv_heads": 2, "head_dim": 4, "rotary_dim": 4}
    with_norms = replace(architecture_of(tiny_config("qwen3")), hidden=4, n_neurons=4, vocab=3, **changes)
    student = replace(with_norms, head_dim=2, rotary_dim=2)
    rows = [1, 0, 0, 0, 0, 5, 0, 0]  # head 0 would keep pair 0, head 1 pair 1
    shared = coupled_cuts(with_norms, student, [sums_of(with_norms, key={"rows": rows})], {}).layers[0]
    assert shared["key"].rows.tolist() == [1, 3, 5, 7]
    plain = sizes(**changes)
    free = coupled_cuts(
        plain, sizes(**{**changes, "head_dim": 2, "rotary_dim": 2}), [sums_of(plain, key={"rows": rows})], {}
    )
    assert free.layers[0]["key"].rows.tolist() == [0, 2, 5, 7]


@pytest.mark.parametrize("variant", ["llama", "qwen3", "gpt_neox"])
def test_a_student_hidden_in_its_teacher_is_found(variant: str) -> None:
    teacher, student = (architecture_of(tiny_config(variant, is_large)) for is_large in (True, False))
    weights = random_model(tiny_config(variant)).state_dict()
    hiding = hidden_student(student, weights, teacher, [0, 2])

    def marginals(layer: int) -> Marginals:
        return marginals_of(
            teacher, {role: part.abs() for role, part in role_matrices(teacher, hiding, layer).items()}
        )

    outside = marginals_of(teacher, {"embedding": hiding[f"{teacher.embedding.name}.weight"].abs()})
    coupling = coupled_cuts(teacher, student, [marginals(0), marginals(2)], outside)
    assert coupling.residual.tolist() == sorted(set(coupling.residual.tolist()))
    for number, layer in enumerate((0, 2)):
        ours, theirs = role_matrices(teacher, hiding, layer), role_matrices(student, weights, number)
        for role, cut in coupling.layers[number].items():
            assert_same_entries(ours[role], cut, theirs[role])
    assert set(coupling.layers[0]) == set(student.roles) - {"embedding", "head"}


def assert_same_entries(whole: Tensor, cut: Cut, part: Tensor) -> None:
    found = whole[cut.rows[:, None], cut.columns]
    torch.testing.assert_close(found.flatten().sort().values, part.flatten().sort().values)


def test_roles_without_scores_count_nothing() -> None:
    teacher, student = sizes(), sizes(n_neurons=1)
    only: dict[Role, RoleSums] = {
        "up": RoleSums(torch.tensor([0.0, 0, 7, 0]).double(), torch.zeros(4).double())
    }
    cuts = coupled_cuts(teacher, student, [only], {}).layers[0]
    assert cuts["down"].columns.tolist() == [2]
    assert cuts["query"].rows.tolist() == list(range(8))


def test_a_student_that_is_not_contained_in_its_teacher_is_refused() -> None:
    teacher = sizes(n_heads=4, n_kv_heads=4)
    student = sizes(n_heads=2, n_kv_heads=1, n_neurons=9)
    with pytest.raises(ModelError) as caught:
        coupled_cuts(teacher, student, [sums_of(teacher)], {})
    assert (
        "the teacher has 4 neurons, the student 9; 1 query heads for each key and value head, the student 2"
        in str(caught.value)
    )
