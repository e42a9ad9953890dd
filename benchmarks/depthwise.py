"""Forward and backward of a depthwise 5×5 on a CPU: the split weight gradient of space/model/kernels.py against plain conv2d.

Both run side by side in turns, so noise hits both; printed is the ratio of their median times.
"""

import statistics
import time

import torch
import torch.nn.functional as F

from space.model.kernels import depthwise, from_convolution, to_convolution

SHAPES = [(16, 16, 16), (64, 16, 64), (8, 32, 192), (8, 8, 768)]
"""Batch, height and width, channels: the quickstart's outermost stage, a wider one, and two of U-DiT-S's feed-forwards."""

ROUNDS = 15


def plain(x, weight, bias):
    return from_convolution(F.conv2d(to_convolution(x), weight, bias, padding=2, groups=x.shape[-1]))


def step_s(function, x, weight, bias):
    start = time.perf_counter()
    out = function(x, weight, bias)
    out.backward(out.detach())
    return time.perf_counter() - start


def main():
    torch.set_num_threads(1)
    for batch, size, channels in SHAPES:
        shapes = (batch, size, size, channels), (channels, 1, 5, 5), (channels,)
        inputs = [torch.randn(shape).requires_grad_() for shape in shapes]
        times = {function: [] for function in (plain, depthwise)}
        for _ in range(ROUNDS + 3):
            for function, measured in times.items():
                measured.append(step_s(function, *inputs))
        medians = [1e3 * statistics.median(measured[3:]) for measured in times.values()]
        print(
            f"batch {batch}, {size}×{size}, {channels} channels: plain {medians[0]:.2f} ms, split {medians[1]:.2f} ms, "
            f"ratio {medians[0] / medians[1]:.2f}"
        )


if __name__ == "__main__":
    main()
