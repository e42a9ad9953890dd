"""The commands that export trials as model folders and draw images from these."""

from __future__ import annotations

from pathlib import Path

import click

from nas.cli.command import Command, run_argument, run_folder
from nas.cli.evaluate import SAMPLER_CHOICE, model_decoding
from space.errors import ToolkitError


@click.command("export", cls=Command)
@run_argument
@click.option("--select", "which", default="best", show_default=True, metavar="best|pareto:K|TRIAL", help="Which trials.")
@click.option("--ema", type=float, help="Which of the study's averaged weights, by their decay; the first by default.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder to write to; RUN/export by default.")
def export_command(run: str, which: str, ema: float | None, out: Path | None) -> None:
    """Write trials as model folders: spec, folded weights, card."""
    from nas.execution.threads import threads
    from nas.runs.layout import EXPORTS, TRIALS
    from nas.runs.ledger import run_identity
    from nas.runs.remote import fetch_checkpoint, is_uri, remote_at
    from nas.runs.run import read_run
    from nas.training.export import export, select

    source = run_folder(run)
    recorded = read_run(source)
    for trial in select(recorded, which):
        if is_uri(run):
            fetch_checkpoint(run, trial.name, source / TRIALS / trial.name, run_identity(source))
        folder = (out or source / EXPORTS) / trial.name
        with threads(recorded.study.resources.cpu):
            export(recorded, trial, source, folder, ema)
        if is_uri(run) and out is None:
            remote_at(run).upload_folder(folder, f"{EXPORTS}/{trial.name}")
        click.echo(str(folder))


@click.command("sample", cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--classes", help="Labels such as 0,3,9; by default evenly chosen ones, as many as --images allows.")
@click.option("--per-class", default=8, show_default=True, type=click.IntRange(1), help="Images a class.")
@click.option("--images", default=64, show_default=True, type=click.IntRange(1), help="Most images, where no --classes are given.")
@click.option("--sampler", type=SAMPLER_CHOICE, help="ddim, or heun for a flow, by default.")
@click.option("--steps", default=50, show_default=True, type=click.IntRange(1, 1000), help="Steps of the sampler.")
@click.option("--cfg", default=2.0, show_default=True, help="Guidance; 1 is none.")
@click.option("--seed", default=0, show_default=True)
@click.option("--codec", help="The codec, where the model names none; or vae:FOLDER, where its VAE lies on this machine.")
@click.option("--data", "source", help="The data source or store of the model, where the model names no codec.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("samples.png"), show_default=True)
def sample_command(
    model: Path,
    classes: str | None,
    per_class: int,
    images: int,
    sampler: str | None,
    steps: int,
    cfg: float,
    seed: int,
    codec: str | None,
    source: str | None,
    out: Path,
) -> None:
    """Write a grid of images sampled from an exported model."""
    from rich.console import Console
    from rich.progress import Progress

    from nas.study.settings import SampleSettings
    from nas.training.export import write_samples
    from space.document import parse
    from space.weights import facts_of, load

    try:
        labels = [int(label) for label in classes.split(",")] if classes else None
    except ValueError:
        raise ToolkitError(f"--classes {classes}: write labels such as 0,3,9") from None
    sampling = {"sampler": sampler, "steps": steps, "guidance": cfg, "seed": seed}
    settings, network = parse(SampleSettings, {"per_class": per_class, "images": images, **sampling}), load(model)
    facts = facts_of(model)
    decoding = model_decoding(facts, source, codec)
    labels = labels or settings.classes(network.spec.num_classes)
    with Progress(console=Console(stderr=True)) as view:
        task = view.add_task("samples", total=per_class * len(labels))
        write_samples(network, facts, settings, out, labels, decoding=decoding, bar=lambda count: view.advance(task, count))
    click.echo(str(out))
