"""What a run ran on: for manifests, reports and benchmark logs."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from transfuse import __version__

PACKAGES = ("torch", "transformers", "peft", "accelerate", "gguf", "safetensors", "numpy")


def hardware_text() -> str:
    """Processor, cores, memory and accelerators in one line."""
    parts = [f"{os.cpu_count()} x {_processor()}"]
    try:
        memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        parts.append(f"{memory_gib:.0f} GiB")
    except (ValueError, OSError):
        pass
    return ", ".join([*parts, *_accelerators()])


def manifest(command: str, started: str, ended: str | None) -> dict[str, Any]:
    """What `manifest.json` holds: version, commit, package versions, hardware, times (ISO 8601, UTC)."""
    return {
        "transfuse": __version__,
        "commit": _commit(),
        "command": command,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "hardware": hardware_text(),
        "system": platform.platform(),
        "started": started,
        "ended": ended,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _accelerators() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of a source checkout, marked where files differ from it; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
