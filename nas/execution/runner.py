"""Runs a study from its first trial to the exported winner; the same call resumes an interrupted run."""

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
from nas.runs.winners import winners
from nas.search.controller import Listener, Search
from nas.study.study import Study
from space.errors import DataError, RunError, StudyError


class Executor(Protocol):
    """Carries out plans. Entering it starts the workers, and raises ToolkitError when no trial could run."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def smoke(self, study: Study) -> Smoke:
        """Train a step of the cheapest and the dearest architecture where trials will run; raises ToolkitError when one fails."""

    def search(self, search: Search) -> None:
        """Train the search's plans until it has no more."""

    def finish(self, search: Search, plans: list[TrialPlan]) -> None:
        """Train the trials of the finish to their larger budget."""


def run_study(
    study: Study,
    out: Path | str,
    *,
    in_process: bool = False,
    address: str | None = None,
    listeners: tuple[Listener, ...] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Run:
    """Search, train the best trials on, export them and draw their samples. Of an ablation, a row that is claimed to be better is.

    Args:
        study: The study.
        out: The run directory, a path or a URI. If it holds an earlier run of the same study, that run is resumed.
        in_process: Train one trial after the other in this process, without Ray.
        address: A running Ray cluster; None starts one on this machine.
        listeners: Called with every event and the run.
        say: Called with each line of the smoke step, with which a new run begins, and where a winner cannot be exported.

    Returns:
        The run at its end.

    Raises:
        ToolkitError: If the study, its data, the directory or the cluster cannot be used; this is checked before training.
        RunError: If the run cannot continue: the directory became unusable, the first trials all failed, or Ray was interrupted.
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
            # Start the workers first, so that nothing is written when no trial can run.
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
                # Ray Tune returns early on SIGUSR1.
                raise RunError(f"{folder}: interrupted; the same command goes on from the last rungs")
            # Repeat for trials whose worker died.
            while plans := search.finish_plans():
                executor.finish(search, plans)
        _export_winners(search, folder, mirror, say)
        return search.run


def _executor(study: Study, where: RunLocation, in_process: bool, address: str | None) -> Executor:
    if in_process:
        if study.tracking:
            raise StudyError("tracking goes through Ray; remove --in-process, or tracking")
        from nas.execution.local_executor import LocalExecutor

        return LocalExecutor(where.folder / TRIALS, where.uri)
    if address is None:
        # Ray reads this at import: the cluster that we start listens on loopback only, as on systems other than Linux.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from nas.execution.ray_executor import RayExecutor
    from nas.execution.tracking import callbacks

    return RayExecutor(
        where.folder, study.resources, address, uri=where.uri, callbacks=callbacks(study.tracking, study, where.folder)
    )


def _export_winners(search: Search, folder: Path, mirror: Mirror | None, say: Callable[[str], None]) -> None:
    """Export what is due; an export that cannot be made is told, because the run's results are there all the same."""
    from nas.training.export import export, export_due, exported, write_evaluation, write_samples
    from space.weights import facts_of

    study = search.study
    for trial in winners(search.run):
        out = folder / EXPORTS / trial.name
        if mirror is not None:
            mirror.fetch_folder(f"{EXPORTS}/{trial.name}")
        wanted = [SAMPLES] if study.evaluation.fid is None else [SAMPLES, EVALUATION]
        if not export_due(study, trial) and all((out / name).exists() for name in wanted):
            continue
        try:
            if mirror is not None:
                mirror.fetch_checkpoint(trial.name)
            model = export(study, trial, folder, out)
        except RunError as error:
            say(f"trial {trial.number} is not exported: {error}")
            continue
        reason = None
        try:
            if study.evaluation.fid is not None:
                write_evaluation(model, facts_of(out), study, out / EVALUATION)
            write_samples(model, facts_of(out), study.evaluation.samples, out / SAMPLES)
        except DataError as error:
            # The VAE is not on this machine. The model is exported all the same, and the same command draws samples later.
            reason = str(error)
        search.record(exported(study, trial, reason))
