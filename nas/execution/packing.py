"""The share of a GPU that a trial takes, from its predicted memory; pure arithmetic."""

from __future__ import annotations

from space.costs.memory import memory
from space.spec import ModelSpec

MOST_PERCENT = 90
"""Most predicted memory of all trials on a GPU, in percent of it; the rest is for fragmentation and errors of the prediction."""

CONTEXT_BYTES = 768 * 2**20
"""GPU memory of a process before it allocates any tensor: CUDA context, loaded kernels, cuBLAS and cuDNN workspaces."""

RESIDENT_PERCENT = 40
"""Every process keeps the training data on the GPU when they take at most this percentage of it (nas/data/feed.py)."""

SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)
"""The shares of a GPU that a trial may take.

Powers of two fill a GPU in any mixture, and Ray counts them exactly (in ten-thousandths). There are few of them, so the next trial
mostly has the same share as the last and can reuse its worker; starting a new worker takes more than a second.
"""


def training_bytes(spec: ModelSpec, batch_size: int, averages: int) -> int:
    """The predicted peak memory of training; `averages` is the number of moving averages of the weights."""
    return memory(spec, batch_size, averages).peak


def resident_bytes(data_bytes: int, gpu_bytes: int) -> int:
    """The bytes of training data that a process keeps on a GPU: all of them, or none."""
    return data_bytes if 100 * data_bytes <= RESIDENT_PERCENT * gpu_bytes else 0


def share_of_gpu(trial_bytes: int, data_bytes: int, gpu_bytes: int) -> float:
    """The smallest of `SHARES` with room for a trial, its process and its data in that share of 90 % of a GPU.

    So trials whose shares sum to at most 1 are predicted to take at most 90 % of the GPU together. A trial that needs more than
    90 % gets the GPU to itself.

    Args:
        trial_bytes: Predicted peak memory of training.
        data_bytes: Size of the training data on a GPU.
        gpu_bytes: Memory of the GPU.
    """
    needed = trial_bytes + resident_bytes(data_bytes, gpu_bytes) + CONTEXT_BYTES
    fitting = [share for share in SHARES if 100 * needed <= share * MOST_PERCENT * gpu_bytes]
    return min(fitting, default=1.0)


def awaited_bytes(trial_bytes: int, data_bytes: int, gpu_bytes: int, share: float) -> int:
    """The memory that must be free on a GPU before a trial starts, in a process that may already hold its context and data.

    It is the trial's predicted peak, but at most what `share` leaves beside context and data: a study can set a smaller share than
    the prediction asks for.
    """
    left = int(share * MOST_PERCENT * gpu_bytes / 100) - resident_bytes(data_bytes, gpu_bytes) - CONTEXT_BYTES
    return max(0, min(trial_bytes, left))
