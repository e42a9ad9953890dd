"""What a run shows: a live table on a terminal, plain lines elsewhere, and the same from the ledger alone."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nas.reporting.estimate import duration
from nas.reporting.progress import Progress
from nas.runs.events import Event
from nas.runs.ledger import read_events
from nas.runs.records import State
from nas.runs.run import Run, TrialResult, read_run

if TYPE_CHECKING:
    from nas.search.controller import Search

LATEST = 12
"""Trials in the live table: those that something happened to last."""

SUMMARY_S = 60.0
"""Plain lines tell the state of the whole run at most this often."""


def summary(run: Run) -> str:
    """Trials by state, and the best so far."""
    counts = Counter(trial.state for trial in run.trials.values())
    of = f" of {run.study.most_trials}" if run.study else ""
    states = ", ".join(f"{counts[state]} {state.value.lower()}" for state in State if counts[state])
    best = run.best()
    return f"{len(run.trials)}{of} trials: {states or 'none yet'}" + (
        f"; best val_loss {best[0].val_loss:.4f} (trial {best[0].number})" if best else ""
    )


def state_lines(progress: Progress, now: float | None = None) -> list[str]:
    """Trials by state, the best so far, compute spent and to come, and the rungs; `now` (time.monotonic) lets an end be told."""
    counts = {"running": progress.running, "waiting": progress.waiting}
    counts |= {state.value.lower(): count for state, count in progress.ended.items()}
    states = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    lines = [f"{len(progress.trials)} of {progress.study.most_trials} trials: {states or 'none yet'}"]
    if progress.complete:
        lines.append(_best(progress))
    left = progress.remaining_macs
    to_come = f"about {_flops(left)} to come" if left else "nothing to come"
    seconds = progress.seconds_left(now) if now is not None else None
    ends = f", ends in about {duration(seconds)}" if seconds else ""
    return [*lines, f"training compute: {_flops(progress.spent_macs)} spent, {to_come}{ends}", *_rung_lines(progress)]


def _rung_lines(progress: Progress) -> list[str]:
    in_steps = progress.budget.max is None
    amount = "steps" if in_steps else "training TFLOPs"
    rows = [f"rung  {amount:>15s}  reported  went on  best val_loss  median val_loss"]
    for rung, (mark, losses) in enumerate(zip(progress.budget.milestones, progress.losses, strict=True)):
        if losses:
            trained = f"{mark:15,d}" if in_steps else f"{mark / 1e12:15.4g}"
            went_on = str(progress.went_on(rung)) if rung < progress.budget.rungs - 1 else ""
            middle = (losses[(len(losses) - 1) // 2] + losses[len(losses) // 2]) / 2
            rows.append(f"{rung + 1:4d}  {trained}  {len(losses):8d}  {went_on:>7s}  {losses[0]:13.4f}  {middle:15.4f}")
    return rows if len(rows) > 1 else []


def _flops(macs: float) -> str:
    """Multiply-accumulates with the prefix that fits."""
    scale, name = next(((scale, name) for scale, name in ((1e15, "PFLOPs"), (1e12, "TFLOPs")) if macs >= scale), (1e9, "GFLOPs"))
    return f"{macs / scale:.3g} {name}"


def status_lines(folder: Path) -> list[str]:
    """How far the run in a directory is, and what failed, from its ledger alone; raises RunError when there is none."""
    run = read_run(folder)
    assert run.study is not None, "read_run refuses a ledger without a study"
    progress = Progress(run.study)
    for event in read_events(folder):
        progress.take(event)
    lines = [run.study.name, *state_lines(progress)]
    lines += [f"trial {trial.number} FAILED: {trial.reason}" for trial in run.in_state(State.FAILED)]
    unfinished = [trial for trial in run.trials.values() if trial.finish_failure]
    return lines + [f"the finish of trial {trial.number} failed: {trial.finish_failure}" for trial in unfinished]


def followed(progress: Progress | None, event: Event, search: Search) -> Progress:
    """The progress of a search after an event; at the first, what earlier processes did is read from the ledger."""
    if progress is None:
        progress = Progress(search.study)
        *earlier, _ = read_events(search.ledger.folder)
        for past in earlier:
            progress.take(past)
        progress.start(time.monotonic())
    progress.take(event)
    return progress


class PlainLines:
    """One line for every event that matters, and the whole run's state now and then, and at the end."""

    def __init__(self, console: Console) -> None:
        self.console, self.start = console, time.monotonic()
        self._progress: Progress | None = None
        self._told = self.start

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._tell()

    def __call__(self, event: Event, search: Search) -> None:
        """A listener of the search."""
        self._progress = followed(self._progress, event, search)
        line = describe(event, search.run, self._progress)
        if line:
            self._print(f"[{time.monotonic() - self.start:6.1f} s] {line}")
        if time.monotonic() - self._told > SUMMARY_S:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        for line in state_lines(self._progress, self._told) if self._progress else []:
            self._print(line)

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveTable:
    """The run's state and its latest trials, redrawn twice a second, however many events there are."""

    def __init__(self, console: Console) -> None:
        self.start, self._lock = time.monotonic(), threading.Lock()
        self._progress: Progress | None = None
        self._recent: dict[int, TrialResult] = {}
        self._live = Live(self, console=console, refresh_per_second=2)

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, event: Event, search: Search) -> None:
        """A listener of the search."""
        # What is drawn is drawn by a thread of rich's, at any time.
        with self._lock:
            self._progress = followed(self._progress, event, search)
            number = event.get("trial")
            if number is not None:
                self._recent.pop(number, None)
                self._recent[number] = search.run.trials[number]
                if len(self._recent) > LATEST:
                    del self._recent[next(iter(self._recent))]

    def __rich__(self) -> RenderableType:
        now = time.monotonic()
        with self._lock:
            lines = state_lines(self._progress, now) if self._progress else ["starting …"]
            return Group(Text("\n".join([f"{duration(now - self.start)}  {lines[0]}", *lines[1:]])), self._rows())

    def _rows(self) -> Table:
        table = Table("trial", "state", "rung", "val_loss", "GFLOPs", "params (M)", box=None, header_style="bold")
        for number, trial in self._recent.items():
            assert self._progress is not None, "a trial is known from an event"
            state = "waiting" if self._progress.trials[number].waits else trial.state.value
            loss = f"{trial.reports[-1].val_loss:.4f}" if trial.reports else ""
            stage = _stage(len(trial.reports), trial.rungs)
            table.add_row(trial.name, state, stage, loss, f"{trial.cost.gflops:.4f}", f"{trial.cost.params_m:.2f}")
        return table


def progress_view(console: Console) -> LiveTable | PlainLines:
    """The live table on a terminal, plain lines when the output goes elsewhere."""
    return LiveTable(console) if console.is_terminal else PlainLines(console)


def describe(event: Event, run: Run, progress: Progress) -> str:
    """One line about an event; empty for those not worth one."""
    kind, number = event["event"], event.get("trial")
    if kind == "spent":
        return "no new architecture is left in the space, so the search ends here"
    if kind == "promote":
        first = event["variant"] * progress.study.replicates
        trials = range(first, first + progress.study.replicates)
        which = f"trial {first} goes" if len(trials) == 1 else f"trials {trials[0]} to {trials[-1]} go"
        return f"{which} on from rung {event['rung']} of {progress.budget.rungs}"
    if number is None:
        return ""
    trial = run.trials[number]
    if kind == "trial":
        turned_down = f", after {len(trial.rejected)} turned down" if trial.rejected else ""
        seed = f", seed {trial.seed}" if progress.study.replicates > 1 or progress.study.ablation else ""
        return f"trial {number} starts: {trial.cost.gflops:.4f} GFLOPs, {trial.cost.params_m:.2f} M parameters{seed}{turned_down}"
    if kind == "report":
        known = f", known from run {event['reused']}" if event.get("reused") else ""
        stage = _stage(len(trial.reports), trial.rungs)
        return f"trial {number} at {stage}: val_loss {event['val_loss']:.4f}, step {event['step']}{known}"
    if kind == "again":
        how = ", with a GPU for itself" if event["alone"] else ""
        return f"trial {number} is handed out again{how}: {event['reason']}"
    if kind == "end":
        reason = f": {trial.reason}" if trial.reason else ""
        best = f"; {_best(progress)}" if progress.complete else ""
        return f"trial {number} {trial.state.value}{reason} ({sum(progress.ended.values())} ended{best})"
    if kind == "finish-failed":
        return f"trial {number} could not be finished: {event['reason']}"
    return f"trial {number} exported to {event['folder']}" if kind == "export" else ""


def _best(progress: Progress) -> str:
    _, loss, number = progress.complete[0]
    mean = ", mean of its replicates" if progress.study.replicates > 1 else ""
    return f"best val_loss {loss:.4f} (trial {number}{mean})"


def _stage(reports: int, rungs: int) -> str:
    return f"rung {reports} of {rungs}" if reports <= rungs else f"finish {reports - rungs}"
