"""Weights read a few at a time, counted, and refused where they are not whole."""

import json

import pytest
import torch
from safetensors.torch import save_file

from transfuse.errors import ModelError
from transfuse.transfer.layer_weights import WeightFiles

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    """Two shards: a bfloat16 matrix in one, a float16 and a float32 vector in the other."""
    save_file({"a.weight": torch.arange(12.0).view(4, 3).bfloat16()}, tmp_path / "one.safetensors")
    save_file(
        {"b.weight": torch.ones(2, dtype=torch.float16), "c.weight": torch.ones(5)},
        tmp_path / "two.safetensors",
    )
    weight_map = {"a.weight": "one.safetensors", "b.weight": "two.safetensors", "c.weight": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def test_whole_weights_and_rows_are_counted_as_stored(folder):
    files = WeightFiles(folder)
    found = files.read(["a.weight", "c.weight"], torch.float32, CPU)
    torch.testing.assert_close(found["a.weight"], torch.arange(12.0).view(4, 3))
    assert found["c.weight"].dtype == torch.float32
    assert files.bytes_read == 12 * 2 + 5 * 4
    rows = files.rows("a.weight", torch.tensor([3, 0, 3]), torch.float32)
    assert rows.tolist() == [[9, 10, 11], [0, 1, 2], [9, 10, 11]]
    assert files.bytes_read == 44 + 2 * 3 * 2  # a row given twice is read once
    assert files.read(["b.weight"], None, CPU)["b.weight"].dtype == torch.float16


def test_weights_are_found_under_aliases(folder):
    files = WeightFiles(folder, (("model.", ""), ("lm_head.", "c.")))
    assert files.has("model.a.weight")
    assert files.has("a.weight")
    assert not files.has("model.d.weight")
    assert list(files.read(["lm_head.weight"], None, CPU)) == ["lm_head.weight"]


def test_files_are_told_apart_by_size_and_time(folder):
    before = WeightFiles(folder).identity()
    assert [name for name, _, _ in before] == ["one.safetensors", "two.safetensors"]
    save_file({"a.weight": torch.zeros(5, 3)}, folder / "one.safetensors")
    assert WeightFiles(folder).identity()[0] != before[0]


def test_missing_damaged_and_quantised_weights_are_refused(folder):
    files = WeightFiles(folder)
    with pytest.raises(
        ModelError, match=r"expected the weight files to hold d\.weight.*begin with a\.weight"
    ):
        files.read(["d.weight"], None, CPU)
    save_file({"q": torch.ones(2, 2, dtype=torch.int8)}, folder / "one.safetensors")
    with pytest.raises(ModelError, match=r"one\.safetensors: expected q in BF16.*got I8"):
        WeightFiles(folder).read(["q"], None, CPU)
    whole = (folder / "two.safetensors").read_bytes()
    (folder / "two.safetensors").write_bytes(whole[:-3])
    with pytest.raises(ModelError, match=r"two\.safetensors: the weights are damaged or cut short"):
        WeightFiles(folder)
    (folder / "two.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names two\.safetensors, which is missing"):
        WeightFiles(folder)


def test_a_file_that_is_damaged_meanwhile_is_named(folder):
    files = WeightFiles(folder)
    (folder / "two.safetensors").write_bytes(b"nothing")
    for read in (
        lambda: files.read(["c.weight"], None, CPU),
        lambda: files.rows("c.weight", torch.tensor([0]), torch.float32),
    ):
        with pytest.raises(ModelError, match=r"two\.safetensors: the weights are damaged"):
            read()


def test_pickled_weights_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"expected weights in model\.safetensors"):
        WeightFiles(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is pickled and could run code"):
        WeightFiles(tmp_path)


def test_a_part_of_a_matrix_is_that_part_and_only_its_bytes_are_counted(tmp_path):
    weight = torch.arange(24.0).reshape(4, 6)
    save_file({"w.weight": weight}, tmp_path / "model.safetensors")
    files = WeightFiles(tmp_path)
    assert torch.equal(files.part("w.weight", slice(1, 3), slice(2, 6)), weight[1:3, 2:6])
    assert files.bytes_read == 2 * 4 * 4
    with pytest.raises(ModelError, match="other"):
        files.part("other.weight", slice(0, 1), slice(0, 1))
