"""The command line. Commands import heavy packages themselves, so `--help` is fast."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from nas.cli import calibrate as calibrate_commands
from nas.cli import confirm as confirm_commands
from nas.cli import data as data_commands
from nas.cli import evaluate as evaluate_commands
from nas.cli import explain as explain_commands
from nas.cli import export as export_commands
from nas.cli import models as model_commands
from nas.cli import replay as replay_commands
from nas.cli.bill import check_study, run_so_far
from nas.cli.command import MISTAKE, Group, run_argument, run_folder
from space.errors import Mistakes, ToolkitError


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="udit-nas", prog_name="nas")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(debug: bool) -> None:
    """Architecture search and ablation of U-shaped diffusion transformers.

    Exit codes: 0 done; 1 finished, with failed trials; 2 a mistake of yours, told in one sentence; 75 ended before it was done, as
    it was asked to; 130 and 143 ended by Ctrl-C and by SIGTERM. After the last three the same command goes on.
    """


_changes = click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one key of the study; may be repeated."
)
_study = click.argument("study", type=click.Path(path_type=Path))


@main.command("run")
@_study
@click.option("--out", help="The run directory, a path or a URI such as s3://BUCKET/runs/NAME; runs/NAME by default.")
@click.option("--address", envvar="RAY_ADDRESS", help="A running Ray cluster; one is started on this machine by default.")
@_changes
@click.option("--dry-run", is_flag=True, help="Print what the study would cost and stop.")
@click.option("--rate", help="With --dry-run: the training speed of one trial, such as '40 TFLOP/s', from which hours follow.")
@click.option("--in-process", is_flag=True, help="Train one trial after the other in this process, without Ray.")
@click.option("--walltime", metavar="DURATION", help="End in time, at rungs, before this time such as 3h50m is over.")
def run_command(
    study: Path,
    out: str | None,
    address: str | None,
    changes: tuple[str, ...],
    dry_run: bool,
    rate: str | None,
    in_process: bool,
    walltime: str | None,
) -> None:
    """Run a study; the same command again goes on or tops up."""
    from nas.cli.run import run_and_tell
    from nas.execution.ending import Ending, seconds_of
    from nas.study.load import load_study

    ending = Ending(seconds_of(walltime) if walltime else None)
    loaded = load_study(study, list(changes))
    if dry_run:
        _bill(loaded, out, rate)
        return
    if rate:
        raise ToolkitError("--rate is for --dry-run: a run measures its own; leave it out, or add --dry-run")
    run_and_tell(loaded, out or f"runs/{loaded.name}", in_process=in_process, address=address, ending=ending)


def _bill(study: Any, out: str | None, rate: str | None) -> None:
    """Print what a study would cost, and what is left of a run that exists; refuses what the run would refuse."""
    from nas.reporting.ablation_estimate import ablation_estimate, what_is_new
    from nas.reporting.confirmation_estimate import confirmation_estimate
    from nas.reporting.estimate import estimate, hours
    from nas.reporting.text import compute, line
    from nas.runs.remote import is_uri, locate
    from nas.runs.throughput import Throughput, throughput_of_run
    from space.amounts import macs_per_second

    check_study(study)
    where, concurrent = locate(out or f"runs/{study.name}"), study.resources.concurrent or 1
    throughput = Throughput(macs_per_second(rate), concurrent, "as given by --rate") if rate else None
    left = new = None
    begun = run_so_far(study, where)
    if begun is not None:
        run, left = begun
        new = what_is_new(study, run) if study.ablation else None
        throughput = throughput or throughput_of_run(run, concurrent)
    root = Path(out).parent if out and not is_uri(out) else Path("runs")
    click.echo(ablation_estimate(study, root, throughput) if study.ablation else estimate(study, throughput))
    if study.confirm:
        click.echo(confirmation_estimate(study, root, throughput))
    if new is not None:
        click.echo(line("new", f"{new}, beside {where.folder}"))
    if left is not None:
        time = f"; {hours(left, study.most_trials, throughput)}" if left and throughput else ""
        to_come = f"about {compute(left)} of training{time}" if left else "no training"
        click.echo(line("left", f"{to_come}; the rest of what stands above is done in {where.folder}"))


@main.command("validate")
@click.argument("studies", nargs=-1, required=True, type=click.Path(path_type=Path))
def validate_command(studies: tuple[Path, ...]) -> None:
    """Check studies without training; all mistakes are told, each with its line."""
    refused = False
    for path in studies:
        try:
            click.echo(f"{path}: fine; {_checked(path)}")
        except ToolkitError as error:
            refused = True
            for _, what in error.each if isinstance(error, Mistakes) else [((), str(error))]:
                click.echo(f"nas: {what}", err=True)
    if refused:
        sys.exit(MISTAKE)


def _checked(path: Path) -> str:
    """What a good study has; raises ToolkitError for another."""
    from nas.data.sources import is_absent
    from nas.reporting.estimate import never_feasible
    from nas.study.load import load_study

    study = load_study(path)
    check_study(study)
    what = f"{study.census.share:.1%} of the space is feasible" if study.search else f"{len(study.rows)} rows"
    absent = f"; its data, {study.data.source}, are not here" if is_absent(study.data) else ""
    never = "".join(f"\n  {text}" for text in never_feasible(study.census)) if study.search else ""
    return f"{what}{absent}{never}{_biased(study)}"


def _biased(study: Any) -> str:
    """A line on an ablation whose metric cannot order models with so few samples."""
    ablation, fid = study.ablation, study.evaluation.fid
    text = fid.biased_order(ablation.metric) if ablation and fid else ""
    return f"\n  ablation.metric: {text}" if text else ""


@main.command("status")
@run_argument
def status_command(run: str) -> None:
    """Print how far a run is, the best so far, the rungs, and failures."""
    from nas.reporting.console import status_lines
    from nas.runs.ledger import read_events
    from nas.runs.remote import is_uri
    from nas.runs.run_lock import driver_of
    from nas.search.state import read_state

    folder = run_folder(run)
    events = list(read_events(folder))
    driver = driver_of(folder, run if is_uri(run) else None)
    click.echo("\n".join(status_lines(read_state(folder, events).run, events, driver)))


@main.command("table")
@run_argument
@click.option("--format", "form", default="md", type=click.Choice(["md", "latex", "csv"]), show_default=True)
@click.option("--metric", help="Of an ablation: what to compare; the study's metric by default.")
@click.option("--rule", help="Of an ablation: the rule of the verdicts, hierarchical (variances of all rows together) or t.")
def table_command(run: str, form: str, metric: str | None, rule: str | None) -> None:
    """Print the table of a run: a search's ranking and, but in csv, its confirmation; or an ablation's comparisons."""
    from analysis.runs.data import load
    from analysis.runs.tables import ranking_table, render

    data = load(run_folder(run))
    if data.study.ablation:
        from analysis.ablation.tables import ablation_tables
        from analysis.ablation.text import render_tables
        from nas.stats.verdicts import RULE

        click.echo(render_tables(ablation_tables(data, metric, rule or RULE), form), nl=False)
    elif metric or rule:
        raise ToolkitError(f"--{'metric' if metric else 'rule'} is for ablations; a search ranks by its objectives")
    else:
        click.echo(render(ranking_table(data), form), nl=False)
        if data.run.confirmed is not None and form != "csv":
            from analysis.markup import latex_grid, markdown_grid
            from analysis.search.confirmation import confirmation_table
            from nas.runs.confirmations import conclusion

            grid = {"latex": latex_grid, "md": markdown_grid}[form](confirmation_table(data))
            comment = "% " if form == "latex" else ""
            click.echo(f"\n{grid.rstrip()}\n\n{comment}{conclusion(data.run)}")


@main.command("optuna-export")
@run_argument
@click.argument("storage")
@click.option("--name", help="The study's name there; the run's study's by default.")
def optuna_export_command(run: str, storage: str, name: str | None) -> None:
    """Write a run to an Optuna STORAGE, such as sqlite:///run.db or run.log, for optuna-dashboard."""
    from nas.search.optuna_export import export_run

    click.echo(f"{export_run(run_folder(run), storage, name)} trials exported")


main.add_command(model_commands.cost_command)
main.add_command(model_commands.presets_command)
main.add_command(model_commands.import_official_command)
main.add_command(calibrate_commands.calibrate_command)
main.add_command(confirm_commands.confirm_command)
main.add_command(data_commands.data_group)
main.add_command(evaluate_commands.evaluate_command)
main.add_command(explain_commands.explain_command)
main.add_command(export_commands.export_command)
main.add_command(export_commands.sample_command)
main.add_command(replay_commands.replay_command)
