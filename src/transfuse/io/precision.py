"""Which device computes, and in which number format."""

from typing import Literal

import torch

from transfuse.errors import ModelError

Precision = Literal["auto", "float32", "bfloat16"]

BF16_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "sve_bf16"})
"""CPU capabilities, as torch names them, that multiply bfloat16 without emulating it."""

BF16_CPUINFO_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
"""The same as the kernel names them, for a torch that does not say."""


def resolve_device(device: str | None = None) -> torch.device:
    """The device to compute on.

    Args:
        device: a torch device name such as `cuda:1`; None picks CUDA, then MPS, then the CPU.

    Returns:
        A device that is present.

    Raises:
        ModelError: `device` is no device name, or this machine has no such device.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as err:
        raise ModelError(f"device: expected cpu, mps, cuda or cuda:N, got {device!r}.") from err
    if not _is_present(wanted):
        raise ModelError(
            f"device: {device!r} is not present on this machine; leave it out to use what is there."
        )
    return wanted


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The compute type: what was asked for, or under `auto` bfloat16 only where the hardware has it natively.

    Args:
        precision: `auto` never picks an emulated bfloat16, which is slower than float32.
        device: where the model computes.

    Returns:
        `torch.bfloat16` or `torch.float32`.

    Raises:
        ModelError: `precision` is none of the three.
    """
    match precision:
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "auto":
            return torch.bfloat16 if has_native_bfloat16(device) else torch.float32
        case _:
            raise ModelError(f"precision: expected auto, float32 or bfloat16, got {precision!r}.")


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 without emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return not BF16_CPU_FLAGS.isdisjoint(_cpu_flags())
    return False


def _is_present(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def _cpu_flags() -> frozenset[str]:
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        return frozenset(name for name, value in capabilities().items() if value is True)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:  # noqa: PTH123 - a device file, not a path
            for line in cpuinfo:
                if line.lower().startswith(("flags", "features")):
                    found = BF16_CPUINFO_FLAGS.intersection(line.split(":", 1)[1].split())
                    return frozenset(found and BF16_CPU_FLAGS)
    except OSError:
        pass
    return frozenset()
