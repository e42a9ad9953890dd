"""Peak memory of training on this machine against the closed form of space/costs/memory.py, preset by preset.

Each case runs in its own process: two training steps (AdamW, one averaged copy of the weights) after the libraries were loaded
and used once; measured is the highest resident memory above what the process had then, or on a GPU what CUDA allocated at most.

    python -m benchmarks.training_memory [PRESET=BATCH ...]
"""

import argparse
import copy
import ctypes
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from space import build, preset
from space.costs.memory import memory

CASES = {
    "u-dit-s": 8,
    "u-dit-s-vanilla": 8,
    "u-dit-t": 32,
    "u-dit-t+reparam": 32,
    "u-dit-toy": 256,
    "dit-s/2": 8,
    "dit-s/4": 64,
    "dit-b/4": 16,
}
"""Presets and batch sizes."""


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def step(model, average, optimizer, spec, batch):
    x = torch.randn(batch, spec.in_channels, spec.input_size, spec.input_size, device=next(model.parameters()).device)
    y = torch.zeros(batch, dtype=torch.long, device=x.device)
    optimizer.zero_grad(set_to_none=True)
    model(x, y, y).square().mean().backward()
    optimizer.step()
    torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in model.parameters()], 0.1)


def train(name, batch, steps):
    spec = preset(name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(spec).to(device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(steps):
        step(model, average, optimizer, spec, batch)


def measure(name, batch):
    """Print the peak in bytes; runs in a process of its own."""
    if torch.cuda.is_available():
        train("u-dit-toy", 2, 1)
        torch.cuda.reset_peak_memory_stats()
        train(name, batch, 2)
        print(json.dumps(torch.cuda.max_memory_allocated()))
        return
    torch.set_num_threads(1)
    # What is freed goes back to the system, so that resident memory is what is in use.
    ctypes.CDLL("libc.so.6").mallopt(-3, 1 << 16)
    train("u-dit-toy", 2, 1)
    before, highest, done = resident_bytes(), 0, threading.Event()

    def watch():
        nonlocal highest
        while not done.is_set():
            highest = max(highest, resident_bytes())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    train(name, batch, 2)
    done.set()
    watcher.join()
    print(json.dumps(highest - before))


def peak_bytes(name, batch):
    """The measured peak of training a preset, from a fresh process."""
    command = [sys.executable, "-m", "benchmarks.training_memory", "--measure", f"{name}={batch}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="PRESET=BATCH", default=[f"{name}={batch}" for name, batch in CASES.items()])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for case in arguments.cases:
        name, _, batch = case.partition("=")
        if arguments.measure:
            measure(name, int(batch))
            continue
        measured, predicted = peak_bytes(name, int(batch)), memory(preset(name), int(batch)).peak
        print(
            f"{name:18s} batch {batch:>3s}: measured {measured / 2**20:8.1f} MiB, predicted {predicted / 2**20:8.1f} MiB, "
            f"ratio {predicted / measured:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
