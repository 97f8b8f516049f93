from collections.abc import Callable
from pathlib import Path

import pytest

from transfuse.errors import ModelError
from transfuse.io.configs import load_config, weights_folder
from transfuse.io.memory import available_bytes, peak_gib


def test_a_folder_with_nothing_but_its_configuration_is_enough(
    make_model_folder: Callable, tmp_path: Path
) -> None:
    whole = make_model_folder("whole", hidden_size=24)
    (tmp_path / "config.json").write_bytes((whole / "config.json").read_bytes())
    assert load_config(str(tmp_path)).hidden_size == 24
    with pytest.raises(ModelError, match=r"expected weights in model\.safetensors"):
        weights_folder(str(tmp_path))
    assert weights_folder(str(whole)) == whole


def test_no_configuration_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_config(str(tmp_path))


def test_a_single_file_cannot_be_read_layer_by_layer() -> None:
    with pytest.raises(ModelError, match="expected a folder of safetensors files to read layer by layer"):
        weights_folder("smollm2-135m")


def test_memory_is_told_in_plausible_numbers() -> None:
    free = available_bytes()
    assert free is not None
    assert 2**24 < free < 2**50
    assert 0.01 < peak_gib() < 10_000
