"""Shows a run: as a live table on a terminal, as plain lines elsewhere, and as lines from its ledger."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nas.reporting.progress import Progress
from nas.reporting.text import compute, duration
from nas.runs.confirmations import conclusion
from nas.runs.events import (
    CandidatesChosen,
    Confirmed,
    Event,
    Exported,
    FinishFailed,
    HandedOutAgain,
    Promoted,
    Reported,
    SpaceSpent,
    TrialBegan,
    TrialEnded,
)
from nas.runs.ledger import read_events
from nas.runs.records import State
from nas.runs.run import Run, TrialResult
from nas.runs.run_lock import Driver
from nas.study.metrics import METRICS
from nas.study.nuisance import in_words
from nas.study.rows import names_of

LATEST = 12
"""Most trials in the live table: those with the latest events."""

SUMMARY_S = 60.0
"""Least seconds between two summaries of the whole run in plain lines."""


def state_lines(progress: Progress, now: float | None = None) -> list[str]:
    """Trials by state, the best so far, compute spent and to come, and the rungs; with `now` (time.monotonic), the time left."""
    counts = {"running": progress.running, "waiting": progress.waiting}
    counts |= {state.value.lower(): count for state, count in progress.ended.items()}
    states = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    lines = [f"{len(progress.trials)} of {progress.study.most_trials} trials: {states or 'none yet'}"]
    if best := _best(progress):
        lines.append(best)
    left = progress.remaining_macs
    to_come = f"about {compute(left, 3)} to come" if left else "nothing to come"
    seconds = progress.seconds_left(now) if now is not None else None
    ends = f", ends in about {duration(seconds)}" if seconds else ""
    return [*lines, f"training compute: {compute(progress.spent_macs, 3)} spent, {to_come}{ends}", *_rung_lines(progress)]


def _rung_lines(progress: Progress) -> list[str]:
    unit = progress.budget.unit
    amount = "training TFLOPs" if unit == "compute" else unit
    # In an ablation, the best of all trials would be the best of different seeds.
    alike = not progress.study.ablation
    metric, digits = progress.metric, METRICS[progress.metric].digits
    titles = f"best {metric}", f"median {metric}"
    best = f"  {titles[0]}" if alike else ""
    rows = [f"rung  {amount:>15s}  reported  went on{best}  {titles[1]}"]
    for rung, (mark, losses) in enumerate(zip(progress.budget.milestones, progress.losses, strict=True)):
        if losses:
            trained = f"{mark / 1e12:15.4g}" if unit == "compute" else f"{mark:15,d}"
            went_on = str(progress.went_on(rung)) if rung < progress.budget.rungs - 1 else ""
            middle = (losses[(len(losses) - 1) // 2] + losses[len(losses) // 2]) / 2
            best = f"  {losses[0]:{len(titles[0])}.{digits}f}" if alike else ""
            rows.append(f"{rung + 1:4d}  {trained}  {len(losses):8d}  {went_on:>7s}{best}  {middle:{len(titles[1])}.{digits}f}")
    return rows if len(rows) > 1 else []


def status_lines(run: Run, events: Iterable[Event], driver: Driver | None = None) -> list[str]:
    """The progress of a run, who works on it, and its failures.

    Args:
        run: The run; it must have all of `events` and the search's decisions applied.
        events: The events of its ledger.
        driver: The process that has the run open or had it last, if that is known.
    """
    progress = Progress.of(run, events)
    lines = [run.study.name, *state_lines(progress)]
    if driver is not None and driver.alive:
        lines.append(f"in progress: {driver.name or 'another process'}")
    elif driver is not None and progress.remaining_macs:
        last = f" any more (the last was {driver.name})" if driver.name else ""
        lines.append(f"no process works on it{last}; the same command goes on from the last rungs")
    if run.study.search and (sentence := conclusion(run)):
        lines.append(sentence)
    names = names_of(run.study.rows)
    lines += [f"{called(trial, names)} FAILED: {trial.reason}" for trial in run.in_state(State.FAILED)]
    unfinished = [trial for trial in run.trials.values() if trial.finish_failure]
    return lines + [f"the finish of trial {trial.number} failed: {trial.finish_failure}" for trial in unfinished]


class Follower:
    """Keeps the progress of a run up to date. At the first event it reads the earlier ones from the ledger."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.progress: Progress | None = None

    def take(self, event: Event, run: Run) -> Progress:
        """Apply an event and return the progress."""
        if self.progress is None:
            *earlier, _ = read_events(self._folder)
            self.progress = Progress.of(run, earlier)
            self.progress.start(time.monotonic())
        self.progress.take(event, time.monotonic())
        return self.progress


class PlainLines:
    """Prints one line per notable event, and a summary of the whole run every `SUMMARY_S` seconds and at the end."""

    def __init__(self, console: Console, folder: Path) -> None:
        self.console, self.start = console, time.monotonic()
        self._follower = Follower(folder)
        self._printed = self.start

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._print_state()

    def __call__(self, event: Event, run: Run) -> None:
        """Print an event; called by the search as a listener."""
        line = describe(event, run, self._follower.take(event, run))
        if line:
            self._print(f"[{time.monotonic() - self.start:6.1f} s] {line}")
        if time.monotonic() - self._printed > SUMMARY_S:
            self._print_state()

    def _print_state(self) -> None:
        self._printed = time.monotonic()
        progress = self._follower.progress
        for line in state_lines(progress, self._printed) if progress else []:
            self._print(line)

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveTable:
    """A table of the run's state and its latest trials, redrawn twice a second, whatever the number of events."""

    def __init__(self, console: Console, folder: Path) -> None:
        self.start, self._lock = time.monotonic(), threading.Lock()
        self._follower = Follower(folder)
        self._recent: dict[int, TrialResult] = {}
        self._live = Live(self, console=console, refresh_per_second=2)

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, event: Event, run: Run) -> None:
        """Apply an event; called by the search as a listener."""
        # A thread of rich can draw at any time.
        with self._lock:
            self._follower.take(event, run)
            number = getattr(event, "trial", None)
            if number is not None:
                self._recent.pop(number, None)
                self._recent[number] = run.trials[number]
                if len(self._recent) > LATEST:
                    del self._recent[next(iter(self._recent))]

    def __rich__(self) -> RenderableType:
        now = time.monotonic()
        with self._lock:
            progress = self._follower.progress
            lines = state_lines(progress, now) if progress else ["starting …"]
            return Group(Text("\n".join([f"{duration(now - self.start)}  {lines[0]}", *lines[1:]])), self._rows())

    def _rows(self) -> Table:
        table = Table("trial", "state", "rung", "val_loss", "GFLOPs", "params (M)", box=None, header_style="bold")
        for trial in self._recent.values():
            progress = self._follower.progress
            state = "waiting" if progress and progress.waits(trial) else trial.state.value
            loss = f"{trial.reports[-1].val_loss:.4f}" if trial.reports else ""
            stage = _stage(len(trial.reports), trial.rungs)
            name = progress.names.get(trial.digest) if progress else None
            shown = Text(f"{name}, seed {trial.seed}" if name else trial.name)
            table.add_row(shown, state, stage, loss, f"{trial.cost.gflops:.4f}", f"{trial.cost.params_m:.2f}")
        return table


def progress_view(console: Console, folder: Path) -> LiveTable | PlainLines:
    """The live table if the console is a terminal, plain lines otherwise; `folder` is the run directory."""
    return LiveTable(console, folder) if console.is_terminal else PlainLines(console, folder)


def describe(event: Event, run: Run, progress: Progress) -> str:
    """One line about an event; empty for events that are not shown."""
    study = progress.study
    number = getattr(event, "trial", None)
    who = called(run.trials[number], progress.names) if number is not None else ""
    match event:
        case SpaceSpent():
            return "no new architecture is left in the space, so the search ends here"
        case Promoted():
            first = event.variant * study.replicates
            trials = range(first, first + study.replicates)
            which = f"trial {first} goes" if len(trials) == 1 else f"trials {trials[0]} to {trials[-1]} go"
            return f"{which} on from rung {event.rung} of {progress.budget.rungs}"
        case TrialBegan():
            trial = run.trials[event.trial]
            rejected = f", after {len(trial.rejected)} turned down" if trial.rejected else ""
            seed = f", seed {trial.seed}" if study.replicates > 1 else ""
            costs = f"{trial.cost.gflops:.4f} GFLOPs, {trial.cost.params_m:.2f} M parameters"
            tuned = f", {told}" if (told := in_words(study.tuned_of(trial))) else ""
            return f"{who} starts: {costs}{tuned}{seed}{rejected}"
        case Reported():
            trial = run.trials[event.trial]
            known = f", known from run {event.reused}" if event.reused is not None else ""
            stage = _stage(len(trial.reports), trial.rungs)
            value = event.value(run.metric)
            score = (
                f", {run.metric} {value:.{METRICS[run.metric].digits}f}" if run.metric != "val_loss" and value is not None else ""
            )
            return f"{who} at {stage}: val_loss {event.val_loss:.4f}{score}, step {event.step}{known}"
        case HandedOutAgain():
            alone = ", with a GPU for itself" if event.alone else ""
            return f"{who} is handed out again{alone}: {event.reason}"
        case TrialEnded():
            reason = f": {event.reason}" if event.reason else ""
            best = f"; {best}" if (best := _best(progress)) else ""
            return f"{who} {event.state.value}{reason} ({sum(progress.ended.values())} ended{best})"
        case CandidatesChosen():
            return f"confirmed with fresh seeds next: trial {', '.join(map(str, event.trials))}"
        case Confirmed():
            return f"confirmed: {conclusion(run)}"
        case FinishFailed():
            return f"{who} could not be finished: {event.reason}"
        case Exported():
            return f"{who} exported to {event.folder}"
    return ""


def called(trial: TrialResult, names: Mapping[str, str]) -> str:
    """A trial, and in an ablation its variant and its seed."""
    name = names.get(trial.digest)
    return f"trial {trial.number} ({name}, seed {trial.seed})" if name else f"trial {trial.number}"


def _best(progress: Progress) -> str:
    """The best so far; empty before there is one. In an ablation, of the rows' means over the seeds that ended in all of them."""
    if progress.study.ablation:
        leading = next((standing for standing in progress.run.standings() if standing.whole), None)
        if leading is None:
            return ""
        metric, over = progress.run.metric, f"{leading.seeds} seeds that" if leading.seeds > 1 else "the seed that"
        mean = f"{leading.mean:.{METRICS[metric].digits}f}"
        return f"best mean {metric} {mean} ({progress.names[leading.trial.digest]}; over {over} ended in every row)"
    if not progress.complete:
        return ""
    _, loss, number = progress.complete[0]
    mean = ", mean of its replicates" if progress.study.replicates > 1 else ""
    tuned = f", {told}" if (told := in_words(progress.study.tuned_of(progress.trials[number]))) else ""
    return f"best {progress.metric} {loss:.{METRICS[progress.metric].digits}f} (trial {number}{tuned}{mean})"


def _stage(reports: int, rungs: int) -> str:
    return f"rung {reports} of {rungs}" if reports <= rungs else f"finish {reports - rungs}"
