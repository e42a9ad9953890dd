"""The command that evaluates generated images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click

from nas.cli.command import Command
from nas.study.choices import ExtractorName, Sampler
from space.errors import DataError, ToolkitError

_path = click.Path(path_type=Path)
SAMPLER_CHOICE = click.Choice(get_args(Sampler))
CONTROLS = ("validation", "noise")
"""Names in place of a model that show the ends of the scale: real held-out images, and images of uniform noise."""


@click.command("evaluate", cls=Command)
@click.argument("what", metavar="MODEL|SAMPLES.npz|validation|noise")
@click.option("--data", "source", help="The real images: a data source or store; by default the model's training data.")
@click.option("--codec", help="The codec of an embedded data source, or of a model that names none; or where its VAE lies here.")
@click.option(
    "--reference", default="train", show_default=True, metavar="train|validation|FILE.npz", help="The real images to compare with."
)
@click.option("--samples", default=2000, show_default=True, type=click.IntRange(1), help="Images per seed.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Sets of samples, with seeds 0, 1, …")
@click.option("--sampler", type=SAMPLER_CHOICE, help="ddim, or heun for a flow, by default.")
@click.option("--steps", default=50, show_default=True, type=click.IntRange(1, 1000), help="Steps of the sampler.")
@click.option("--cfg", default=1.0, show_default=True, help="Guidance; 1 is none.")
@click.option("--extractor", default="clothes", show_default=True, type=click.Choice(get_args(ExtractorName)))
@click.option("--weights", type=_path, help="A file with the extractor's weights.")
@click.option("--keep-samples", type=_path, metavar="DIR", help="Write the samples as .npz of the ADM suite.")
@click.option("--out", type=_path, help="The JSON file; by default the JSON is printed.")
def evaluate_command(
    what: str,
    source: str | None,
    codec: str | None,
    reference: str,
    samples: int,
    seeds: int,
    sampler: str | None,
    steps: int,
    cfg: float,
    extractor: str,
    weights: Path | None,
    keep_samples: Path | None,
    out: Path | None,
) -> None:
    """FID, FID∞, sFID, inception score, precision, recall and KID of a model's samples, of a file of samples, or of a control."""
    import torch

    from nas.evaluation.evaluate import check, check_count
    from nas.evaluation.extractors import extractor_named
    from nas.runs.remote import fetch_folder, is_uri
    from nas.study.settings import FidSettings
    from nas.training.export import trained_for
    from space.document import parse
    from space.weights import facts_of

    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise DataError(f"{out} cannot be written; name a file in a folder that exists")
    if is_uri(what):
        what = str(fetch_folder(what))
    is_model = what not in CONTROLS and not what.endswith(".npz")
    if keep_samples is not None and not is_model:
        raise ToolkitError(f"--keep-samples keeps a model's samples, and {what} is no model; leave it out")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = extractor_named(extractor, weights, device)
    facts = facts_of(what) if is_model else {}
    decoding = model_decoding(facts, source, codec) if is_model else None
    sampling = {"samples": samples, "seeds": tuple(range(seeds)), "sampler": sampler, "steps": steps, "guidance": cfg}
    settings = parse(FidSettings, {**sampling, "extractor": extractor})
    if is_model:
        check(settings, trained_for(facts), network.dimensions)
    elif what == "noise":
        check_count(samples, network.dimensions)
    data = _data(facts, source, codec) if what in CONTROLS or not reference.endswith(".npz") else None
    real = _reference(reference, data, network, device)
    report = _report(what, decoding, facts, data, network, real, settings, device, keep_samples)
    text = json.dumps({"of": what, **report}, indent=2, ensure_ascii=False)
    if out is None:
        click.echo(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")
        for line in (*_lines(report), out):
            click.echo(line)


def model_decoding(facts: dict[str, Any], source: str | None, codec: str | None) -> Any:
    """The record of the codec of a model's latents, from its facts and the options --data and --codec; a guess is told."""
    from nas.data.codec import VAE_PREFIX
    from nas.data.settings import EMBEDDED_NAMES, DataSettings
    from nas.data.sources import header_of
    from nas.evaluation.decoding import decoding_of
    from space.document import parse

    header = header_of(parse(DataSettings, {"source": source, "codec": codec})) if source is not None else None
    if "codec" in facts and source in EMBEDDED_NAMES:
        # It is the codec of the images that the model is compared with.
        codec = None
    record = decoding_of(facts, codec, header)
    if record.scale is None and record.name.startswith(VAE_PREFIX):
        click.echo(f"nas: the model does not record the scale of its latents; that of {record.name} is taken", err=True)
    return record


def _data(facts: dict[str, Any], source: str | None, codec: str | None) -> Any:
    """The real data, from the command line or else the model; None when neither names them."""
    from nas.data.codec import VAE_PREFIX
    from nas.data.settings import DataSettings
    from nas.data.sources import open_data
    from space.document import parse

    if source is not None:
        return open_data(parse(DataSettings, {"source": source, "codec": codec}))
    if "data" in facts:
        # The VAE of the model is that of its data.
        place = {"codec": codec} if codec is not None and codec.startswith(VAE_PREFIX) else {}
        return open_data(parse(DataSettings, {**facts["data"], **place}))
    return None


def _reference(which: str, data: Any, extractor: Any, device: Any) -> Any:
    from nas.evaluation.reference import reference_of_file, reference_of_split

    if which.endswith(".npz"):
        return reference_of_file(Path(which), extractor)
    if which not in ("train", "validation"):
        raise ToolkitError(f"--reference {which}: write train, validation or a .npz file")
    if data is None:
        raise ToolkitError("it is not clear which real images to compare with; name them with --data, or a file with --reference")
    return reference_of_split(getattr(data, which), which, extractor, device)


def _report(
    what: str,
    decoding: Any,
    facts: dict[str, Any],
    data: Any,
    extractor: Any,
    reference: Any,
    settings: Any,
    device: Any,
    folder: Path | None,
) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import Progress

    from nas.evaluation.decoding import decoder_of
    from nas.evaluation.evaluate import check_count, evaluate_model, judge, metrics_report, noise
    from nas.evaluation.reference import features_of, images_in, images_of
    from nas.training.export import trained_for
    from space.weights import load

    if decoding is not None:
        model = load(what).to(device)
        codec = decoder_of(decoding, model.spec.in_channels)
        with Progress(console=Console(stderr=True)) as view:
            task = view.add_task("samples", total=settings.samples * len(settings.seeds))
            report = evaluate_model(
                model,
                codec,
                trained_for(facts),
                extractor,
                reference,
                settings,
                folder,
                lambda count: view.advance(task, count),
            )
        return {"codec": decoding.model_dump(), **report}
    classes = None
    if what == "noise":
        if data is None:
            raise ToolkitError("noise takes the shape of real images; name them with --data")
        shape = next(images_of(data.validation, device)).shape[1:]
        sets = [features_of(noise(shape, settings.samples, seed), extractor) for seed in settings.seeds]
    elif what == "validation":
        if data is None:
            raise ToolkitError("validation images are part of a data set; name it with --data")
        check_count(len(data.validation), extractor.dimensions)
        # Held out by a share of each class.
        sets, classes = [features_of(images_of(data.validation, device), extractor)], data.validation.labels
    else:
        sets = [features_of(images_in(Path(what)), extractor)]
    seeds = {"sampling": {"seeds": list(settings.seeds)}} if what == "noise" else {}
    judged = [judge(features, reference.features, classes) for features in sets]
    report = metrics_report(judged, sets[0].images or 0, extractor, reference, f"{len(sets)} draws of noise")
    if what.endswith(".npz"):
        report["notes"].append(_OF_A_FILE)
    return {**seeds, **report}


_OF_A_FILE = (
    "the file's images are taken as independent: of images in given numbers a class, as those of --keep-samples, fid_infinity and "
    "kid are too low"
)


def _lines(report: dict[str, Any]) -> Iterator[str]:
    """All metrics as mean ± sd on one line, what the sd is over, and the notes.

    Of one set of samples there is no sd, and a metric that has a standard error is shown with that.
    """
    parts = []
    for name, summary in report["metrics"].items():
        spread = ""
        if summary["sd"] is not None:
            spread = f" ± {summary['sd']:.2g}"
        elif "standard_errors" in summary:
            spread = f" (standard error {summary['standard_errors'][0]:.2g})"
        parts.append(f"{name} {summary['mean']:.4g}{spread}")
    yield f"{report['samples']} samples: " + ", ".join(parts)
    if report["sd_over"] is not None:
        yield f"± is the sd over {report['sd_over']}"
    yield from report["notes"]
