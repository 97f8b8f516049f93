"""The command line in a process of its own, with the accelerator or without; imported by tests."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def transfuse(*arguments: object, without_gpu: bool = False) -> None:
    """Run it, and fail with what it printed where it fails."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if without_gpu else {}
    done = subprocess.run(
        [sys.executable, "-m", "transfuse.cli", *map(str, arguments)],
        env=os.environ | hidden,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def report_of(run: Path) -> dict[str, Any]:
    """Its `report.json`."""
    return json.loads((run / "report.json").read_text(encoding="utf-8"))
