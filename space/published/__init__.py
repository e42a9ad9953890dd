"""The papers' printed tables, row by row with protocol and source, and the rows that are presets here.

U-DiT is Tian et al., NeurIPS 2024 (arXiv 2405.02730); DiT is Peebles & Xie, ICCV 2023 (arXiv 2212.09748); SiT-LLaMA is of
VisionLLaMA, Chu et al., ECCV 2024 (arXiv 2403.00522). GFLOPs are multiply-accumulates / 1e9 in all of them, but they do not
count the same operators: see `counted_gflops`. No table prints error bars: a row is one training run.
"""

from __future__ import annotations

from space.published.presets import Published, counted_gflops, published
from space.published.rows import Protocol, PublishedRow, PublishedTable
from space.published.tables import correlations, published_table, table_names

__all__ = [
    "Protocol",
    "Published",
    "PublishedRow",
    "PublishedTable",
    "correlations",
    "counted_gflops",
    "published",
    "published_table",
    "table_names",
]
