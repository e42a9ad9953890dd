"""How many trials share a GPU, from what each is predicted to need; arithmetic alone."""

from __future__ import annotations

from space.costs.memory import memory
from space.spec import ModelSpec

MOST_PERCENT = 90
"""Trials on one GPU are predicted to take at most this share of its memory; the rest is for fragmentation and for errors of the
prediction."""

CONTEXT_BYTES = 768 * 2**20
"""What a process takes on a GPU before it allocates anything: CUDA's context, loaded kernels, cuBLAS's and cuDNN's workspaces."""

RESIDENT_PERCENT = 40
"""Training data of at most this share of a GPU may be kept on it by every process (nas/data/feed.py)."""

SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)
"""The shares of a GPU that a trial may take.

Powers of two fill a GPU in any mixture, Ray counts them exactly (in ten-thousandths), and with so few of them the next trial mostly
has the share of the one before, so that it takes over its worker: a new one costs more than a second.
"""


def training_bytes(spec: ModelSpec, batch_size: int, averages: int) -> int:
    """The peak of training a batch; `averages` is how many averaged copies of the weights are kept."""
    return memory(spec, batch_size, averages).peak


def resident_bytes(data_bytes: int, gpu_bytes: int) -> int:
    """The part of `data_bytes` of training data that a process may keep on a GPU: all or nothing."""
    return data_bytes if 100 * data_bytes <= RESIDENT_PERCENT * gpu_bytes else 0


def share_of_gpu(trial_bytes: int, data_bytes: int, gpu_bytes: int) -> float:
    """The smallest of `SHARES` whose part of 90 % of a GPU holds a trial, its process and its data.

    Trials whose shares sum to at most 1 are therefore predicted to take at most 90 % together. A trial too large even for that has
    the GPU for itself.
    """
    needed = trial_bytes + resident_bytes(data_bytes, gpu_bytes) + CONTEXT_BYTES
    fitting = [share for share in SHARES if 100 * needed <= share * MOST_PERCENT * gpu_bytes]
    return min(fitting, default=1.0)


def awaited_bytes(trial_bytes: int, data_bytes: int, gpu_bytes: int, share: float) -> int:
    """What must be free on a GPU before a trial with this share of it starts, in a process that may hold its context and data.

    It is what the trial is predicted to need, but never more than its share leaves: a study may name the share itself.
    """
    left = int(share * MOST_PERCENT * gpu_bytes / 100) - resident_bytes(data_bytes, gpu_bytes) - CONTEXT_BYTES
    return max(0, min(trial_bytes, left))
