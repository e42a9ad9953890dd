"""The command `nas calibrate`: how much of the spread of a study's scores is architecture, and under which protocol most of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nas.cli.bill import check_study, run_so_far
from nas.cli.command import Command
from space.errors import RunError, StudyError, ToolkitError

if TYPE_CHECKING:
    from nas.runs.calibrations import Calibration
    from nas.runs.remote import RunLocation
    from nas.runs.run import Run
    from nas.study.calibration import TrainingProtocol
    from nas.study.study import Study

    Planned = list[tuple[TrainingProtocol, Study]]

TRAINING = "training.yaml"
"""In the folder of a calibration: what a study writes to train by the recommended protocol."""


@click.command("calibrate", cls=Command)
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--architectures", default=6, show_default=True, type=click.IntRange(2), help="How many of the study's to train.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(2), help="Seeds of each under every protocol.")
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    metavar="'NAME: KEY=VALUE, …'",
    help="A protocol to compare with the study's own, as changes to it; may be repeated. Takes the place of the default ones.",
)
@click.option("--reference", metavar="BUDGET", help="Train the same architectures to a longer budget too, to be compared with.")
@click.option("--reference-seeds", default=1, show_default=True, type=click.IntRange(1), help="Seeds of the reference, others.")
@click.option("--out", help="The folder for a run per protocol, a path or a URI; runs/NAME-calibration by default.")
@click.option("--address", envvar="RAY_ADDRESS", help="A running Ray cluster; one is started on this machine by default.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one key of the study; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Print what the calibration would cost and stop.")
@click.option("--rate", help="With --dry-run: the training speed of one trial, such as '40 TFLOP/s', from which hours follow.")
@click.option("--in-process", is_flag=True, help="Train one trial after the other in this process, without Ray.")
def calibrate_command(
    study: Path,
    architectures: int,
    seeds: int,
    protocols: tuple[str, ...],
    reference: str | None,
    reference_seeds: int,
    out: str | None,
    address: str | None,
    changes: tuple[str, ...],
    dry_run: bool,
    rate: str | None,
    in_process: bool,
) -> None:
    """Train a few architectures of a study with a few seeds under several protocols, and recommend one.

    Every protocol is a run of its own in the folder: the same command goes on, and tops up when it asks for more.
    """
    from nas.runs.remote import locate
    from nas.study.load import load_study

    loaded = load_study(study, list(changes))
    planned, notes = _planned(loaded, architectures, seeds, protocols, reference, reference_seeds)
    place = out or f"runs/{loaded.name}-calibration"
    for _, made in planned:
        check_study(made)
    if dry_run:
        _bill(loaded, planned, notes, locate(place), rate)
        return
    if rate:
        raise ToolkitError("--rate is for --dry-run: a run measures its own; leave it out, or add --dry-run")
    _train_and_tell(loaded, planned, notes, place, in_process, address)


def _planned(
    study: Study, architectures: int, seeds: int, protocols: Sequence[str], reference: str | None, reference_seeds: int
) -> tuple[Planned, list[str]]:
    """The protocols with the ablations that train them, the reference last; and what is left out, and why."""
    from nas.study.calibration import (
        REFERENCE,
        calibration_architectures,
        calibration_study,
        default_protocols,
        own_and,
        parse_protocol,
        reference_study,
    )

    specs = calibration_architectures(study, architectures)
    notes = []
    if len(specs) < architectures:
        notes.append(f"the study has {len(specs)} architectures, fewer than the {architectures} asked for")
    given = [parse_protocol(text) for text in protocols]
    planned: Planned = []
    for protocol in own_and(given or default_protocols(study, specs)):
        try:
            planned.append((protocol, calibration_study(study, protocol, specs, seeds)))
        except StudyError as error:
            if given or not protocol.changes:
                raise
            notes.append(str(error))
    if reference is not None:
        planned.append((REFERENCE, reference_study(study, specs, reference_seeds, reference)))
    return planned, notes


def _bill(study: Study, planned: Planned, notes: Sequence[str], where: RunLocation, rate: str | None) -> None:
    """Print what a calibration would cost, and what is left of one that has begun."""
    from nas.reporting.calibration_estimate import calibration_estimate
    from nas.runs.throughput import Throughput, throughput_of_run
    from space.amounts import macs_per_second

    concurrent = study.resources.concurrent or 1
    throughput = Throughput(macs_per_second(rate), concurrent, "as given by --rate") if rate else None
    left = {}
    for protocol, made in planned:
        begun = run_so_far(made, where.inside(protocol.folder))
        if begun is not None:
            run, left[protocol.folder] = begun[0], round(begun[1])
            throughput = throughput or throughput_of_run(run, concurrent)
    click.echo(calibration_estimate(study, planned, left, notes, throughput))


def _train_and_tell(
    study: Study, planned: Planned, notes: Sequence[str], place: str, in_process: bool, address: str | None
) -> None:
    """Run every protocol, print what they tell, and write it."""
    import warnings

    from rich.console import Console

    from nas.cli.conclude import print_text
    from nas.execution.runner import run_study
    from nas.reporting.console import progress_view
    from nas.runs.calibrations import write_calibration
    from nas.runs.remote import locate, remote_at
    from nas.study.calibration import REFERENCE

    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    console = Console(width=None if sys.stdout.isatty() else 160)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    for note in notes:
        say(f"left out: {note}")
    runs: list[tuple[TrainingProtocol, Run]] = []
    for number, (protocol, made) in enumerate(planned, start=1):
        where = locate(place).inside(protocol.folder)
        say(f"\n{number} of {len(planned)}: {'; '.join([protocol.name, *protocol.changes])}")
        with progress_view(console, where.folder) as view:
            # A calibration asks how to train, not what to use: nobody wants the model of its best row, nor waits for its samples.
            run = run_study(
                made, where.uri or where.folder, in_process=in_process, address=address, listeners=(view,), say=say, exports=False
            )
        runs.append((protocol, run))
        for trial in run.trials.values():
            if trial.reason:
                say(f"trial {trial.number} failed: {trial.reason}")
    from analysis.search.calibration import calibration_of, calibration_table

    reference = next((run for protocol, run in runs if protocol == REFERENCE), None)
    found = calibration_of(study, [one for one in runs if one[0] != REFERENCE], reference)
    print_text(console, calibration_table(found), f"Calibration of {study.name}: {found.metric} at {_trained(found)}")
    say(f"\n{found.verdict}")
    where = locate(place)
    try:
        written = [write_calibration(found, where.folder), where.folder / TRAINING]
        written[1].write_text(_fragment(study, found, [protocol for protocol, _ in runs]), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{where.folder}: {error.strerror}; make room there and run the same command again") from None
    for path in written:
        if where.uri:
            remote_at(where.uri).upload(path, path.name)
        say(f"{path.stem:16s} {path}")


def _trained(found: Calibration) -> str:
    own = found.rows[0]
    return f"{len(found.architectures)} architectures × {own.planned // len(found.architectures)} seeds"


def _fragment(study: Study, found: Calibration, protocols: Sequence[TrainingProtocol]) -> str:
    """The text of `TRAINING`."""
    import textwrap

    import yaml

    from nas.study.calibration import recommended

    protocol = next(one for one in protocols if one.name == found.protocol)
    values: dict[str, Any] = recommended(study, protocol, found.rung)
    about = f"Calibration of {study.name}: '{protocol.name}' up to rung {found.rung}; {found.verdict}."
    use = "Put this in place of the study's own sections of these names, or let a study without them extend this file."
    if "finish" in values:
        use += " A decay ends every trial's training, so there is no finish after it."
    head = textwrap.wrap(f"{about} {use}", 110, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"# {line}" for line in head) + "\n" + yaml.safe_dump(values, sort_keys=False)
