"""The command line. Commands import heavy packages themselves, so `--help` is fast."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from nas.cli import data as data_commands
from nas.cli import evaluate as evaluate_commands
from nas.cli import models as model_commands
from nas.cli import replay as replay_commands
from nas.cli.command import SOME_FAILED, Group
from space.errors import ToolkitError


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="udit-nas", prog_name="nas")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(debug: bool) -> None:
    """Architecture search and ablation of U-shaped diffusion transformers.

    Exit codes: 0 done; 1 finished, with failed trials; 2 a mistake of yours, told in one sentence.
    """


_changes = click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one key of the study; may be repeated."
)
_study = click.argument("study", type=click.Path(path_type=Path))
_run = click.argument("run")


def _here(run: str) -> Path:
    """The run directory on this machine: the path itself, or for a URI its mirror, brought up to date."""
    from nas.runs.remote import is_uri

    if not is_uri(run):
        return Path(run)
    from nas.runs.mirror import fetch

    return fetch(run)


@main.command("run")
@_study
@click.option("--out", help="The run directory, a path or a URI such as s3://BUCKET/runs/NAME; runs/NAME by default.")
@click.option("--address", envvar="RAY_ADDRESS", help="A running Ray cluster; one is started on this machine by default.")
@_changes
@click.option("--dry-run", is_flag=True, help="Print what the study would cost and stop.")
@click.option("--in-process", is_flag=True, help="Train one trial after the other in this process, without Ray.")
def run_command(
    study: Path, out: str | None, address: str | None, changes: tuple[str, ...], dry_run: bool, in_process: bool
) -> None:
    """Run a study; the same command again goes on or tops up."""
    from nas.study.load import load_study

    loaded = load_study(study, list(changes))
    if dry_run:
        from nas.reporting.ablation_estimate import ablation_estimate
        from nas.reporting.estimate import estimate
        from nas.runs.layout import LEDGER
        from nas.runs.remote import is_uri, locate
        from nas.runs.run import read_run
        from nas.runs.throughput import throughput_of_run

        folder = locate(out or f"runs/{loaded.name}").folder
        begun = (folder / LEDGER).exists()
        throughput = throughput_of_run(read_run(folder), loaded.resources.concurrent or 1) if begun else None
        root = Path(out).parent if out and not is_uri(out) else Path("runs")
        click.echo(ablation_estimate(loaded, root, throughput) if loaded.ablation else estimate(loaded, throughput))
        return
    import warnings

    from rich.console import Console

    from analysis.runs.data import load
    from nas.cli.conclude import conclude_ablation, conclude_search
    from nas.execution.runner import run_study
    from nas.reporting.console import progress_view
    from nas.runs.layout import EVALUATION, SAMPLES
    from nas.runs.remote import locate, remote_at
    from nas.runs.winners import winners

    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    where = locate(out or f"runs/{loaded.name}")
    folder = where.folder
    # Output to a file or a pipe is not limited to the width of a terminal.
    console = Console(width=None if sys.stdout.isatty() else 160)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    with progress_view(console, folder) as view:
        finished = run_study(loaded, where.uri or folder, in_process=in_process, address=address, listeners=(view,), say=say)
    figures = (conclude_ablation if loaded.ablation else conclude_search)(console, load(finished), folder)
    if where.uri:
        for figure in figures:
            remote_at(where.uri).upload(figure, figure.name)
        console.print(f"all of it at     {where}", highlight=False, soft_wrap=True)
    chosen = winners(finished)
    if not chosen:
        none = (
            "none: no row is better than its baseline by the rule of the tables"
            if loaded.ablation
            else "none: no trial is complete"
        )
        asked = f"; for the best mean, `nas export {where.uri or folder} --select best`" if finished.best() else ""
        say(f"exported winner  {none}{asked}")
    for trial in chosen:
        if trial.export is None:
            continue  # Why was said above.
        console.print(f"exported winner  {folder / trial.export.folder}", highlight=False, soft_wrap=True)
        reason = trial.export.without_samples
        drawn = f"none: {reason}" if reason else folder / trial.export.folder / SAMPLES
        console.print(f"samples          {drawn}", highlight=False, soft_wrap=True)
        if loaded.evaluation.fid is not None and not reason:
            console.print(f"evaluation       {folder / trial.export.folder / EVALUATION}", highlight=False, soft_wrap=True)
    failed = [(t.number, t.reason or t.finish_failure) for t in finished.trials.values() if t.reason or t.finish_failure]
    for number, reason in failed:
        console.print(f"trial {number} failed: {reason}", highlight=False, soft_wrap=True)
    if failed:
        sys.exit(SOME_FAILED)


@main.command("validate")
@click.argument("studies", nargs=-1, required=True, type=click.Path(path_type=Path))
def validate_command(studies: tuple[Path, ...]) -> None:
    """Check studies without training."""
    from nas.data.sources import is_absent
    from nas.execution.preflight import check_data
    from nas.study.load import load_study

    for path in studies:
        study = load_study(path)
        study.check_runs()
        if not study.data.expected or not is_absent(study.data):
            check_data(study)
        what = f"{study.census.share:.1%} of the space is feasible" if study.search else f"{len(study.rows)} rows"
        absent = f"; its data, {study.data.source}, are not here" if is_absent(study.data) else ""
        click.echo(f"{path}: fine; {what}{absent}")


@main.command("status")
@_run
def status_command(run: str) -> None:
    """Print how far a run is, the best so far, the rungs, and failures."""
    from nas.reporting.console import status_lines
    from nas.runs.ledger import read_events
    from nas.search.state import read_state

    folder = _here(run)
    events = list(read_events(folder))
    click.echo("\n".join(status_lines(read_state(folder, events).run, events)))


@main.command("table")
@_run
@click.option("--format", "form", default="md", type=click.Choice(["md", "latex", "csv"]), show_default=True)
@click.option("--metric", help="Of an ablation: what to compare; the study's metric by default.")
def table_command(run: str, form: str, metric: str | None) -> None:
    """Print the table of a run: a search's ranking, or an ablation's comparisons."""
    from analysis.runs.data import load
    from analysis.runs.tables import ranking_table, render

    data = load(_here(run))
    if data.study.ablation:
        from analysis.ablation.tables import ablation_tables
        from analysis.ablation.text import render_tables

        click.echo(render_tables(ablation_tables(data, metric), form), nl=False)
    elif metric:
        raise ToolkitError("--metric is for ablations; a search ranks by its objectives")
    else:
        click.echo(render(ranking_table(data), form), nl=False)


@main.command("optuna-export")
@_run
@click.argument("storage")
@click.option("--name", help="The study's name there; the run's study's by default.")
def optuna_export_command(run: str, storage: str, name: str | None) -> None:
    """Write a run to an Optuna STORAGE, such as sqlite:///run.db or run.log, for optuna-dashboard."""
    from nas.search.optuna_export import export_run

    click.echo(f"{export_run(_here(run), storage, name)} trials exported")


@main.command("export")
@_run
@click.option("--select", "which", default="best", show_default=True, metavar="best|pareto:K|TRIAL", help="Which trials.")
@click.option("--ema", type=float, help="Which of the study's averaged weights, by their decay; the first by default.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder to write to; RUN/export by default.")
def export_command(run: str, which: str, ema: float | None, out: Path | None) -> None:
    """Write trials as model folders: spec, folded weights, card."""
    from nas.runs.layout import EXPORTS, TRIALS
    from nas.runs.ledger import run_identity
    from nas.runs.remote import fetch_checkpoint, is_uri, remote_at
    from nas.runs.run import read_run
    from nas.training.export import export, select

    here = _here(run)
    recorded = read_run(here)
    for trial in select(recorded, which):
        if is_uri(run):
            fetch_checkpoint(run, trial.name, here / TRIALS / trial.name, run_identity(here))
        folder = (out or here / EXPORTS) / trial.name
        export(recorded.study, trial, here, folder, ema)
        if is_uri(run) and out is None:
            remote_at(run).upload_folder(folder, f"{EXPORTS}/{trial.name}")
        click.echo(str(folder))


@main.command("sample")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--classes", help="Labels such as 0,3,9; all by default.")
@click.option("--per-class", default=8, show_default=True, type=click.IntRange(1), help="Images a class.")
@click.option("--sampler", type=evaluate_commands.SAMPLER_CHOICE, help="ddim, or heun for a flow, by default.")
@click.option("--steps", default=50, show_default=True, type=click.IntRange(1, 1000), help="Steps of the sampler.")
@click.option("--cfg", default=2.0, show_default=True, help="Guidance; 1 is none.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("samples.png"), show_default=True)
def sample_command(
    model: Path, classes: str | None, per_class: int, sampler: str | None, steps: int, cfg: float, seed: int, out: Path
) -> None:
    """Write a grid of images sampled from an exported model."""
    from nas.study.settings import SampleSettings
    from nas.training.export import write_samples
    from space.document import parse
    from space.weights import facts_of, load

    try:
        labels = [int(label) for label in classes.split(",")] if classes else None
    except ValueError:
        raise ToolkitError(f"--classes {classes}: write labels such as 0,3,9") from None
    settings = parse(SampleSettings, {"per_class": per_class, "sampler": sampler, "steps": steps, "guidance": cfg, "seed": seed})
    write_samples(load(model), facts_of(model), settings, out, labels)
    click.echo(str(out))


main.add_command(model_commands.cost_command)
main.add_command(model_commands.presets_command)
main.add_command(model_commands.import_official_command)
main.add_command(data_commands.data_group)
main.add_command(evaluate_commands.evaluate_command)
main.add_command(replay_commands.replay_command)
