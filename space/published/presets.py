"""The printed rows about each preset, and our computed costs beside the printed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from space.costs.cost import Cost, cost
from space.presets import PRESETS
from space.published.tables import published_table

LATENT_DOWNSAMPLING = 8
"""Pixels of an image for each position of the latents that both papers train on."""

FROM_DIT = "[28]"
"""The suffix of rows in U-DiT's tables that repeat the numbers of DiT's tables."""


@dataclass(frozen=True)
class Published:
    """One printed row about a preset; numbers as printed, empty where the table has none."""

    preset: str
    table: str
    row: str
    resolution: int
    """Height and width of the images, in pixels."""
    gflops: str
    params_m: str
    scores: dict[str, str]
    """Printed quality: fid, sfid, is, precision, recall; FID-50K without guidance after `train_steps_k` thousand steps."""
    source: str

    @property
    def computed(self) -> Cost:
        """The cost of the preset at the row's resolution."""
        return cost(PRESETS[self.preset].replace({"input_size": self.resolution // LATENT_DOWNSAMPLING}))

    @property
    def computed_gflops(self) -> str:
        """Our count of the operators that the row's authors count, with the printed number of digits."""
        by_dit = self.table.startswith("DiT") or self.row.endswith(FROM_DIT)
        return _with_digits_of(self.gflops, counted_gflops(self.computed, dit=by_dit))

    @property
    def computed_params_m(self) -> str:
        """Our count of parameters in millions, with the printed number of digits."""
        return _with_digits_of(self.params_m, self.computed.params_m)


def counted_gflops(computed: Cost, dit: bool) -> float:
    """GFLOPs by the counting rule of U-DiT's tables, or of DiT's.

    Both count matrix products and convolutions. U-DiT's add every elementwise product (`Cost.gflops`); DiT's add one for each
    element that passes a norm instead, a rule that reproduces eleven of its twelve printed numbers (B/4 gives 5.57, printed 5.56).
    """
    return (computed.product_macs + computed.norm_elements) / 1e9 if dit else computed.gflops


def _with_digits_of(printed: str, value: float) -> str:
    return f"{value:.{len(printed.partition('.')[2])}f}" if printed else ""


_TOY = {
    "DiT-S/4": "dit-s/4",
    "DiT-UNet": "dit-unet",
    "DiT-UNet (Slim)": "dit-unet-slim",
    "DiT-UNet+Key-Value Downsampling": "dit-unet+kv-downsampling",
    "DiT-UNet+Token Downsampling (Ours)": "u-dit-t",
    "U-DiT-T (DiT-UNet+Downsampling)": "u-dit-t",
    "U-DiT-T (+Cos.Sim.)": "u-dit-t+cosine",
    "U-DiT-T (+RoPE2D)": "u-dit-t+rope2d",
    "U-DiT-T (+DWconv FFN)": "u-dit-t+dwconv-ffn",
    "U-DiT-T (+Re-param.)": "u-dit-t+reparam",
    "Pixel Shuffle (PS)": "u-dit-t-pixel-shuffle",
    "Depthwise (DW) Conv. + PS": "u-dit-t-dwconv",
    "DW Conv. || Shortcut + PS": "u-dit-t",
    "ordinary Conv. + PS (caption text only; FID not reported)": "u-dit-t-conv",
}


def _paper_name(row: str) -> str:
    """The preset of a row such as `U-DiT-S (Vanilla)`, `U-DiT-B (+All Mods)` or `DiT-L/2*`."""
    name, _, note = row.partition(" ")
    return name.rstrip("*").lower() + ("-vanilla" if note == "(Vanilla)" else "")


def _at_patch_4(row: str) -> str:
    return f"{row.lower()}/4"


_PRESET_OF: dict[str, Callable[[str], str]] = {
    "dit_table1": _at_patch_4,
    "dit_table4": str.lower,
    "udit_table8": str.lower,
    "udit_table1": _TOY.__getitem__,
    "udit_table2": _paper_name,
    "udit_table6": _paper_name,
    "udit_table7": _TOY.__getitem__,
    "udit_table9": _TOY.__getitem__,
    "udit_table10": _paper_name,
}
"""The tables that print costs, with the function from a row's name to its preset."""


@cache
def published(preset: str | None = None) -> tuple[Published, ...]:
    """Every printed row about the cost of a preset, or of any, table by table."""
    if preset is not None:
        return tuple(row for row in published() if row.preset == preset)
    return tuple(row for name in _PRESET_OF for row in _rows(name))


def _rows(name: str) -> Iterator[Published]:
    for row in published_table(name).rows:
        # DiT's Table 4 also holds other conditionings, which are not built here, and longer trainings of the same model.
        longer = row.resolution == 256 and row.train_steps_k not in ("", "400")
        if row.block in ("", "adaLN-Zero") and not longer:
            yield Published(
                preset=_PRESET_OF[name](row.printed),
                table=published_table(name).title,
                row=row.printed,
                resolution=row.resolution,
                gflops=row.gflops,
                params_m=row.params_m,
                scores=dict(row.scores),
                source=row.source,
            )
