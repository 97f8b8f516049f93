"""Run folders: finished stages are used again, everything else is made anew, and nobody's files are lost."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from transfuse.errors import RunFolderError
from transfuse.io.run_folder import RECIPE_FILE, StageRecord, key_digest, open_run

RECIPE = {"kind": "inject", "seed": 1, "train": {"n_epochs": 4, "lora": {"rank": 16}}}


def work(run, key: dict, *, name: str = "base", version: int = 1, outputs: tuple[Path, ...] = ()) -> bool:
    """Enter a stage and write a file where it is to be done; whether it was done already."""
    with run.stage(name, key, version=version, outputs=outputs) as stage:
        if not stage.is_done:
            (stage.folder / "result.txt").write_text(str(key))
        return stage.is_done


def test_a_stage_of_the_same_key_is_used_again(tmp_path):
    with open_run(tmp_path / "run", RECIPE) as run:
        assert not work(run, {"a": 1, "b": 2})
        (seconds,) = [stage.seconds for stage in run.stages]
    with open_run(tmp_path / "run", RECIPE) as run:
        assert work(run, {"b": 2, "a": 1})
        assert run.stages == [StageRecord("base", seconds, True)]
    assert (tmp_path / "run" / "base" / "result.txt").read_text() == "{'a': 1, 'b': 2}"


@pytest.mark.parametrize(("key", "version"), [({"a": 2}, 1), ({"a": 1}, 2), ({}, 1), ({"a": None}, 1)])
def test_a_changed_key_or_version_does_the_stage_again(tmp_path, key, version):
    with open_run(tmp_path, RECIPE) as run:
        work(run, {"a": 1})
        (run.path / "base" / "left.txt").write_text("of the old key")
        assert not work(run, key, version=version)
        assert [stage.reused for stage in run.stages] == [False, False]
        assert not (run.path / "base" / "left.txt").exists()
        assert (run.path / "base" / "result.txt").read_text() == str(key)
        assert work(run, key, version=version)


def test_stages_of_different_names_have_different_keys(tmp_path):
    with (
        open_run(tmp_path, RECIPE) as run,
        run.stage("one", {"a": 1}, version=1) as one,
        run.stage("two", {"a": 1}, version=1) as two,
    ):
        assert one.key != two.key
        assert one.folder != two.folder


def kill_in_stage(run, key: dict, outputs: tuple[Path, ...] = ()) -> None:
    def work_until_killed() -> None:
        with run.stage("base", key, version=1, outputs=outputs) as stage:
            (stage.folder / "checkpoint.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_until_killed()


def test_a_killed_stage_goes_on_from_its_own_files(tmp_path):
    with open_run(tmp_path, RECIPE) as run:
        kill_in_stage(run, {"a": 1})
        assert run.stages == []
    with open_run(tmp_path, RECIPE) as run, run.stage("base", {"a": 1}, version=1) as stage:
        assert not stage.is_done
        assert (stage.folder / "checkpoint.txt").read_text() == "half"


def test_a_killed_stage_of_another_key_is_emptied(tmp_path):
    with open_run(tmp_path, RECIPE) as run:
        kill_in_stage(run, {"a": 1})
        with run.stage("base", {"a": 2}, version=1) as stage:
            assert not stage.is_done
            assert not (stage.folder / "checkpoint.txt").exists()


def test_a_stage_done_again_and_killed_does_not_count_as_done(tmp_path):
    with open_run(tmp_path, RECIPE) as run:
        work(run, {"a": 1})
        kill_in_stage(run, {"a": 2})
        assert not work(run, {"a": 1})


def test_a_missing_output_does_the_stage_again_from_its_files(tmp_path):
    output = tmp_path / "adapter"
    with open_run(tmp_path, RECIPE) as run:
        work(run, {"a": 1}, outputs=(output,))
        (run.path / "base" / "checkpoint.txt").write_text("kept")
        assert not work(run, {"a": 1}, outputs=(output,))
        assert (run.path / "base" / "checkpoint.txt").exists()
        output.mkdir()
        assert work(run, {"a": 1}, outputs=(output,))


def test_a_stage_killed_after_its_output_was_made_does_not_count_as_done(tmp_path):
    output = tmp_path / "adapter"
    with open_run(tmp_path, RECIPE) as run:
        work(run, {"a": 1}, outputs=(output,))
        kill_in_stage(run, {"a": 1}, outputs=(output,))
        output.mkdir()  # half of it
        assert not work(run, {"a": 1}, outputs=(output,))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 3}', "\udcff"])
def test_a_damaged_done_file_does_not_count(tmp_path, damage):
    with open_run(tmp_path, RECIPE) as run:
        work(run, {"a": 1})
        (run.path / "base" / "done.json").write_text(damage, encoding="utf-8", errors="surrogateescape")
        assert not work(run, {"a": 1})


def test_the_recipe_lies_in_the_folder(tmp_path):
    with open_run(tmp_path / "new" / "run", {**RECIPE, "model": "größe"}):
        pass
    text = (tmp_path / "new" / "run" / RECIPE_FILE).read_text(encoding="utf-8")
    assert yaml.safe_load(text) == {**RECIPE, "model": "größe"}
    assert "größe" in text


OTHER = {"kind": "inject", "seed": 2, "train": {"n_epochs": 4, "lora": {"rank": 8}}, "scale": 5}


def test_a_different_recipe_is_refused_with_what_differs(tmp_path):
    with open_run(tmp_path, RECIPE):
        pass
    with pytest.raises(RunFolderError, match="holds a different run") as caught, open_run(tmp_path, OTHER):
        pass
    message = str(caught.value)
    assert "seed: 1 there, 2 now" in message
    assert "train.lora.rank: 16 there, 8 now" in message
    assert "scale: None there, 5 now" in message
    assert "n_epochs" not in message
    assert "--overwrite" in message
    assert yaml.safe_load((tmp_path / RECIPE_FILE).read_text()) == RECIPE


def test_overwrite_takes_the_folder_and_keeps_unaffected_stages(tmp_path):
    with open_run(tmp_path, RECIPE) as run:
        work(run, {"a": 1})
        work(run, {"rank": 16}, name="training")
    with open_run(tmp_path, OTHER, overwrite=True) as run:
        assert work(run, {"a": 1})
        assert not work(run, {"rank": 8}, name="training")
    assert yaml.safe_load((tmp_path / RECIPE_FILE).read_text()) == OTHER


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_left_alone(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with (
        pytest.raises(RunFolderError, match=r"new or empty folder.*found \['thesis\.tex'\]"),
        open_run(tmp_path, RECIPE, overwrite=overwrite),
    ):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_hidden_files_are_no_strangers(tmp_path):
    (tmp_path / ".DS_Store").write_text("")
    with open_run(tmp_path, RECIPE):
        pass


def test_a_damaged_recipe_file_needs_overwrite(tmp_path):
    (tmp_path / RECIPE_FILE).write_text("a: [")
    with pytest.raises(RunFolderError, match="cannot be read"), open_run(tmp_path, RECIPE):
        pass
    with open_run(tmp_path, RECIPE, overwrite=True):
        pass


def test_a_file_in_the_way_is_said(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="is a file, not a folder"), open_run(tmp_path / "run", RECIPE):
        pass


def test_a_folder_is_let_go_at_the_end(tmp_path):
    for _ in range(2):
        with open_run(tmp_path, RECIPE):
            pass
    with (
        open_run(tmp_path, RECIPE),
        pytest.raises(RunFolderError, match="another transfuse process is at work"),
        open_run(tmp_path, RECIPE),
    ):
        pass


HOLD = """
import sys, pathlib
from transfuse.io.run_folder import open_run
with open_run(pathlib.Path(sys.argv[1]), {"seed": 1}):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_meet_and_a_killed_one_holds_nothing(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RunFolderError, match="another transfuse process is at work"),
            open_run(tmp_path, {"seed": 1}),
        ):
            pass
        holder.kill()
        holder.wait()
    with open_run(tmp_path, {"seed": 1}) as run:
        assert run.path == tmp_path


def test_key_digest_knows_values_and_not_their_order():
    assert key_digest({"a": 1, "b": [1, 2]}) == key_digest({"b": [1, 2], "a": 1})
    different = [{"a": 1}, {"a": "1"}, {"a": 1.5}, {"a": [1]}, {"a": True}, {"b": 1}]
    assert len({key_digest(key) for key in different}) == len(different)
    assert len(key_digest({})) == 64


def test_a_free_setting_may_change(tmp_path):
    with open_run(tmp_path, RECIPE):
        pass
    with open_run(tmp_path, {**RECIPE, "train": {**RECIPE["train"], "n_epochs": 9}}, free=["train.n_epochs"]):
        pass
    assert yaml.safe_load((tmp_path / RECIPE_FILE).read_text())["train"]["n_epochs"] == 9
