"""The local executor: trains trials one after the other in this process."""

from __future__ import annotations

from pathlib import Path

from nas.execution.ending import Ending
from nas.execution.smoke import Smoke, smoke
from nas.execution.watchdog import raises_when_still
from nas.runs.ledger import run_identity
from nas.runs.records import TrialPlan
from nas.runs.remote import fetch_checkpoint, upload_checkpoint
from nas.search.controller import Search
from nas.study.study import Study
from nas.training.trial import Trial, as_failure
from space.errors import RunError


class LocalExecutor:
    """Carries out plans one at a time, so the same study always gives the same proposals and losses."""

    def __init__(self, folder: Path, uri: str | None = None, ending: Ending | None = None) -> None:
        self.folder, self.uri, self.ending = folder, uri, ending or Ending()

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: nothing was started."""

    def smoke(self, study: Study) -> Smoke:
        """Train a step of the cheapest and the dearest architecture; raises ToolkitError when one fails."""
        return smoke(study)

    def search(self, search: Search) -> None:
        """Train the search's plans until it has no more."""
        while not self.ending.reason and (plan := search.next_plan()) is not None:
            self._carry_out(plan, search)

    def finish(self, search: Search, plans: list[TrialPlan]) -> None:
        """Train the trials of the finish to their larger budget."""
        for plan in plans:
            self._carry_out(plan, search)

    def _carry_out(self, plan: TrialPlan, search: Search) -> None:
        if not self.ending.begins(plan, search):
            return
        folder = self.folder / plan.name
        try:
            if self.uri is not None:
                fetch_checkpoint(self.uri, plan.name, folder, run_identity(search.ledger.folder))
            trial = Trial(plan, search.study, folder)
            while not trial.finished:
                with raises_when_still(lambda: trial.progress, search.study.resources.step_limit_s):
                    report = trial.advance()
                if self.uri is not None:
                    upload_checkpoint(self.uri, plan.name, folder)
                self.ending.measure(report)
                if not (search.report(report) and self.ending.goes_on(report, plan)):
                    break
        except RunError:
            raise  # The run directory is unusable, for every other trial too.
        except Exception as error:
            search.fail(as_failure(plan.number, error))
