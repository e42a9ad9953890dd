"""The throughput of training, for forecasts."""

from __future__ import annotations

from dataclasses import dataclass

from nas.runs.run import Run


@dataclass(frozen=True)
class Throughput:
    """The training speed of one trial in multiply-accumulates per second, the number of trials at once, and the figures' source.

    Trials that run at once are assumed not to slow each other.
    """

    macs_per_s: float
    concurrency: int
    source: str


def throughput_of_run(run: Run, concurrency: int) -> Throughput | None:
    """The throughput of a run's own trials, without validation and reused reports; None when no trial has reported."""
    macs, seconds = 0, 0.0
    for trial in run.trials.values():
        before = 0
        for index, report in enumerate(trial.reports):
            if index not in trial.reused:
                macs, seconds = macs + report.macs - before, seconds + report.seconds
            before = report.macs
    return Throughput(macs / seconds, concurrency, "as in the run so far") if seconds > 0 else None
