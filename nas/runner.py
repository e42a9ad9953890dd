"""Runs a study from its first trial to the exported winner; the same call again goes on where it was interrupted."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from nas.ledger import Ledger
from nas.records import TrialPlan
from nas.results import Run
from nas.search import Listener, Search
from nas.study import Study

EXPORTS = "export"


class Executor(Protocol):
    """What carries out plans."""

    def search(self, search: Search) -> None:
        """Train until the search hands out nothing more."""

    def finish(self, search: Search, plans: list[TrialPlan]) -> None:
        """Train the chosen trials on."""


def run_study(
    study: Study, folder: Path, *, in_process: bool = False, address: str | None = None, listeners: tuple[Listener, ...] = ()
) -> Run:
    """Search, train the best on, export and sample them; returns the run as it is then.

    `folder` is the run directory, new or an earlier run of the same study. Trials run on Ray, or one after the other
    in this process. Raises NasError for a study or directory that cannot be run, before anything is trained.
    """
    study.check_runs()
    ledger = Ledger(folder)
    try:
        search = Search(study, ledger, listeners)
        with _executor(search, folder, in_process, address) as executor:
            if executor is not None:
                executor.search(search)
                executor.finish(search, search.finish_plans())
        _export_best(search, folder)
        return search.run
    finally:
        ledger.close()


def _executor(search: Search, folder: Path, in_process: bool, address: str | None) -> AbstractContextManager[Executor | None]:
    if search.complete:
        return nullcontext(None)
    if in_process:
        from nas.in_process import InProcess

        return nullcontext(InProcess(folder / "trials"))
    from nas.ray_runner import OnRay

    return OnRay(folder, address)


def _export_best(search: Search, folder: Path) -> None:
    from nas.export import SAMPLES, export, write_samples
    from space.weights import facts_of

    for trial in search.run.best(search.study.finish.best if search.study.finish else 1):
        out = folder / EXPORTS / trial.name
        if trial.exported and (out / SAMPLES).exists():
            continue
        model = export(search.study, trial, folder, out)
        write_samples(model, facts_of(out), search.study.evaluation.samples, out / SAMPLES)
        search.exported(trial, f"{EXPORTS}/{trial.name}")
