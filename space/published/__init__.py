"""What the papers print about the architectures that are presets here.

The tables stand beside this file as CSV, one a printed table, every row with its source. GFLOPs are multiply-accumulates / 1e9 in
both papers, but they do not count the same operators: see `counted_gflops`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from space.cost import Cost, cost
from space.paths import changed
from space.presets import PRESETS

Row = dict[str, str]

LATENT_DOWNSAMPLING = 8
"""Pixels of an image for each position of the latents that both papers train on."""


FROM_DIT = "[28]"
"""Marks rows of U-DiT's tables that repeat what DiT's print."""


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
        return cost(changed(PRESETS[self.preset], {"input_size": self.resolution // LATENT_DOWNSAMPLING}))

    @property
    def computed_gflops(self) -> str:
        """Our count of the operators that the row's authors count, with the printed number of digits."""
        by_dit = self.table.startswith("DiT") or self.row.endswith(FROM_DIT)
        return _with_digits_of(self.gflops, counted_gflops(self.computed, dit=by_dit))

    @property
    def computed_params_m(self) -> str:
        """Our count of parameters in millions, with the printed number of digits."""
        return _with_digits_of(self.params_m, self.computed.params_m)


def counted_gflops(found: Cost, dit: bool) -> float:
    """GFLOPs by the rule of U-DiT's tables, or of DiT's.

    Both count matrix products and convolutions. U-DiT's add every elementwise product (`Cost.gflops`); DiT's add one for each
    element that passes a norm instead, a rule that reproduces eleven of its twelve printed numbers (B/4 gives 5.57, printed 5.56).
    """
    return (found.product_macs + found.norm_elements) / 1e9 if dit else found.gflops


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


_TABLES: dict[str, tuple[str, Callable[[str], str]]] = {
    "dit_table1_model_configs": ("DiT Table 1", _at_patch_4),
    "dit_table4_all_models": ("DiT Table 4", str.lower),
    "udit_table8_model_configs": ("U-DiT Table 8", str.lower),
    "udit_table1_toy_experiment": ("U-DiT Table 1", _TOY.__getitem__),
    "udit_table2_main_imagenet256_400k": ("U-DiT Table 2", _paper_name),
    "udit_table6_imagenet512_400k": ("U-DiT Table 6", _paper_name),
    "udit_table7_downsampler_ablation": ("U-DiT Table 7", _TOY.__getitem__),
    "udit_table9_component_ablation": ("U-DiT Table 9", _TOY.__getitem__),
    "udit_table10_vanilla_vs_all_mods": ("U-DiT Table 10", _paper_name),
}
"""File → the table's name, and how its rows' names become presets."""

_SCORES = {"fid": "fid", "fid50k_no_guidance": "fid", "sfid": "sfid", "is": "is", "precision": "precision", "recall": "recall"}


@cache
def published(preset: str | None = None) -> tuple[Published, ...]:
    """Every printed row about a preset, or about any, table by table."""
    if preset is not None:
        return tuple(row for row in published() if row.preset == preset)
    return tuple(row for name in _TABLES for row in _rows(name))


def _rows(name: str) -> Iterator[Published]:
    table, preset_of = _TABLES[name]
    text = files(__package__).joinpath(f"{name}.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        # DiT's Table 4 also holds other conditionings, which are not built here, and longer trainings of the same model.
        if row.get("block", "adaLN-Zero") != "adaLN-Zero" or (row.get("resolution") == "256" and row.get("train_steps_k") != "400"):
            continue
        label = row.get("model") or row["downsampler"]
        yield Published(
            preset=preset_of(label),
            table=table,
            row=label,
            resolution=int(row.get("resolution") or 256),
            gflops=row.get("gflops") or row.get("gflops_I32_p4") or "",
            params_m=row.get("params_m") or "",
            scores={_SCORES[key]: value for key, value in row.items() if key in _SCORES and value},
            source=row["source"],
        )
