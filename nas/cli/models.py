"""The commands about architectures: their costs, the papers' presets, the authors' checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from nas.cli.command import Command
from space.errors import DataError, ToolkitError


@click.command("cost", cls=Command)
@click.argument("what", metavar="SPEC-OR-PRESET")
@click.option("--batch", default=256, show_default=True, type=click.IntRange(1), help="Batch size of the memory and of a step.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cost_command(what: str, batch: int, as_json: bool) -> None:
    """Print what an architecture costs: a preset's name, or a YAML file with a spec."""
    from dataclasses import asdict

    from space.costs.cost import cost
    from space.costs.memory import memory
    from space.document import Document, parse
    from space.presets import preset
    from space.spec import ModelSpec, current_words

    if Path(what).suffix in (".yaml", ".yml"):
        document = Document.read(Path(what))
        spec = parse(ModelSpec, current_words(document.data), document)
    else:
        spec = preset(what)
    costs, needed = cost(spec), memory(spec, batch)
    if as_json:
        derived = {"gflops": costs.gflops, "train_gflops": costs.train_gflops, "step_macs": costs.step_macs(batch)}
        facts = {"digest": spec.digest, "batch": batch, **derived, **asdict(costs), "memory_bytes": asdict(needed)}
        click.echo(json.dumps(facts, indent=2))
        return
    mib = 2**20
    click.echo(f"{'part':14s} {'params':>12s} {'in training':>12s} {'MMACs':>10s} {'train MMACs':>12s} {'activations MiB':>16s}")
    for part, kept in zip((*costs.parts, costs), (*needed.parts, needed), strict=True):
        counts = f"{part.params:12,d} {part.params_training:12,d} {part.macs / 1e6:10.2f} {part.train_macs / 1e6:12.2f}"
        click.echo(f"{part.name:14s} {counts} {kept.activations / mib:16,.1f}")
    click.echo(
        f"gflops {costs.gflops:.4f} (multiply-accumulates / 1e9, folded, batch 1), train_gflops {costs.train_gflops:.4f} a sample"
    )
    tera = costs.step_macs(batch) / 1e12
    lasting = f"weights {needed.weights / mib:,.0f}, AdamW {needed.optimizer / mib:,.0f}, average {needed.averages / mib:,.0f}"
    click.echo(f"batch {batch}: {tera:.4g} TFLOPs a step; float32 training on a CPU, MiB: {lasting}, peak {needed.peak / mib:,.0f}")


@click.command("presets", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def presets_command(as_json: bool) -> None:
    """List the presets with their costs, beside the numbers that the papers print."""
    from space.costs.cost import cost
    from space.presets import PRESETS
    from space.published import published

    if as_json:
        click.echo(json.dumps({name: _preset_facts(cost(spec), published(name)) for name, spec in PRESETS.items()}, indent=2))
        return
    heading = f"{'preset':25s} {'GFLOPs':>8s} {'train':>8s} {'params M':>9s}"
    click.echo(f"{heading} | {'GFLOPs':>8s} printed params M printed  FID-50K")
    for name, spec in PRESETS.items():
        costs = cost(spec)
        click.echo(f"{name:25s} {costs.gflops:8.4f} {costs.train_gflops:8.3f} {costs.params_m:9.3f} |")
        for row in published(name):
            equal = " " if row.gflops == row.computed_gflops else "≠"
            where = row.table if row.resolution == 256 else f"{row.table}, {row.resolution} px"
            numbers = f"{row.computed_gflops:>8s} {equal} {row.gflops:>6s} {row.computed_params_m:>7s} {row.params_m:>7s}"
            click.echo(f"{'':2s}{where:51s} | {numbers}   {row.scores.get('fid', '')}")
    click.echo("GFLOPs are multiply-accumulates / 1e9, folded, batch 1; train: forward and backward of one sample.")
    click.echo("Right of the bar: by the rule of the table's authors, with the printed digits; ≠ differs (docs/architectures.md).")


def _preset_facts(costs: Any, rows: Any) -> dict[str, Any]:
    from dataclasses import asdict

    facts = {"gflops": costs.gflops, "train_gflops": costs.train_gflops, "params": costs.params}
    printed = [{**asdict(row), "computed_gflops": row.computed_gflops, "computed_params_m": row.computed_params_m} for row in rows]
    return {**facts, "params_training": costs.params_training, "published": printed}


@click.command("import-official", cls=Command)
@click.argument("source", metavar="CKPT", type=click.Path(path_type=Path))
@click.option("--preset", "name", help="The preset whose weights these are, such as u-dit-b or dit-xl/2.")
@click.option("--kwargs", metavar="JSON", help="The authors' constructor arguments, as JSON or the path of a JSON file.")
@click.option("--entry", type=click.Choice(["ema", "model"]), help="Which weights of a checkpoint; ema where there are any.")
@click.option("--codec", help="The codec of the model's latents, such as vae:stabilityai/sd-vae-ft-ema or vae:FOLDER.")
@click.option("--data", "data", help="The store that the model was trained on, or a data source with its --codec.")
@click.option(
    "--prediction", type=click.Choice(["epsilon", "v", "flow"]), help="What it predicts: epsilon by default; a SiT is a flow."
)
@click.option("--to-official", "back", is_flag=True, help="CKPT is a model folder of ours; write the authors' state dict.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The model folder, or the .safetensors or .pt file.")
def import_official_command(
    source: Path,
    name: str | None,
    kwargs: str | None,
    entry: str | None,
    codec: str | None,
    data: str | None,
    prediction: str | None,
    back: bool,
    out: Path,
) -> None:
    """Turn a checkpoint of the authors' DiT or U-DiT code into a model folder, or a model folder into their state dict.

    Nothing is unpickled beyond tensors and plain data.
    """
    from space import official
    from space.model.network import build
    from space.presets import preset
    from space.weights import load_as_saved, save

    if back:
        if codec or data or prediction:
            raise ToolkitError(
                "--codec, --data and --prediction are for a model folder, which --to-official does not write; leave them out"
            )
        if out.resolve().parent == source.resolve():
            raise ToolkitError(f"{out} lies in the model folder itself; name another place")
        model = load_as_saved(source)
        arguments = official.kwargs_from_spec(official.trained_as(model))
        official.write_state_dict(model, out)
        click.echo(f"{out}: for the authors' constructor with {json.dumps(arguments)}")
        return
    if (name is None) == (kwargs is None):
        raise ToolkitError("name the architecture with either --preset or --kwargs")
    spec = preset(name) if name else official.spec_from_kwargs(_json(kwargs or ""))
    latents = _latents_facts(spec, codec, data)
    model = build(spec)
    official.load_weights(model, source, entry)
    kind = {"prediction": {"kind": prediction or "epsilon"}}
    save(model, out, {"imported_from": source.name, "entry": entry, "digest": spec.digest, **kind, **latents}, folded=False)
    if not latents:
        click.echo("nas: the folder names no codec; give --codec or --data here, or to `nas sample` and `nas evaluate`", err=True)
    click.echo(str(out))


def _latents_facts(spec: Any, codec: str | None, data: str | None) -> dict[str, Any]:
    """The facts about a model's latents that `nas export` records too, as far as the options tell them."""
    from nas.data.codecs import codec_named, placed, record_of
    from nas.data.header import CodecRecord
    from nas.data.settings import DataSettings
    from nas.data.sources import header_of
    from space.document import parse

    if data is not None:
        settings = parse(DataSettings, {"source": data, "codec": codec})
        header = header_of(settings)
        takes = (spec.in_channels, spec.input_size, spec.input_size), spec.num_classes
        if takes != (held := (header.shape, len(header.class_names))):
            raise ToolkitError(f"the model takes latents {takes[0]} of {takes[1]} classes, but {data} holds {held[0]} of {held[1]}")
        facts = {"source": header.source, "data": settings.model_dump(mode="json"), "class_names": list(header.class_names)}
        return {**facts, "codec": header.decoding.model_dump()}
    if codec is None:
        return {}
    named = codec_named(placed(codec))
    try:
        record = record_of(named)
    except DataError:
        # A VAE on the hub need not be at hand yet; its scale is then read when it is.
        record = CodecRecord(name=named.name)
    return {"codec": record.model_dump()}


def _json(text: str) -> dict[str, Any]:
    path = Path(text)
    try:
        arguments = json.loads(path.read_text(encoding="utf-8") if path.suffix == ".json" else text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ToolkitError(f"--kwargs {text}: not valid JSON ({error})") from None
    if not isinstance(arguments, dict):
        raise ToolkitError(f"--kwargs {text}: write an object of arguments, such as '{{\"hidden_size\": 96}}'")
    return arguments
