"""Whether a run directory can go on with a study, and what its ledger has so far."""

from __future__ import annotations

from nas.data.header import Header
from nas.runs.events import Event
from nas.runs.ledger import SCHEMA, Ledger, read_events
from nas.runs.run import Run
from nas.study.settings import BudgetSettings
from nas.study.study import Study, budget_grows, differences
from space.errors import RunError


def continued(study: Study, ledger: Ledger) -> list[Event]:
    """The events of a ledger that goes on with a study, the study's own event included.

    Raises RunError when the directory holds another study or was trained on other data.
    """
    events, plain = list(read_events(ledger.folder)), study.model_dump(mode="json")
    if not events:
        header = study.data.header()
        return [ledger.append({"event": "run", "schema": SCHEMA, "study": plain, "data": header.model_dump(mode="json")})]
    old, data = _latest(events)
    if old is None:
        raise RunError(f"{ledger.folder}: the ledger does not begin with a study; move the directory away to start anew")
    changed = differences(old, study)
    if changed:
        raise RunError(
            f"{ledger.folder} holds another study ({'; '.join(changed)}); undo the change, or run into another directory with --out"
        )
    if data is not None and data.checksum != study.data.header().checksum:
        raise RunError(
            f"{ledger.folder} was trained on other data than {study.data.source} holds now; "
            "put the old ones back, or run into another directory with --out"
        )
    if budget_grows(old, study):
        finished = [trial.number for trial in Run(events).trials.values() if len(trial.reports) > trial.rungs]
        if finished:
            raise RunError(
                f"{ledger.folder}: budget cannot be raised after trial {finished[0]} was trained on beyond it; raise "
                "finish.budget, or run into another directory with --out"
            )
    if old.model_dump(mode="json") != plain:
        events.append(ledger.append({"event": "study", "study": plain}))
    return events


def first_budget(events: list[Event]) -> BudgetSettings:
    """The budget that a run began with."""
    study = Run(events[:1]).study
    assert study is not None, "a ledger that goes on begins with a study"
    return study.budget


def _latest(events: list[Event]) -> tuple[Study | None, Header | None]:
    """The study as it was last, and the header of the data that the run began with."""
    run = Run([event for event in events if event["event"] in ("run", "study")])
    return run.study, run.data
