"""Searches driven by scripted losses: no model is trained."""

from collections import deque

import numpy as np

from nas.execution import runner
from nas.execution.smoke import Smoke
from nas.reporting.console import status_lines
from nas.reporting.progress import Progress
from nas.runs.ledger import Ledger, read_events
from nas.runs.records import Failure, Report
from nas.search.controller import Search
from nas.search.state import SearchState, read_state

VARIED = [
    "search.space={channels: [8, 16, 24, 32], heads: [1, 2], feed_forward.kind: [mlp, conv]}",
    "search.constraints={gflops: {max: 0.02}}",
    "search.trials=8",
]
"""A small space of which eight architectures are tried."""


def loss_of(plan, rung):
    """A loss that falls with the rung and depends on the architecture alone."""
    rng = np.random.default_rng(int(plan.spec.digest, 16) % 2**32)
    return float(rng.uniform(0.1, 1.0) + 1 / (rung + 1))


def report(plan, rung, loss=None, scores=None):
    index = rung - plan.reported
    return Report(
        trial=plan.number,
        rung=rung,
        step=rung + 1,
        images=rung + 1,
        macs=plan.milestones[index],
        val_loss=loss_of(plan, rung) if loss is None else loss,
        val_loss_bins=(0.0,),
        train_loss=0.0,
        seconds=1.0,
        images_per_s=1.0,
        peak_memory_mib=1.0,
        scores=scores or {},
    )


def carry_out(search, workers=1, stop_after=None, failing=(), loss=loss_of, scores=lambda plan, rung: {}):
    """Run plans round-robin on some workers; stop dead after a number of reports, as a killed process would."""
    busy, reports = deque(), 0
    while True:
        while len(busy) < workers and (plan := search.next_plan()) is not None:
            busy.append((plan, plan.reported))
        if not busy:
            return
        plan, rung = busy.popleft()
        if plan.number in failing:
            search.fail(Failure(trial=plan.number, reason="broken"))
            continue
        if stop_after is not None and reports == stop_after:
            return
        reports += 1
        if search.report(report(plan, rung, loss(plan, rung), scores(plan, rung))):
            busy.append((plan, rung + 1))


class ScriptedExecutor:
    """An executor that trains nothing, and may stop dead after a number of reports of all runs together."""

    left = None
    loss = staticmethod(loss_of)

    @classmethod
    def put_in_place(cls, monkeypatch):
        """Carry out all runs by it; nothing is exported."""
        monkeypatch.setattr(runner, "_executor", lambda *_: cls())
        monkeypatch.setattr(runner, "_export_winners", lambda *_: None)
        monkeypatch.setattr(cls, "left", None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def smoke(self, study):
        return Smoke(device="cpu", batch_size=4, steps=())

    def search(self, search):
        before = sum(len(trial.reports) for trial in search.run.trials.values())
        carry_out(search, stop_after=self.left, loss=self.loss)
        if self.left is not None:
            type(self).left -= sum(len(trial.reports) for trial in search.run.trials.values()) - before

    def finish(self, search, plans):
        for plan in plans:
            for rung in range(plan.reported, plan.reported + len(plan.milestones)):
                search.report(report(plan, rung, self.loss(plan, rung)))


def plain(folder):
    """The ledger as plain data."""
    return [event.plain() for event in read_events(folder)]


def status(folder):
    """The lines of `nas status`."""
    return status_lines(read_state(folder).run, read_events(folder))


class Counting:
    """The progress of a run, counted event by event beside the state that the events make."""

    def __init__(self):
        self.state, self.progress = SearchState(), None

    def take(self, event):
        self.state.apply(event)
        self.progress = self.progress or Progress(self.state.run)
        self.progress.take(event)
        return self.progress

    def take_all(self, events):
        for event in events:
            self.take(event)
        return self.progress


def facts(folder):
    """The ledger without times."""
    return [{key: value for key, value in event.plain().items() if key != "time"} for event in read_events(folder)]


def searched(study, folder, **how):
    ledger = Ledger(folder)
    try:
        search = Search(study, ledger)
        carry_out(search, **how)
    finally:
        ledger.close()
    return search
