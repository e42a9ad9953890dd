"""The published tables by name, read from the CSV files beside this one.

A file is a printed table, with a source on every row, or points measured off a figure. This module alone knows their columns.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files

from space.document import nearest
from space.errors import ToolkitError
from space.published.rows import PublishedRow, PublishedTable


@dataclass(frozen=True)
class _File:
    """The title and file of a table, and the facts about all its rows that are not a column."""

    title: str
    stem: str
    train_steps_k: str = "400"
    apart: tuple[str, ...] = ()
    """The columns that distinguish rows of the same name."""
    digitised: bool = False


_FILES = {
    "udit_table1": _File("U-DiT Table 1", "udit_table1_toy_experiment"),
    "udit_table2": _File("U-DiT Table 2", "udit_table2_main_imagenet256_400k"),
    "udit_table3": _File("U-DiT Table 3", "udit_table3_other_architectures_400k"),
    "udit_table4": _File("U-DiT Table 4", "udit_table4_cfg_400k"),
    "udit_table5": _File("U-DiT Table 5", "udit_table5_training_iterations", apart=("train_steps_k",)),
    "udit_table6": _File("U-DiT Table 6", "udit_table6_imagenet512_400k"),
    "udit_table7": _File("U-DiT Table 7", "udit_table7_downsampler_ablation"),
    "udit_table8": _File("U-DiT Table 8", "udit_table8_model_configs", train_steps_k=""),
    "udit_table9": _File("U-DiT Table 9", "udit_table9_component_ablation"),
    "udit_table10": _File("U-DiT Table 10", "udit_table10_vanilla_vs_all_mods"),
    "udit_table11": _File("U-DiT Table 11", "udit_table11_training_speed"),
    "udit_figure1": _File("U-DiT Figure 1", "udit_figure1_digitised", apart=("gflops_plotted",), digitised=True),
    "udit_figure2": _File("U-DiT Figure 2", "udit_figure2_digitised", apart=("train_steps_k",), digitised=True),
    "dit_table1": _File("DiT Table 1", "dit_table1_model_configs", train_steps_k=""),
    "dit_table4": _File("DiT Table 4", "dit_table4_all_models", apart=("resolution", "train_steps_k", "block")),
    "dit_block_design": _File("DiT Section 5", "dit_block_design_ablation"),
    "visionllama_table8": _File("VisionLLaMA Table 8", "visionllama_table8_sit_sde_nocfg"),
}
_CORRELATIONS = "dit_figure_correlations_gflops_vs_metric"

_NAME = ("model", "downsampler", "series", "block")
_GFLOPS = ("gflops", "gflops_I32_p4", "gflops_table4", "gflops_plotted")
_SCORES = {
    "fid": ("fid", "fid50k_no_guidance", "fid_plotted"),
    "sfid": ("sfid",),
    "is": ("is",),
    "precision": ("precision",),
    "recall": ("recall",),
}
_NOTES = {
    "origin": "{}",
    "note": "{}",
    "comment": "{}",
    "printed_value_elsewhere": "printed elsewhere: {}",
    "hardware": "{}",
    "cumulative": "added to the row before",
    "vae_decoder": "decoder {}",
    "learning_rate": "learning rate {}",
    "gflops_section5": "{} GFLOPs in Section 5",
    "layers": "{} layers",
    "hidden_size": "width {}",
    "heads": "{} heads",
    "channel": "{} channels",
    "head_number": "{} heads",
    "encoder_decoder_blocks": "blocks {}",
}
"""The columns that become the note, and their formats."""
_APART = {"resolution": "{} px", "train_steps_k": "{}K", "gflops_plotted": "{} GFLOPs"}
"""The formats in which labels distinguish rows of one name, by column."""


def table_names() -> tuple[str, ...]:
    """The names of the tables: U-DiT's tables and figures, DiT's, and the one of VisionLLaMA that U-DiT's Figure 1 plots."""
    return tuple(_FILES)


@cache
def published_table(name: str) -> PublishedTable:
    """A published table by its name; raises ToolkitError, naming the nearest, when there is none.

    >>> row = published_table("udit_table9").row("U-DiT-T (+RoPE2D)")
    >>> row.gflops, row.scores["fid"], row.protocol.train_steps
    ('0.91', '84.64', 400000)
    """
    if name not in _FILES:
        raise ToolkitError(f"no published table '{name}'{nearest(name, table_names())}")
    file = _FILES[name]
    lines = _read(file.stem)
    printed = Counter(_first(line, _NAME) for line in lines)
    return PublishedTable(name, file.title, tuple(_row(line, file, printed) for line in lines))


@cache
def correlations() -> dict[str, str]:
    """The correlation of each metric with GFLOPs after 400K steps, as DiT prints it in Figures 8 and 12.

    The figures' axis of GFLOPs is logarithmic; `analysis.papers.tables.correlation` says which form gives the printed number.

    >>> correlations()["fid"]
    '-0.93'
    """
    return {line["metric"].lower(): line["correlation_with_gflops_400k"] for line in _read(_CORRELATIONS)}


def _row(line: dict[str, str], file: _File, printed: Counter[str]) -> PublishedRow:
    name = _first(line, _NAME)
    apart = [_APART.get(column, "{}").format(line[column]) for column in file.apart]
    scores = {metric: value for metric in _SCORES if (value := _score(line, metric))}
    return PublishedRow(
        label=", ".join([name, *apart]) if printed[name] > 1 else name,
        printed=name,
        gflops=_first(line, _GFLOPS),
        params_m=line.get("params_m", ""),
        scores=scores,
        train_steps_k=line.get("train_steps_k", file.train_steps_k),
        cfg=_first(line, ("cfg", "cfg_scale")) or "1.0",
        resolution=int(line.get("resolution", "256")),
        steps_per_s=line.get("train_steps_per_sec", ""),
        block=line.get("block", ""),
        note="; ".join(words.format(line[column]) for column, words in _NOTES.items() if line.get(column)),
        source=line["source"],
        digitised=file.digitised,
    )


def _score(line: dict[str, str], metric: str) -> str:
    percent = line.get(f"{metric}_pct")
    return str(Decimal(percent).scaleb(-2)) if percent else _first(line, _SCORES[metric])


def _first(line: dict[str, str], columns: Sequence[str]) -> str:
    """The cell of the first of these columns that the table has; an empty text when it has none of them."""
    return next((line[column] for column in columns if column in line), "")


def _read(stem: str) -> list[dict[str, str]]:
    text = files(__package__).joinpath(f"{stem}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
