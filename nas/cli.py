"""The command line; the one place that knows all packages. Heavy imports stand inside the commands, so `--help` is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from nas import cli_data, cli_evaluate, cli_models, cli_replay
from nas.cli_command import SOME_FAILED, Group
from space.errors import NasError


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
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
    """A run directory on this machine: the path itself, or the mirror of a URI, brought up to date."""
    from nas.remote import is_uri

    if not is_uri(run):
        return Path(run)
    from nas.mirror import fetch

    return fetch(run)


@main.command()
@_study
@click.option("--out", help="The run directory, a path or a URI such as s3://BUCKET/runs/NAME; runs/NAME by default.")
@click.option("--address", envvar="RAY_ADDRESS", help="A running Ray cluster; one is started on this machine by default.")
@_changes
@click.option("--dry-run", is_flag=True, help="Print what the study would cost and stop.")
@click.option("--in-process", is_flag=True, help="Train one trial after the other in this process, without Ray.")
def run(study: Path, out: str | None, address: str | None, changes: tuple[str, ...], dry_run: bool, in_process: bool) -> None:
    """Run a study; the same command again goes on or tops up."""
    from nas.study import load_study

    loaded = load_study(study, list(changes))
    if dry_run:
        from nas.bill import bill

        click.echo(bill(loaded))
        return
    import warnings

    from rich.console import Console

    from analysis.runs import frames
    from nas.live import progress_view
    from nas.remote import place, reached
    from nas.runner import run_study

    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    where = place(out or f"runs/{loaded.name}")
    folder = where.folder
    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    with progress_view(console) as view:
        finished = run_study(loaded, where.uri or folder, in_process=in_process, address=address, listeners=(view,), say=say)
    figures = _conclude(console, frames(finished), folder)
    if where.uri:
        for figure in figures:
            reached(where.uri).put(figure, figure.name)
        console.print(f"all of it at     {where}", highlight=False, soft_wrap=True)
    for trial in finished.best(loaded.finish.best if loaded.finish else 1):
        assert trial.export is not None, "a run ends with its winners exported"
        console.print(f"exported winner  {folder / trial.export['folder']}", highlight=False, soft_wrap=True)
        reason = trial.export.get("without_samples")
        drawn = f"none: {reason}" if reason else folder / trial.export["folder"] / "samples.png"
        console.print(f"samples          {drawn}", highlight=False, soft_wrap=True)
        if loaded.evaluation.fid is not None and not reason:
            console.print(
                f"evaluation       {folder / trial.export['folder'] / 'evaluation.json'}", highlight=False, soft_wrap=True
            )
    failed = [(t.number, t.reason or t.finish_failure) for t in finished.trials.values() if t.reason or t.finish_failure]
    for number, reason in failed:
        console.print(f"trial {number} failed: {reason}", highlight=False, soft_wrap=True)
    if failed:
        sys.exit(SOME_FAILED)


def _conclude(console: Any, found: Any, folder: Path) -> list[Path]:
    """Print ranking, front and what was written; draw the figures, and return their files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from analysis.plots import front_info, plot_curves, plot_front
    from analysis.tables import ranking_table

    ranked = ranking_table(found)
    _print_frame(
        console,
        ranked.drop(columns=["train GFLOPs", "images/s", "memory (MiB)"]),
        "Ranking (val_loss at equal training compute; `last` at the last rung reached)",
    )
    front = front_info(found).points
    _print_frame(console, front[front["on_front"]][["trial", "gflops", "val_loss"]], "Front of val_loss against GFLOPs")
    console.print(f"run directory    {folder}", highlight=False, soft_wrap=True)
    written = []
    for name, plot in {"front": plot_front, "curves": plot_curves}.items():
        path = folder / f"{name}.png"
        figure = plot(found).get_figure(root=True)
        assert figure is not None
        figure.savefig(path, dpi=150)
        plt.close(figure)
        console.print(f"{name:16s} {path}", highlight=False, soft_wrap=True)
        written.append(path)
    return written


def _print_frame(console: Any, frame: Any, title: str) -> None:
    from rich.table import Table

    from analysis.tables import cells

    console.print(f"\n{title}", style="bold", highlight=False, soft_wrap=True)
    table = Table(box=None)
    text = cells(frame)
    for column in text.columns:
        table.add_column(column, overflow="fold", no_wrap=column != "reason")
    for row in text.itertuples(index=False):
        table.add_row(*row)
    console.print(table)


@main.command()
@click.argument("studies", nargs=-1, required=True, type=click.Path(path_type=Path))
def validate(studies: tuple[Path, ...]) -> None:
    """Check studies without training."""
    from nas.study import check_data, load_study

    for path in studies:
        study = load_study(path)
        study.check_runs()
        check_data(study)
        click.echo(f"{path}: fine; {study.census.share:.1%} of the space is feasible")


@main.command()
@_run
def status(run: str) -> None:
    """Print how far a run is, the best so far, the rungs, and failures."""
    from nas.live import status_lines

    click.echo("\n".join(status_lines(_here(run))))


@main.command()
@_run
@click.option("--format", "form", default="md", type=click.Choice(["md", "latex", "csv"]), show_default=True)
def table(run: str, form: str) -> None:
    """Print the table of a run."""
    from analysis.runs import load_run
    from analysis.tables import ranking_table, render

    click.echo(render(ranking_table(load_run(_here(run))), form), nl=False)


@main.command("optuna-export")
@_run
@click.argument("storage")
@click.option("--name", help="The study's name there; the run's study's by default.")
def optuna_export(run: str, storage: str, name: str | None) -> None:
    """Write a run to an Optuna STORAGE, such as sqlite:///run.db or run.log, for optuna-dashboard."""
    from nas.optuna_export import export_run

    click.echo(f"{export_run(_here(run), storage, name)} trials exported")


@main.command()
@_run
@click.option("--select", "which", default="best", show_default=True, metavar="best|pareto:K|TRIAL", help="Which trials.")
@click.option("--ema", type=float, help="Which of the study's averaged weights, by their decay; the first by default.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder to write to; RUN/export by default.")
def export(run: str, which: str, ema: float | None, out: Path | None) -> None:
    """Write trials as model folders: spec, folded weights, card."""
    from nas.export import export as export_trial
    from nas.export import select
    from nas.remote import fetch_checkpoint, is_uri, reached, run_identity
    from nas.results import read_run

    here = _here(run)
    found = read_run(here)
    assert found.study is not None
    for trial in select(found, which):
        if is_uri(run):
            fetch_checkpoint(run, trial.name, here / "trials" / trial.name, run_identity(here))
        folder = (out or here / "export") / trial.name
        export_trial(found.study, trial, here, folder, ema)
        if is_uri(run) and out is None:
            reached(run).put_folder(folder, f"export/{trial.name}")
        click.echo(str(folder))


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--classes", help="Labels such as 0,3,9; all by default.")
@click.option("--per-class", default=8, show_default=True, type=click.IntRange(1), help="Images a class.")
@click.option(
    "--sampler", type=click.Choice(["ddpm", "ddim", "dpm++", "euler", "heun"]), help="ddim, or heun for a flow, by default."
)
@click.option("--steps", default=50, show_default=True, type=click.IntRange(1, 1000), help="Steps of the sampler.")
@click.option("--cfg", default=2.0, show_default=True, help="Guidance; 1 is none.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("samples.png"), show_default=True)
def sample(
    model: Path, classes: str | None, per_class: int, sampler: str | None, steps: int, cfg: float, seed: int, out: Path
) -> None:
    """Write a grid of images sampled from an exported model."""
    from nas.export import write_samples
    from nas.settings import SampleSettings
    from space.document import parse
    from space.weights import facts_of, load

    try:
        labels = [int(label) for label in classes.split(",")] if classes else None
    except ValueError:
        raise NasError(f"--classes {classes}: write labels such as 0,3,9") from None
    settings = parse(SampleSettings, {"per_class": per_class, "sampler": sampler, "steps": steps, "guidance": cfg, "seed": seed})
    write_samples(load(model), facts_of(model), settings, out, labels)
    click.echo(str(out))


main.add_command(cli_models.cost)
main.add_command(cli_models.presets)
main.add_command(cli_models.import_official)
main.add_command(cli_data.data)
main.add_command(cli_evaluate.evaluate)
main.add_command(cli_replay.replay)
