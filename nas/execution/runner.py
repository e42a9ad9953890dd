"""Runs a study from its first trial to the exported winner; the same call resumes an interrupted run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from nas.execution.ending import GOES_ON, Ending, UnfinishedError
from nas.execution.preflight import check_confirmation, check_data, check_place
from nas.execution.smoke import Smoke, calibration_line, smoke_lines
from nas.execution.threads import threads
from nas.runs.confirmations import candidates_of, confirmed_by, fresh_study
from nas.runs.explanations import explained_by, explanation_of
from nas.runs.layout import CONFIRMATION, EVALUATION, EXPLANATION, EXPORTS, LEDGER, SAMPLES, SIMPLIFICATION, TRIALS
from nas.runs.ledger import Ledger
from nas.runs.mirror import Mirror
from nas.runs.records import TrialPlan
from nas.runs.remote import RunLocation, locate
from nas.runs.run import Run
from nas.runs.winners import winners
from nas.search.controller import Listener, Search, source_of
from nas.study.explanation import explanation_study, simplified_study
from nas.study.study import Study
from space.errors import RunError, StudyError, ToolkitError
from space.files import first_line

View = Callable[[Path], AbstractContextManager[Listener]]


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
    ending: Ending | None = None,
    view: View | None = None,
    exports: bool = True,
) -> Run:
    """Search, confirm and train the best trials on, export them and draw their samples.

    Of an ablation, a row that is claimed to be better is exported. With `study.confirm`, the best trials of the search are compared
    with the baseline in a run of its own, in the folder `confirm` of the run directory, before any of them is finished or exported.

    Args:
        study: The study.
        out: The run directory, a path or a URI. If it holds an earlier run of the same study, that run is resumed.
        in_process: Train one trial after the other in this process, without Ray.
        address: A running Ray cluster; None starts one on this machine.
        listeners: Called with every event and the run.
        say: Called with each line of the smoke step, with which a new run begins, of the sampling, with which it ends, and where a
            winner cannot be exported.
        ending: Says when the run ends before it is done; by default only when a signal asks for it.
        view: Makes a context whose value is a further listener, for the run directory and then for that of the confirmation.
        exports: Whether winners are exported, sampled and evaluated; without it, `nas export` does so later.

    Returns:
        The run at its end.

    Raises:
        ToolkitError: If the study, its data, the directory or the cluster cannot be used; this is checked before training.
        RunError: If the run cannot continue: the directory became unusable, or the first trials all failed. `UnfinishedError`, a
            RunError, if it ended at its rungs as it was asked to.
        Ended: A KeyboardInterrupt, after SIGTERM and where the wall time is over.
    """
    where = locate(out) if isinstance(out, str) else RunLocation(out)
    runs = _Runs(in_process, address, listeners, say, ending or Ending(), view, exports)
    check_confirmation(study)
    run = runs.carry_out(study, where)
    while run.study.confirm and run.candidates and run.confirmed is None:
        confirmation = fresh_study(run)
        say(f"confirm: {', '.join(row.variant for row in confirmation.rows)}, with seeds from {confirmation.training.seed} on")
        fresh = runs.carry_out(confirmation, where.inside(CONFIRMATION), exports=False)
        run = runs.carry_out(study, where, fresh)
    if study.explain and run.confirmed is not None:
        _explain(run, where, runs)
    return run


def _explain(run: Run, where: RunLocation, runs: _Runs) -> None:
    """Take back the winner's differences one at a time, and compare the winner without those that carry nothing."""
    if run.confirmed is not None and not run.confirmed.result.claimed:
        runs.say(f"nothing is explained: no candidate is claimed to be better than {run.confirmed.result.baseline}")
        return
    explained = explained_by(run)
    runs.say(f"explain: {', '.join(explained.differences)}, which separate {explained.name} from {explained.baseline_name}")
    if explained.left_out:
        runs.say(f"left out: {', '.join(explained.left_out)}")
    study = explanation_study(run.study, explained)
    found = explanation_of(explained, runs.carry_out(study, where.inside(EXPLANATION), exports=False))
    simplified = found.simplified
    if simplified is not None:
        runs.say(f"simplify: {explained.name} without {', '.join(found.passengers)}")
        runs.carry_out(simplified_study(run.study, explained, simplified), where.inside(SIMPLIFICATION), exports=False)


@dataclass(frozen=True)
class _Runs:
    """How the runs of one call are carried out, one after the other."""

    in_process: bool
    address: str | None
    listeners: tuple[Listener, ...]
    say: Callable[[str], None]
    ending: Ending
    view: View | None
    exports: bool

    def carry_out(self, study: Study, where: RunLocation, fresh: Run | None = None, *, exports: bool = True) -> Run:
        """Carry out one run, as far as it goes; with the run of fresh seeds, note first what it says of the candidates."""
        study.check_runs()
        check_data(study)
        check_place(study)
        # Before anything is written or started: what cannot be made must leave no directory that refuses the mended study.
        source = source_of(study)
        folder, mirror = where.folder, Mirror(where) if where.uri else None
        executor = _executor(study, where, self.in_process, self.address, self.ending)
        listeners = self.listeners
        with ExitStack() as stack:
            stack.enter_context(threads(study.resources.cpu))
            stack.enter_context(self.ending)
            if mirror is not None:
                stack.enter_context(mirror)
                listeners = (*listeners, mirror)
            if self.view is not None:
                listeners = (stack.enter_context(self.view(folder)), *listeners)
            new = not (folder / LEDGER).exists()
            if new:
                # Start the workers first, so that nothing is written when no trial can run.
                stack.enter_context(executor)
                self._smoke(study, executor, folder)
            ledger = stack.enter_context(closing(Ledger(folder)))
            if ledger.note:
                self.say(ledger.note)
            search = Search(study, ledger, listeners, source)
            if fresh is not None and search.run.confirmed is None:
                search.record(confirmed_by(search.run, fresh))
            if not search.complete:
                if not new:
                    stack.enter_context(executor)
                self._train(search, executor, where)
            if study.confirm and not search.run.candidates:
                self._choose(search)
            if self.exports and exports:
                _export_winners(search, folder, mirror, self.say)
            return search.run

    def _smoke(self, study: Study, executor: Executor, folder: Path) -> None:
        if (folder.parent / LEDGER).exists():
            return  # The search has just trained there.
        for line in smoke_lines(executor.smoke(study)):
            self.say(line)
        if study.search:
            self.say(calibration_line(study, folder.parent))

    def _train(self, search: Search, executor: Executor, where: RunLocation) -> None:
        """Search, and finish the best; raises RunError where the search gives up or is asked to end."""
        executor.search(search)
        if search.gave_up is not None:
            raise RunError(f"{where}: {search.gave_up}; mend that, and run the same command again")
        if search.may_come:
            # Ray Tune returns early on SIGUSR1, if that comes before the run listens to it.
            raise UnfinishedError(f"{where}: {self.ending.reason or 'interrupted'}; {GOES_ON}")
        # Repeat for trials whose worker died.
        while plans := search.finish_plans():
            if self.ending.reason:
                raise UnfinishedError(f"{where}: {self.ending.reason}; {GOES_ON}")
            executor.finish(search, plans)

    def _choose(self, search: Search) -> None:
        """Note who is confirmed, before any fresh seed is drawn."""
        confirm, chosen = search.study.confirm, candidates_of(search.run)
        assert confirm is not None
        if chosen is None:
            self.say("nothing is confirmed: no trial that differs from the baseline is complete")
            return
        if len(chosen.trials) < confirm.best:
            self.say(f"confirm.best is {confirm.best}, but {len(chosen.trials)} complete architectures differ from the baseline")
        search.record(chosen)


def _executor(study: Study, where: RunLocation, in_process: bool, address: str | None, ending: Ending) -> Executor:
    if in_process:
        if study.tracking:
            raise StudyError("tracking goes through Ray; remove --in-process, or tracking")
        from nas.execution.local_executor import LocalExecutor

        return LocalExecutor(where.folder / TRIALS, where.uri, ending)
    if address is None:
        # Ray reads this at import: the cluster that we start listens on loopback only, as on systems other than Linux.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        # Ray looks it up at import.
        Path.home()
    except RuntimeError:
        raise ToolkitError(
            "Ray needs a home directory, and this user has none; set HOME to a folder that can be written, or use --in-process"
        ) from None
    from nas.execution.ray_executor import RayExecutor
    from nas.execution.tracking import callbacks

    trackers = callbacks(study.tracking, study, where.folder)
    return RayExecutor(where.folder, study.resources, address, uri=where.uri, ending=ending, callbacks=trackers)


def _export_winners(search: Search, folder: Path, mirror: Mirror | None, say: Callable[[str], None]) -> None:
    """Export what is due; an export that cannot be made is told, because the run's results are there all the same."""
    from nas.training.export import export, export_due, exported, write_evaluation, write_samples
    from space.weights import facts_of

    study = search.study
    for trial in winners(search.run):
        out = folder / EXPORTS / trial.name
        if mirror is not None:
            mirror.fetch_folder(f"{EXPORTS}/{trial.name}")
        grid, fid = study.evaluation.samples, study.evaluation.fid
        wanted = [name for name, settings in ((SAMPLES, grid), (EVALUATION, fid)) if settings is not None]
        if not export_due(study, trial) and all((out / name).exists() for name in wanted):
            continue
        try:
            if mirror is not None:
                mirror.fetch_checkpoint(trial.name)
            model = export(search.run, trial, folder, out)
        except RunError as error:
            say(f"trial {trial.number} is not exported: {error}")
            continue
        reason = None
        if grid is None:
            # A grid of an earlier state of the trial does not show these weights.
            (out / SAMPLES).unlink(missing_ok=True)
        try:
            if fid is not None:
                bar = Told(f"evaluation of {trial.name}", fid.samples * len(fid.seeds), say)
                write_evaluation(model, facts_of(out), study, out / EVALUATION, bar)
            if grid is not None:
                classes = grid.classes(trial.spec.num_classes)
                bar = Told(
                    f"samples of {trial.name}, {len(classes)} of {trial.spec.num_classes} classes",
                    grid.per_class * len(classes),
                    say,
                )
                write_samples(model, facts_of(out), grid, out / SAMPLES, classes, bar=bar)
        except Exception as error:
            # Such as a VAE that is not on this machine, or too little memory. The model is exported all the same, and the same
            # command draws samples later.
            reason = first_line(error)
        search.record(exported(study, trial, reason))


class Told:
    """Says how many of a number of images have been sampled: at the first, at most every `EVERY_S` seconds, and at the last."""

    EVERY_S = 10.0

    def __init__(self, what: str, total: int, say: Callable[[str], None]) -> None:
        self.what, self.total, self.say, self.done = what, total, say, 0
        self._start = self._said = time.monotonic()
        say(f"{what}: {total:,} images")

    def __call__(self, count: int) -> None:
        """Count images; 0 is no news."""
        if not count:
            return
        self.done += count
        now = time.monotonic()
        if self.done >= self.total or now - self._said >= self.EVERY_S:
            self._said = now
            self.say(f"{self.what}: {self.done:,} of {self.total:,} images after {now - self._start:.0f} s")
