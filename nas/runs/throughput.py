"""How fast trials train, for forecasts."""

from __future__ import annotations

from dataclasses import dataclass

from nas.runs.run import Run


@dataclass(frozen=True)
class Throughput:
    """How fast trials train: multiply-accumulates a second of one trial, how many run at once, and where that is known from.

    Trials that run at once are taken not to slow each other.
    """

    macs_per_s: float
    concurrency: int
    source: str


def throughput_of_run(run: Run, concurrency: int) -> Throughput | None:
    """The rate at which a run's own trials have trained, validation apart; None when none has reported."""
    macs, seconds = 0, 0.0
    for trial in run.trials.values():
        before = 0
        for place, report in enumerate(trial.reports):
            if place not in trial.reused:
                macs, seconds = macs + report.macs - before, seconds + report.seconds
            before = report.macs
    return Throughput(macs / seconds, concurrency, "as in the run so far") if seconds > 0 else None
