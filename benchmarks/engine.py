"""What the search engine costs by itself: empty trials on Ray, 2,000 trials of five rungs, and the loading of a large ledger.

No trial trains: workers report scripted losses at once, through the whole of the engine, Ray Tune and the ledger included. Beside
it stands plain Ray Tune with its defaults, whose trials report once and are not judged.

    python -m benchmarks.engine [--cases empty many ledger]
"""

import argparse
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import ray
from ray import tune

from nas.execution.ray_adapters import PlanTrainable, step_result
from nas.execution.ray_executor import RayExecutor
from nas.runs.ledger import Ledger
from nas.runs.records import Report
from nas.runs.run import read_run
from nas.search.controller import Search
from nas.study.load import load_study

MODES = ("stop", "promote", "none")
EMPTY, PLAIN = 60, 20
"""Trials of ours and of plain Ray Tune: its own take over a second each."""


def study(trials, rungs, mode="stop"):
    return load_study(
        {
            "name": "engine",
            "data": {"source": "fashion-mnist-10k", "codec": "pixel-unshuffle-4"},
            "model": {"preset": "u-dit-toy", "set": {"channels": 8, "feed_forward.ratio": 2}},
            "search": {
                "space": {
                    "channels": {"int": [8, 128], "step": 8},
                    "depths": {"each": {"int": [1, 4]}},
                    "heads": [1, 2],
                    "feed_forward.kind": ["mlp", "conv"],
                },
                "sampler": {"kind": "random"},
                "trials": trials,
            },
            "budget": {"max": "100 TFLOPs", "rungs": rungs, "mode": mode},
            "resources": {"cpu": 1, "gpu": 0},
        }
    )


class Stub(PlanTrainable):
    """Reports a loss at once, where a worker would train."""

    def setup(self, config):
        super().setup(config)
        self._rung = self._plan.reported

    def step(self):
        plan, rung = self._plan, self._rung
        self._rung += 1
        return step_result(
            Report(
                trial=plan.number,
                rung=rung,
                step=rung + 1,
                images=rung + 1,
                macs=plan.milestones[rung - plan.reported],
                val_loss=random.Random(plan.spec.digest).random() + 1 / (rung + 1),
                val_loss_bins=(0.25, 0.25, 0.25, 0.25),
                train_loss=0.5,
                seconds=1.0,
                images_per_s=1.0,
                peak_memory_mib=1.0,
            )
        )


def resident_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def searched(wanted, folder):
    """Run a study of stubs; its search, the seconds without Ray's start, and the growth of the driver's memory in MiB."""
    with RayExecutor(folder, wanted.resources, trainable=Stub) as executor:
        search = Search(wanted, Ledger(folder))
        before, start = resident_mib(), time.perf_counter()
        executor.search(search)
        seconds = time.perf_counter() - start
        search.ledger.close()
        return search, seconds, resident_mib() - before


def plain_seconds():
    """Seconds of plain Ray Tune's trials, a function each, with its defaults."""

    def train(config):
        tune.report({"loss": config["x"]})

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            train,
            param_space={"x": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(num_samples=PLAIN),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        start = time.perf_counter()
        tuner.fit()
        seconds = time.perf_counter() - start
    ray.shutdown()
    return seconds


def empty():
    with tempfile.TemporaryDirectory() as folder:
        search, seconds, _ = searched(study(EMPTY, 1), Path(folder) / "run")
    ours, plain = seconds / len(search.run.trials), plain_seconds() / PLAIN
    print(
        f"empty trials: ours {ours:.3f} s each of {EMPTY}, plain Ray Tune {plain:.3f} s each of {PLAIN}, ratio {plain / ours:.0f}"
    )


def many():
    for mode in MODES:
        with tempfile.TemporaryDirectory() as folder:
            search, seconds, grown = searched(study(2000, 5, mode), Path(folder) / "run")
            reports = sum(len(trial.reports) for trial in search.run.trials.values())
            print(
                f"2,000 trials, mode {mode}: {reports} reports in {seconds:.0f} s, driver's memory grew by {grown:.0f} MiB",
                flush=True,
            )


def ledger():
    """20,000 trials with five reports each, as a search would have written them."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        search, _, _ = searched(study(20, 5, "none"), run)
        lines = (run / "ledger.jsonl").read_text().splitlines()
        head, rest = lines[0], lines[1:]
        trials = len(search.run.trials)
        with (run / "ledger.jsonl").open("w") as file:
            file.write(head + "\n")
            for block in range(20_000 // trials):
                for line in rest:
                    # Every block is the same trials under numbers of their own.
                    for key in ("trial", "variant"):
                        line = renumbered(line, key, block * trials)
                    file.write(line + "\n")
        start = time.perf_counter()
        found = read_run(run)
        seconds = time.perf_counter() - start
        reports = sum(len(trial.reports) for trial in found.trials.values())
        size = (run / "ledger.jsonl").stat().st_size / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"ledger: {reports} reports of {len(found.trials)} trials ({size:.0f} MiB) in {seconds:.2f} s, peak {peak:.0f} MiB")


def renumbered(line, key, offset):
    before, mark, after = line.partition(f'"{key}":')
    if not mark:
        return line
    digits = after[: next(i for i, c in enumerate(after) if not c.isdigit())]
    return f"{before}{mark}{int(digits) + offset}{after[len(digits) :]}"


CASES = {"empty": empty, "many": many, "ledger": ledger}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    for name in parser.parse_args().cases:
        CASES[name]()
        sys.stdout.flush()


if __name__ == "__main__":
    main()
