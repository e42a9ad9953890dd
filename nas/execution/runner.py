"""Runs a study from its first trial to the exported winner; the same call again goes on where it was interrupted."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Protocol, Self

from nas.execution.preflight import check_data
from nas.execution.smoke import Smoke, smoke_lines
from nas.runs.layout import EVALUATION, EXPORTS, LEDGER, SAMPLES, TRIALS
from nas.runs.ledger import Ledger
from nas.runs.mirror import Mirror
from nas.runs.records import TrialPlan
from nas.runs.remote import RunLocation, locate
from nas.runs.run import Run
from nas.search.controller import Listener, Search
from nas.study.study import Study
from space.errors import DataError, RunError, StudyError


class Executor(Protocol):
    """What carries out plans; entering it starts what it needs, and raises ToolkitError when no trial could be run."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def smoke(self, study: Study) -> Smoke:
        """Let the cheapest and the dearest architecture take a step where trials will run; raises ToolkitError when they cannot."""

    def search(self, search: Search) -> None:
        """Train until the search hands out nothing more."""

    def finish(self, search: Search, plans: list[TrialPlan]) -> None:
        """Train the chosen trials on."""


def run_study(
    study: Study,
    out: Path | str,
    *,
    in_process: bool = False,
    address: str | None = None,
    listeners: tuple[Listener, ...] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Run:
    """Search, train the best on, export and sample them; returns the run as it is then.

    `out` is the run directory, a path or a URI, new or an
    earlier run of the same study. Trials run on Ray, or one after the other in
    this process. `say` is given the lines of the smoke step, with which a new run begins. Raises ToolkitError for a study,
    data, directory or cluster that cannot be used, before anything is trained.
    """
    study.check_runs()
    check_data(study)
    where = locate(out) if isinstance(out, str) else RunLocation(out)
    folder, mirror = where.folder, Mirror(where) if where.uri else None
    executor = _executor(study, where, in_process, address)
    with ExitStack() as stack:
        if mirror is not None:
            stack.enter_context(mirror)
            listeners = (*listeners, mirror)
        new = not (folder / LEDGER).exists()
        if new:
            # Nothing is written unless trials can be run.
            stack.enter_context(executor)
            for line in smoke_lines(executor.smoke(study)):
                say(line)
        search = Search(study, stack.enter_context(closing(Ledger(folder))), listeners)
        if not search.complete:
            if not new:
                stack.enter_context(executor)
            executor.search(search)
            if search.gave_up is not None:
                raise RunError(f"{where}: {search.gave_up}; mend that, and run the same command again")
            if search.may_come:
                # Ray Tune returns early when it is told to stop (SIGUSR1).
                raise RunError(f"{folder}: interrupted; the same command goes on from the last rungs")
            # Again, for what was lost with its worker.
            while plans := search.finish_plans():
                executor.finish(search, plans)
        _export_best(search, folder, mirror)
        return search.run


def _executor(study: Study, where: RunLocation, in_process: bool, address: str | None) -> Executor:
    if in_process:
        if study.tracking:
            raise StudyError("tracking goes through Ray; remove --in-process, or tracking")
        from nas.execution.local_executor import LocalExecutor

        return LocalExecutor(where.folder / TRIALS, where.uri)
    if address is None:
        # Read when Ray is imported: a cluster of our own then listens on loopback alone, as it does elsewhere than on Linux.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from nas.execution.ray_executor import RayExecutor
    from nas.execution.tracking import callbacks

    return RayExecutor(
        where.folder, study.resources, address, uri=where.uri, callbacks=callbacks(study.tracking, study, where.folder)
    )


def _export_best(search: Search, folder: Path, mirror: Mirror | None) -> None:
    from nas.training.export import export, export_due, exported, write_evaluation, write_samples
    from space.weights import facts_of

    study = search.study
    for trial in search.run.best(study.finish.best if study.finish else 1):
        out = folder / EXPORTS / trial.name
        if mirror is not None:
            mirror.fetch_folder(f"{EXPORTS}/{trial.name}")
        wanted = [SAMPLES] if study.evaluation.fid is None else [SAMPLES, EVALUATION]
        if not export_due(study, trial) and all((out / name).exists() for name in wanted):
            continue
        if mirror is not None:
            mirror.fetch_checkpoint(trial.name)
        model = export(study, trial, folder, out)
        reason = None
        try:
            if study.evaluation.fid is not None:
                write_evaluation(model, facts_of(out), study, out / EVALUATION)
            write_samples(model, facts_of(out), study.evaluation.samples, out / SAMPLES)
        except DataError as error:
            # A VAE that is not on this machine: the model is trained all the same, and the same command draws samples later.
            reason = str(error)
        search.record(exported(study, trial, reason))
