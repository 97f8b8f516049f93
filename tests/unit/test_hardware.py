"""What a run ran on."""

from importlib import metadata

import pytest

import transfuse
from transfuse.io import hardware


def test_a_source_tree_that_is_not_installed_has_a_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    found = hardware.manifest("transfuse run", "2026-01-01T00:00:00Z", None)
    assert found["transfuse"] == transfuse.__version__
    assert set(found["packages"].values()) == {None}


def test_the_version_is_that_of_the_installed_package() -> None:
    assert transfuse.__version__ == metadata.version("transfuse")
