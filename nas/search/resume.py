"""Checks whether a run directory can be resumed with a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas.data.header import Header
from nas.runs.events import SCHEMA, Event, RunBegan, StudyChanged
from nas.runs.ledger import Ledger, apply_events, read_events
from nas.runs.run import Run, lacks_metric
from nas.study.study import Study
from space.errors import RunError

FREE_TO_CHANGE = (
    "question",
    "search.trials",
    "search.enqueue",
    "ablation",
    "confirm",
    "explain",
    "finish",
    "evaluation.samples",
    "evaluation.fid",
    "resources",
    "tracking",
)
"""Keys of a study that may differ when a run is resumed, because they do not change what a finished trial means."""


def resumed(study: Study, ledger: Ledger) -> list[Event]:
    """Check that a run can be resumed with a study, and write the study to the ledger when it is new or has changed.

    Args:
        study: The study to run.
        ledger: The open ledger of the run directory.

    Returns:
        All events of the ledger, the new one included.

    Raises:
        RunError: When the directory holds another study, was trained on other data, has finished trials of a smaller budget, or
            has trials of the ablation's rows without the metric that it compares by now.
    """
    events = list(read_events(ledger.folder))
    if not events:
        return [ledger.append(RunBegan(schema_version=SCHEMA, study=study, data=study.header))]
    if check_resumable(study, ledger.folder, events):
        events.append(ledger.append(StudyChanged(study=study)))
    return events


def check_resumable(study: Study, folder: Path, events: Sequence[Event]) -> bool:
    """Check that the run with these events can be resumed with a study; whether the study differs from the run's.

    Raises:
        RunError: As `resumed`.
    """
    run = Run()
    apply_events(folder, events, run.apply)
    if not run.begun or run.data is None:
        raise RunError(f"{folder}: the ledger does not begin with a study; move the directory away to start anew")
    old = run.study
    changed = differences(old, _at_the_same_place(study, old, run.data))
    if changed:
        raise RunError(
            f"{folder} holds another study ({'; '.join(changed)}); undo the change, or run into another directory with --out"
        )
    if run.data.checksum != study.header.checksum:
        raise RunError(
            f"{folder} was trained on other data than {study.data.source} holds now; "
            "put the old ones back, or run into another directory with --out"
        )
    if budget_grows(old, study):
        finished = [trial.number for trial in run.trials.values() if len(trial.reports) > trial.rungs]
        if finished:
            raise RunError(
                f"{folder}: budget cannot be raised after trial {finished[0]} was trained on beyond it; raise "
                "finish.budget, or run into another directory with --out"
            )
    _check_metric(study, run, folder)
    if run.candidates:
        _check_candidates(study, run, folder)
    return old.model_dump(mode="json") != study.model_dump(mode="json")


def _at_the_same_place(study: Study, old: Study, data: Header) -> Study:
    """The study with the data named as before, where they are the same: a store may be copied to another place with its VAE."""
    if not data.checksum or data.checksum != study.header.checksum:
        return study
    same = study.data.model_copy(update={"source": old.data.source, "codec": old.data.codec})
    return study.model_copy(update={"data": same})


def _check_metric(study: Study, run: Run, folder: Path) -> None:
    """Raise RunError where trials of the rows were scored without the metric: it is newer than their reports."""
    rows = {row.spec.digest for row in study.rows}
    reports = [report for trial in run.trials.values() if trial.digest in rows for report in trial.search_reports]
    lacking = [report for report in reports if lacks_metric(study, report)]
    if lacking:
        trials = len({report.trial for report in lacking})
        raise RunError(
            f"{folder}: {trials} of {len(run.trials)} trials were scored before the metric was measured: the report "
            f"of trial {lacking[0].trial} {lacks_metric(study, lacking[0])}, or run into another directory with --out"
        )


def _check_candidates(study: Study, run: Run, folder: Path) -> None:
    """Raise RunError for what would choose the candidates of a confirmation again, after they were chosen for fresh seeds."""
    old = run.study
    for key in ("trials", "enqueue"):
        if getattr(study.search, key) != getattr(old.search, key):
            raise RunError(
                f"{folder}: search.{key} cannot change once candidates are confirmed, which it might choose again; run into "
                "another directory beside it with --out, which takes over what is trained here"
            )
    if study.confirm is None or old.confirm is None:
        return
    for key in ("best", "against", "budget"):
        before, after = getattr(old.confirm, key), getattr(study.confirm, key)
        if before != after:
            raise RunError(
                f"{folder}: confirm.{key} is {before} there and cannot become {after}: candidates, baseline and budget are fixed "
                "before their first fresh seed; only confirm.seeds may grow, or run into another directory with --out"
            )


def differences(old: Study, new: Study) -> list[str]:
    """One `key: old → new` per key that differs although it may not."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    # Once the learning rate has decayed to 0, a finish cannot be extended.
    free_keys = [key for key in FREE_TO_CHANGE if key != "finish" or not (old.finish and old.finish.decay)]
    if old.ablation or old.scores_trials:
        # The trials were scored with these settings.
        free_keys.remove("evaluation.fid")
    if budget_grows(old, new):
        free_keys += ["budget.max", "budget.steps", "budget.images", "budget.rungs"]
    changed_keys = [key for key in sorted(before | after) if before.get(key) != after.get(key)]
    return [
        f"{key}: {before.get(key, '(none)')} → {after.get(key, '(none)')}"
        for key in changed_keys
        if not any(key == free or key.startswith(f"{free}.") for free in free_keys)
    ]


def budget_grows(old: Study, new: Study) -> bool:
    """Whether the new budget has the old one's rungs and more above them, so that complete trials can train on."""
    before, after = old.budget.milestones, new.budget.milestones
    if old.budget.unit != new.budget.unit or old.budget.even != new.budget.even:
        return False
    return len(after) > len(before) and after[: len(before)] == before and not old.budget.decay


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat
