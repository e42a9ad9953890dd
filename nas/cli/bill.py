"""What a bill needs: the checks that come before it, and what is left to train of a run that exists."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas.runs.remote import RunLocation
    from nas.runs.run import Run
    from nas.study.study import Study


def run_so_far(study: Study, where: RunLocation) -> tuple[Run, float] | None:
    """The run in a directory and the multiply-accumulates that a study has left to train of it; None where no run is.

    Raises:
        ToolkitError: The directory holds a run that the study cannot go on with.
    """
    from nas.reporting.progress import Progress
    from nas.runs.events import StudyChanged
    from nas.runs.layout import LEDGER
    from nas.runs.ledger import read_events
    from nas.search.resume import check_resumable
    from nas.search.state import read_state

    folder = where.folder
    if not (folder / LEDGER).exists():
        return None
    events = list(read_events(folder))
    if check_resumable(study, folder, events):
        events.append(StudyChanged(study=study))
    run = read_state(folder, events).run
    return run, Progress.of(run, events).remaining_macs + _confirmation_left(run, where)


def _confirmation_left(run: Run, where: RunLocation) -> float:
    """The multiply-accumulates that a search's confirmation has left to train; 0 of one that is over, and without one."""
    from nas.reporting.confirmation_estimate import planned_confirmation
    from nas.runs.confirmations import fresh_study
    from nas.runs.layout import CONFIRMATION

    if not run.study.confirm or run.confirmed is not None:
        return 0.0
    begun = run_so_far(fresh_study(run), where.inside(CONFIRMATION)) if run.candidates else None
    return planned_confirmation(run.study) if begun is None else begun[1]


def check_study(study: Study) -> None:
    """Raise ToolkitError for what a run would refuse before it trains; data that are only described (`expected`) may be absent."""
    from nas.data.sources import is_absent
    from nas.execution.preflight import check_confirmation, check_data

    study.check_runs()
    check_confirmation(study)
    if not study.data.expected or not is_absent(study.data):
        check_data(study)
