"""Peak memory of training: CUDA's allocations on a GPU, the resident set of the process (libraries included) on a CPU."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

import torch

_RESET_PEAK = "5"
"""Writing this to `clear_refs` resets the peak of the resident set to its present size (man 5 proc)."""


def reset_peak(device: torch.device) -> int | None:
    """Reset the peak and return the bytes in use now; None where the system does not report them."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return None
    return _status_bytes("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """The peak since `reset_peak`, in bytes; since the start of the process where the system cannot reset it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


def _status_bytes(key: str) -> int | None:
    """An entry of `/proc/self/status` in bytes; None on systems other than Linux."""
    with suppress(OSError, IndexError, ValueError):
        return int(Path("/proc/self/status").read_text().partition(f"{key}:")[2].split()[0]) * 1024
    return None
