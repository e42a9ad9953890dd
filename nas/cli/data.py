"""The commands that make data stores and describe them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from nas.cli.command import Command, Group
from space.errors import DataError

DEFAULT_VAE = "vae:stabilityai/sd-vae-ft-ema"
ENCODING_BATCH, COPYING_BATCH = 32, 1024

_path = click.Path(path_type=Path)


def _options(*options: Callable[..., Any]) -> Callable[..., Any]:
    """One decorator that adds several options."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_target = _options(
    click.option("--out", type=_path, required=True, help="The folder of the store."),
    click.option(
        "--class-names", help="Names of the classes that occur, separated by commas; by default the source's, or their labels."
    ),
    click.option("--batch-size", type=click.IntRange(1), help="Samples read, encoded and written at once."),
)
_scale = _options(
    click.option(
        "--scale", type=click.FloatRange(0, min_open=True), help="Factor of a VAE's latents; by default that of its config.json."
    ),
    click.option("--shift", type=float, help="Subtracted from a VAE's latents before; by default that of its config.json, or 0."),
)
_encoding = _options(
    click.option("--size", default=256, show_default=True, type=click.IntRange(1), help="Pixels after the centre crop."),
    click.option("--codec", default=DEFAULT_VAE, show_default=True, help="vae:NAME-OR-FOLDER, or a pixel codec."),
    _scale,
    click.option("--mirrored", is_flag=True, help="Also store the mirror image of each, for flips in training."),
    click.option("--precision", default="float32", show_default=True, type=click.Choice(["float32", "bf16", "fp16"])),
    click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "float16"]), help="Of moments."),
)
_skip_damaged = click.option(
    "--skip-damaged", is_flag=True, help="Leave damaged images out and record them in the store, rather than refuse them."
)
_pixels = _options(
    click.option("--codec", default="pixel-unshuffle-1", show_default=True, help="The pixel codec that makes latents of images."),
    click.option("--pad-to", type=click.IntRange(1), help="Centre smaller images on black of this size, such as 32 for 28×28."),
)


@click.group("data", cls=Group)
def data_group() -> None:
    """Make and describe data stores."""


@data_group.group("prepare", cls=Group)
def prepare_group() -> None:
    """Make a memory-mapped store; the same command resumes an interrupted one."""


@prepare_group.command("images", cls=Command)
@click.argument("folder", type=_path)
@_encoding
@_skip_damaged
@_target
def images_command(folder: Path, size: int, skip_damaged: bool, **options: Any) -> None:
    """A folder with one subfolder per class, centre-cropped as in ADM and encoded."""
    from nas.data.images import ImageFolder

    images = ImageFolder(folder, size, skip_damaged)
    if images.passed_over:
        told = ", ".join(f"{count:,} {kind}" for kind, count in images.passed_over.items())
        click.echo(f"passed over: {told}", err=True)
    _encode(images, str(folder.absolute()), **options)


@prepare_group.command("dataset", cls=Command)
@click.argument("name")
@click.option("--split", default="train", show_default=True)
@click.option("--image-column", help="The column of images, where there are several.")
@click.option("--label-column", help="The column of labels: of class labels, whole numbers or text.")
@click.option("--one-class", is_flag=True, help="Read no labels.")
@_encoding
@_skip_damaged
@_target
def dataset_command(
    name: str,
    split: str,
    image_column: str | None,
    label_column: str | None,
    one_class: bool,
    size: int,
    skip_damaged: bool,
    **options: Any,
) -> None:
    """A data set of the datasets library, by name or local folder, centre-cropped as in ADM and encoded."""
    from nas.data.hub import Columns, HubImages

    images = HubImages(name, split, size, Columns(image_column, label_column, one_class), skip_damaged)
    if images.without_samples:
        click.echo(f"left out, since they have no samples: {_listed(images.without_samples)}", err=True)
    _encode(images, f"{name}/{split}", **options)


@prepare_group.command("features", cls=Command)
@click.argument("folder", type=_path)
@click.option("--codec", default=DEFAULT_VAE, show_default=True, help="The VAE that the latents came from.")
@_scale
@_target
def features_command(folder: Path, codec: str, scale: float | None, shift: float | None, **options: Any) -> None:
    """The per-sample files of fast-DiT and U-DiT: a folder that holds *_features/N.npy and *_labels/N.npy."""
    from nas.data.readers import FeatureFiles

    _write(FeatureFiles(folder, _codec(codec, scale, shift)), **options)


@prepare_group.command("idx", cls=Command)
@click.argument("images", type=_path)
@click.argument("labels", type=_path)
@_pixels
@_target
def idx_command(images: Path, labels: Path, codec: str, pad_to: int | None, **options: Any) -> None:
    """IDX files such as those of Fashion-MNIST, gzipped or not."""
    from nas.data.arrays import idx_reader

    _write(idx_reader(images, labels, _codec(codec), pad_to), **options)


@prepare_group.command("arrays", cls=Command)
@click.argument("file", type=_path)
@click.option("--labels", type=_path, help="Labels as .npy, where the file has none.")
@click.option("--values", type=click.Choice(["0..1", "-1..1", "latents"]), help="What floats are: images of a range, or latents.")
@_pixels
@_scale
@_target
def arrays_command(
    file: Path,
    labels: Path | None,
    values: str | None,
    codec: str,
    scale: float | None,
    shift: float | None,
    pad_to: int | None,
    **options: Any,
) -> None:
    """A .npz or .npy file of images, uint8 or of floats whose range is said, or of float latents (N, C, H, W)."""
    from nas.data.arrays import ArrayReader, read_arrays

    arrays = read_arrays(file, labels)
    coder = _codec(codec, scale, shift)
    _write(ArrayReader(arrays.samples, arrays.labels, coder, file.name, pad_to, arrays.values(values)), **options)


@data_group.command("info", cls=Command)
@click.argument("folder", type=_path)
@click.option("--verify", is_flag=True, help="Read everything and compare with the checksum.")
def info_command(folder: Path, verify: bool) -> None:
    """Describe a store."""
    from nas.data.store import checksum, open_store

    store = open_store(folder)
    click.echo(_facts(store))
    if verify:
        if checksum(store.header, store.rows, store.labels) != store.header.checksum:
            raise DataError(f"{folder}: the data do not fit their checksum, so they have changed; prepare the store again")
        click.echo("verified  the checksum fits")


def _codec(name: str, scale: float | None = None, shift: float | None = None) -> Any:
    """The codec of a name; a VAE's folder becomes an absolute path, since the store may be used from another directory."""
    from nas.data.codecs import codec_named, placed

    return codec_named(placed(name), scale, shift)


def _encode(
    images: Any,
    source: str,
    codec: str,
    scale: float | None,
    shift: float | None,
    mirrored: bool,
    precision: str,
    dtype: str,
    **options: Any,
) -> None:
    import torch

    from nas.data.encode import EncodedImages
    from nas.data.vae import Vae

    coder = _codec(codec, scale, shift)
    if isinstance(coder, Vae):
        coder = coder.on("cuda" if torch.cuda.is_available() else "cpu", precision)
    options["batch_size"] = options["batch_size"] or ENCODING_BATCH
    _write(EncodedImages(images, coder, source, mirrored, dtype), **options)


def _write(reader: Any, out: Path, class_names: str | None, batch_size: int | None) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from nas.data.prepare import prepare_store

    names = tuple(name.strip() for name in class_names.split(",")) if class_names else None
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar, console=Console(stderr=True)) as view:
        task = view.add_task("samples", total=None)
        store = prepare_store(
            reader, out, batch_size or COPYING_BATCH, names, lambda done, all_: view.update(task, completed=done, total=all_)
        )
    click.echo(_facts(store))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (" …" if len(names) > 10 else "")


def _facts(store: Any) -> str:
    from nas.data.header import printable

    header = store.header
    channels, height, width = header.shape
    views = ", each with its mirror image" if header.views == 2 else ""
    counts = header.class_counts
    each = f"{min(counts):,}" + (f" to {max(counts):,}" if min(counts) < max(counts) else "") if counts else "no"
    classes = _listed([f"{name} ({count:,})" for name, count in zip(header.class_names, counts, strict=True)])
    shift = f", shift {header.shift:g}" if header.shift else ""
    digest = f", digest {header.codec_digest[:8]}" if header.codec_digest else ""
    return "\n".join(
        (
            f"store     {printable(store.name)}",
            f"samples   {header.samples:,}{views}",
            f"latents   {channels}×{height}×{width}, {header.content} as {header.dtype}",
            f"codec     {header.codec}, scale {header.scale:g}{shift}{digest}",
            f"classes   {len(header.class_names)}, {each} samples each: {classes}",
            f"source    {header.source}",
            f"checksum  {header.checksum}",
            *((f"left out  {len(header.left_out):,}: {_listed(header.left_out)}",) if header.left_out else ()),
        )
    )
