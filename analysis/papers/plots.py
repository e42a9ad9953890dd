"""Figures of the papers' published numbers, from the frames of `analysis.papers.tables`.

Every point is one training run, so there are no error bars; hollow points are measured from a figure (about ±0.3 FID).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from analysis.figures import new_axes, with_minus
from analysis.papers.tables import correlation, fid_by_steps, fid_by_steps_fit, gflops_fid
from space.published import correlations

_FAMILY_COLOURS = {"DiT": "C0", "SiT": "C2", "SiT-LLaMA": "C1", "U-DiT": "C3"}
_MODEL_COLOURS = {"DiT-B/2": "#9ecae1", "DiT-L/2": "#4292c6", "DiT-XL/2": "#08519c", "U-DiT-B": "#fc9272", "U-DiT-L": "#cb181d"}
"""Blues for DiT and reds for U-DiT, darker for larger models."""


def plot_gflops_fid(ax: Axes | None = None, digitised: bool = True) -> Axes:
    """Draw FID-50K against log GFLOPs after 400K steps, a colour per family, as in U-DiT's Figure 1 and DiT's Figure 8.

    The legend gives the correlation of DiT's twelve printed points beside the one that DiT prints. The frame drawn is
    `gflops_fid(digitised)`.

    Args:
        ax: The axes to draw on; those of a new figure by default.
        digitised: Whether to add the points measured from U-DiT's Figure 1, as hollow points.

    >>> plot_gflops_fid().get_xscale()
    'log'
    """
    points = gflops_fid(digitised)
    ax = ax or new_axes()
    for family, colour in _FAMILY_COLOURS.items():
        members = points[points["family"] == family]
        printed = members[~members["digitised"]].sort_values("gflops")
        label = family
        if family == "DiT":
            correlated = with_minus(f"{correlation(printed, 'gflops', 'fid'):.3f}")
            label = f"DiT (correlation with log GFLOPs {correlated}, printed {with_minus(correlations()['fid'])})"
        else:
            ax.plot(printed["gflops"], printed["fid"], color=colour, linewidth=1)
        ax.scatter(printed["gflops"], printed["fid"], color=colour, s=28, label=label, zorder=3)
        _hollow(ax, members[members["digitised"]], "gflops", colour)
        if family in ("DiT", "U-DiT"):
            for _, point in printed.iterrows():
                _name(ax, str(point["model"]), float(point["gflops"]), float(point["fid"]), colour)
    if digitised:
        _explain_hollow(ax, "measured from U-DiT's Figure 1 (±0.3 FID)")
    ax.set(xscale="log", xlabel="GFLOPs (multiply-accumulates / 1e9, batch 1)", ylabel="FID-50K", ylim=(0, None))
    gflops = [0.5, 1, 2, 5, 10, 20, 50, 100]
    ax.set_xticks(gflops, [f"{tick:g}" for tick in gflops])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(fontsize=8)
    ax.set_title("Published FID against GFLOPs: ImageNet 256×256, 400K steps, one run each", fontsize=11)
    return ax


def plot_fid_by_steps(ax: Axes | None = None) -> Axes:
    """Draw FID-50K against training steps, a line per model, both axes logarithmic.

    The numbers are those of U-DiT's Table 5 and DiT's Table 4; hollow points are measured from U-DiT's Figure 2. The line is
    the fit E + A·C^(−α), given in the legend, where five numbers are printed, and dotted through the points elsewhere. The frames
    drawn are `fid_by_steps()` and `fid_by_steps_fit()`.

    >>> plot_fid_by_steps().get_yscale()
    'log'
    """
    points, fits = fid_by_steps(), fid_by_steps_fit().table.set_index("family").to_dict("index")
    ax = ax or new_axes()
    for model, colour in _MODEL_COLOURS.items():
        members = points[points["model"] == model]
        printed = members[~members["digitised"]]
        label = f"{model} ({float(members['gflops'].iloc[0]):.3g} GFLOPs)"
        fit = fits[model]
        if fit["problem"]:
            ax.plot(members["train_steps_k"], members["fid"], color=colour, linewidth=1, linestyle=":")
        else:
            shares = np.geomspace(1, printed["train_steps_k"].max() / printed["train_steps_k"].min(), 100)
            fitted = fit["E"] + fit["A"] * (printed["train_tflops"].min() * shares) ** -fit["alpha"]
            ax.plot(printed["train_steps_k"].min() * shares, fitted, color=colour, linewidth=1.2)
            label += f", fit {fit['E']:.1f} + A·C^(−{fit['alpha']:.2f})"
        ax.scatter(printed["train_steps_k"], printed["fid"], color=colour, s=28, label=label, zorder=3)
        _hollow(ax, members[members["digitised"]], "train_steps_k", colour, inside="white")
    _explain_hollow(ax, "measured from U-DiT's Figure 2 (±0.3 FID)")
    steps, fids = [200, 400, 600, 1000, 2352, 7000], [8, 10, 15, 20, 30, 40, 50]
    ax.set(xscale="log", yscale="log", xlabel="training steps in thousands (batches of 256)", ylabel="FID-50K")
    ax.set_xticks(steps, [str(step) for step in steps])
    ax.set_yticks(fids, [str(fid) for fid in fids])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter(NullFormatter())
    ax.legend(fontsize=8)
    ax.set_title("Published FID against training steps: ImageNet 256×256, one run each", fontsize=11)
    return ax


def _hollow(ax: Axes, points: pd.DataFrame, x: str, colour: str, inside: str = "none") -> None:
    ax.scatter(points[x], points["fid"], facecolors=inside, edgecolors=colour, s=55, zorder=2.5)


def _explain_hollow(ax: Axes, text: str) -> None:
    ax.add_line(Line2D([np.nan], [np.nan], linestyle="", marker="o", markerfacecolor="none", markeredgecolor="0.4", label=text))


def _name(ax: Axes, model: str, x: float, y: float, colour: str) -> None:
    """Write a model's size beside its point: for DiT above, at the left where the right is occupied; for U-DiT below."""
    offset, align = ((0, -14), "center") if model.startswith("U-DiT") else ((6, 4), "left")
    if model in ("DiT-B/4", "DiT-L/4"):
        offset, align = (-6, 4), "right"
    ax.annotate(model.rpartition("-")[2], (x, y), xytext=offset, textcoords="offset points", ha=align, fontsize=7, color=colour)
