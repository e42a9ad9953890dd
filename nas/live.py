"""What a run shows while it goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nas.ledger import Event
from nas.records import State
from nas.results import Run
from nas.search import Search

LATEST = 12
"""Trials in the live table: those that reported last."""


class PlainLines:
    """One line for every event that matters."""

    def __init__(self, console: Console) -> None:
        self.console, self.start = console, time.monotonic()

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def __call__(self, event: Event, search: Search) -> None:
        """A listener of the search."""
        line = describe(event, search)
        if line:
            self.console.print(f"[{time.monotonic() - self.start:6.1f} s] {line}", markup=False, highlight=False, soft_wrap=True)


class LiveTable:
    """The run's state, redrawn at every event; its clock ticks every second."""

    def __init__(self, console: Console) -> None:
        self.start, self._recent = time.monotonic(), dict[int, None]()
        self._head, self._table = "starting …", Table(box=None)
        self._live = Live(self, console=console, refresh_per_second=1)

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __rich__(self) -> RenderableType:
        return Group(Text(f"{time.monotonic() - self.start:.0f} s  {self._head}"), self._table)

    def __call__(self, event: Event, search: Search) -> None:
        """A listener of the search."""
        number = event.get("trial")
        if number is not None:
            self._recent.pop(number, None)
            self._recent[number] = None
        # Built here, not in `__rich__`, which a thread of its own calls at any time.
        self._head, self._table = summary(search.run), self._rows(search)
        self._live.refresh()

    def _rows(self, search: Search) -> Table:
        table = Table("trial", "state", "rung", "val_loss", "GFLOPs", "params (M)", box=None, header_style="bold")
        for number in list(self._recent)[-LATEST:]:
            trial = search.run.trials[number]
            loss = f"{trial.reports[-1].val_loss:.4f}" if trial.reports else ""
            stage = _stage(len(trial.reports), trial.rungs)
            table.add_row(trial.name, trial.state.value, stage, loss, f"{trial.cost.gflops:.4f}", f"{trial.cost.params_m:.2f}")
        return table


def progress_view(console: Console) -> LiveTable | PlainLines:
    """The live table on a terminal, plain lines when the output goes elsewhere."""
    return LiveTable(console) if console.is_terminal else PlainLines(console)


def summary(run: Run) -> str:
    """Trials by state, and the best so far."""
    counts = Counter(trial.state for trial in run.trials.values())
    of = f" of {run.study.search.trials}" if run.study else ""
    states = ", ".join(f"{counts[state]} {state.value.lower()}" for state in State if counts[state])
    best = run.best()
    return f"{len(run.trials)}{of} trials: {states or 'none yet'}" + (
        f"; best val_loss {best[0].val_loss:.4f} (trial {best[0].number})" if best else ""
    )


def describe(event: Event, search: Search) -> str:
    """One line about an event; empty for those not worth one."""
    kind, number = event["event"], event.get("trial")
    if kind == "spent":
        return "no new architecture is left in the space, so the search ends here"
    if number is None:
        return ""
    trial = search.run.trials[number]
    if kind == "trial":
        turned_down = f", after {len(trial.rejected)} turned down" if trial.rejected else ""
        return f"trial {number} starts: {trial.cost.gflops:.4f} GFLOPs, {trial.cost.params_m:.2f} M parameters{turned_down}"
    if kind == "report":
        return (
            f"trial {number} at {_stage(len(trial.reports), trial.rungs)}: val_loss {event['val_loss']:.4f}, step {event['step']}"
        )
    if kind == "end":
        reason = f": {trial.reason}" if trial.reason else ""
        return f"trial {number} {trial.state.value}{reason} ({summary(search.run)})"
    if kind == "finish-failed":
        return f"trial {number} could not be finished: {event['reason']}"
    return f"trial {number} exported to {event['folder']}" if kind == "export" else ""


def _stage(reports: int, rungs: int) -> str:
    return f"rung {reports} of {rungs}" if reports <= rungs else f"finish {reports - rungs}"
