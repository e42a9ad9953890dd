"""Training steps and peak memory: the toolkit's model against the obvious form, and re-parameterised against plain feed-forwards.

Two sides of a case take steps (forward, mean squared error of the noise, backward, fused AdamW) in turns in one process, so noise
hits both; printed are their median times and the ratio of the medians. The peak memory of a side is the growth of its resident set
from before the model was built, in a process of its own. Both sides have the same weights, batches, threads and allocator.

    python benchmarks/training_speed.py [--cases u-dit-s quickstart-conv …] [--rounds N] [--no-memory]
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.yardstick import yardstick
from space import build, official, preset

THREADS = 2
PLAIN = {"feed_forward.reparam": False}


def spec_of(name, changes):
    return preset(name).replace(changes)


def quickstart(channels, similarity, **feed_forward):
    """An architecture of studies/rung_settings.yaml."""
    position = "rope2d" if similarity == "cosine" else "none"
    changes = {f"feed_forward.{key}": value for key, value in feed_forward.items()}
    attention = {"attention.similarity": similarity, "attention.position": position}
    return spec_of("u-dit-toy", {"channels": channels, "depths": (1, 1, 1, 1, 1), **attention, **changes})


def against_obvious(spec):
    return {"ours": (build, spec), "obvious": (yardstick, spec)}


def against_plain(name):
    return {"reparam": (build, preset(name)), "plain": (build, spec_of(name, PLAIN))}


CASES = {
    "u-dit-s": (8, 5, against_obvious(preset("u-dit-s"))),
    "quickstart-conv": (64, 12, against_obvious(quickstart(16, "cosine", kind="conv", ratio=4))),
    "quickstart-mlp": (64, 12, against_obvious(quickstart(16, "dot", kind="mlp", ratio=2))),
    "quickstart-plain": (64, 12, against_obvious(quickstart(24, "dot", kind="conv", ratio=2, reparam=False))),
    "quickstart-wide": (64, 12, against_obvious(quickstart(24, "cosine", kind="conv", ratio=4))),
    "reparam-s": (8, 5, against_plain("u-dit-s")),
    "reparam-toy": (64, 12, against_plain("u-dit-toy")),
}
"""Batch size, rounds, and by name the two sides: how a model is built and its spec."""


class Trainer:
    """Training steps of one model on batches of noise."""

    def __init__(self, build_model, spec, batch):
        torch.manual_seed(0)
        self.model, self.spec, self.batch = build_model(spec), spec, batch
        self.generator = torch.Generator().manual_seed(0)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0, fused=True)

    def step(self):
        """One step; returns its loss and its seconds."""
        spec, n = self.spec, self.batch
        noise = torch.randn(n, spec.in_channels, spec.input_size, spec.input_size, generator=self.generator)
        t, y = (torch.randint(bound, (n,), generator=self.generator) for bound in (1000, spec.num_classes))
        start = time.perf_counter()
        loss = (self.model(noise, t, y)[:, : spec.in_channels] - noise).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item(), time.perf_counter() - start


def trainers(case):
    batch, _, sides = CASES[case]
    made = {side: Trainer(build_model, spec, batch) for side, (build_model, spec) in sides.items()}
    if "obvious" in made:
        # Away from the initial values, whose zero gates would hide a difference.
        with torch.no_grad():
            for parameter in made["obvious"].model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        official.load_weights(made["ours"].model, dict(made["obvious"].model.named_parameters()))
    return made


def speed(case, rounds):
    """Print the median seconds of a step of each side, and their ratio."""
    times = {side: [] for side in CASES[case][2]}
    made = trainers(case)
    warm_up = 2 if CASES[case][0] < 16 else 10
    for _ in range(rounds + warm_up):
        losses = []
        for side, trainer in made.items():
            loss, seconds = trainer.step()
            losses.append(loss)
            times[side].append(seconds)
        if "obvious" in made:
            assert abs(losses[0] - losses[1]) < 1e-3 * losses[1], losses
    medians = {side: statistics.median(measured[warm_up:]) for side, measured in times.items()}
    (ours, ours_s), (other, other_s) = medians.items()
    batch = CASES[case][0]
    print(
        f"{case}: {ours} {1e3 * ours_s:.0f} ms ({batch / ours_s:.1f} samples/s), {other} {1e3 * other_s:.0f} ms "
        f"({batch / other_s:.1f} samples/s), ratio {other_s / ours_s:.2f}",
        flush=True,
    )


def resident_mib(field):
    """The resident set of this process: now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak_mib(case, side):
    """Growth of the resident set over three steps of a side."""
    batch, _, sides = CASES[case]
    torch.randn(64, 64) @ torch.randn(64, 64)
    before = resident_mib("VmRSS")
    trainer = Trainer(*sides[side], batch)
    for _ in range(3):
        trainer.step()
    return resident_mib("VmHWM") - before


def memory(case):
    """Print the peak memory of each side, each in a process of its own, and their ratio."""
    sides = list(CASES[case][2])
    peaks = []
    for side in sides:
        command = [sys.executable, "-m", "benchmarks.training_speed", "--peak", case, side]
        peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    (ours, other), (ours_mib, other_mib) = sides, peaks
    print(f"{case}: peak memory {ours} {ours_mib:.0f} MiB, {other} {other_mib:.0f} MiB, {ours_mib / other_mib:.0%}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.peak:
        print(peak_mib(*options.peak))
        return
    for case in options.cases:
        speed(case, options.rounds or CASES[case][1])
        if not options.no_memory:
            memory(case)


if __name__ == "__main__":
    main()
