"""Runs a study for a command and tells what came out: progress, results, and what was exported."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nas.cli.command import SOME_FAILED

if TYPE_CHECKING:
    from nas.execution.ending import Ending
    from nas.study.study import Study


def with_section(study: Study, section: str, given: Mapping[str, object]) -> Study:
    """A recorded study with options of a command as keys of a section; those that are None stay as the study has them."""
    from nas.study.overrides import apply_override
    from nas.study.study import Study
    from space.document import parse

    data = study.model_dump(mode="json")
    data[section] = data[section] or {}
    for key, value in given.items():
        if value is not None:
            apply_override(data, f"{section}.{key}={value}")
    return parse(Study, data, context={"header": study.header})


def run_and_tell(study: Study, out: str, *, in_process: bool, address: str | None, ending: Ending) -> None:
    """Run a study into a directory or URI and print what came out; exits with `SOME_FAILED` where trials failed."""
    import warnings

    from rich.console import Console

    from nas.cli.conclude import beside, conclude_ablation, conclude_search, tell_winners
    from nas.execution.runner import run_study
    from nas.reporting.console import called, progress_view
    from nas.runs.confirmations import conclusion
    from nas.runs.remote import locate, remote_at
    from nas.study.rows import names_of

    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    where = locate(out)
    folder = where.folder
    # Output to a file or a pipe is not limited to the width of a terminal.
    console = Console(width=None if sys.stdout.isatty() else 160)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    finished = run_study(
        study,
        where.uri or folder,
        in_process=in_process,
        address=address,
        say=say,
        ending=ending,
        view=lambda folder: progress_view(console, folder),
    )
    figures: list[Path] = []
    with beside(console, "results"):
        from analysis.runs.data import load

        figures = (conclude_ablation if study.ablation else conclude_search)(console, load(finished), where)
    if where.uri:
        for figure in figures:
            with beside(console, figure.name):
                remote_at(where.uri).upload(figure, figure.name)
        console.print(f"all of it at     {where}", highlight=False, soft_wrap=True)
    tell_winners(console, finished, where.uri or folder, folder)
    if not study.ablation and (sentence := conclusion(finished)):
        say(f"\n{sentence}")
    failed = [trial for trial in finished.trials.values() if trial.reason or trial.finish_failure]
    names = names_of(finished.study.rows)
    for trial in failed:
        say(f"{called(trial, names)} failed: {trial.reason or trial.finish_failure}")
    if failed:
        sys.exit(SOME_FAILED)
