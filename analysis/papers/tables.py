"""The papers' tables and figures as frames, from their published numbers alone.

A published number is one training run with one seed, and neither paper prints error bars: every frame says so in its column `n`,
which is 1, and none has an interval, a p-value or a star. Differences between such numbers are differences between two runs.

U-DiT is Tian et al., NeurIPS 2024 (arXiv 2405.02730); DiT is Peebles & Xie, ICCV 2023 (arXiv 2212.09748). GFLOPs are
multiply-accumulates / 1e9.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import require_columns
from analysis.scaling.fit import ScalingFit, scaling_fit
from space.costs.cost import cost
from space.document import nearest
from space.errors import ToolkitError
from space.presets import preset
from space.published import PublishedRow, published_table

SINGLE_RUN = "one training run a row; neither paper prints error bars"
"""Why the frames here have no intervals; also in their `attrs`, under `note`."""

_SCORES = ("fid", "sfid", "is", "precision", "recall")
_FAMILIES = {"SiT-LLAMA": "SiT-LLaMA"}
"""Figure 1's spelling, and the paper's that the points come from."""


def paper_table(name: str) -> pd.DataFrame:
    """A published table with its numbers as floats, NaN where it prints none; see `space.published.published_table` for the texts.

    One row a printed row, in columns label, gflops (multiply-accumulates / 1e9, batch 1), params_m (millions), fid, sfid, is,
    precision and recall (both 0 to 1), steps_per_s, train_steps_k, cfg (guidance scale, 1 is none), resolution (pixels), n (runs
    behind a number: 1), digitised (measured off a picture, about ±0.3 FID), note and source. `attrs` holds the title and why
    there are no intervals. Raises ToolkitError, naming the nearest, for an unknown name.

    >>> paper_table("udit_table9")[["label", "gflops", "fid", "n"]].tail(2).to_numpy().tolist()
    [['U-DiT-T (+DWconv FFN)', 0.95, 79.3, 1], ['U-DiT-T (+Re-param.)', 0.95, 75.71, 1]]
    """
    published = published_table(name)
    frame = pd.DataFrame([_numbers(row) for row in published.rows])
    frame.attrs = {"title": published.title, "note": SINGLE_RUN}
    return frame


def _numbers(row: PublishedRow) -> dict[str, Any]:
    return {
        "label": row.label,
        "gflops": _number(row.gflops),
        "params_m": _number(row.params_m),
        **{metric: _number(row.scores.get(metric, "")) for metric in _SCORES},
        "steps_per_s": _number(row.steps_per_s),
        "train_steps_k": _number(row.train_steps_k),
        "cfg": _number(row.cfg),
        "resolution": row.resolution,
        "n": 1,
        "digitised": row.digitised,
        "note": row.note,
        "source": row.source,
    }


def _number(printed: str) -> float:
    return float(printed) if printed else float("nan")


def paper_differences(name: str, baseline: str, metric: str = "fid") -> pd.DataFrame:
    """How a published table's rows differ from one of them, and each from the row above it.

    One row a printed row that has the metric: label, gflops, the metric, difference (to the baseline's row), step (to the row
    above; NaN in the first) and gflops_ratio (to the baseline's). Differences are row minus baseline, in the metric's unit, so
    negative is better for FID; each is between two single runs. Raises ToolkitError for an unknown table, label or metric, and for
    a baseline without the metric.

    Table 2's claim, a better FID than DiT-XL/2 at a fifth of its GFLOPs (the abstract says 1/6; the table's numbers give 1/5.3):

    >>> rows = paper_differences("udit_table2", baseline="DiT-XL/2 [28]").set_index("label")
    >>> rows.loc["U-DiT-B (Ours)", ["difference", "gflops_ratio"]].astype(float).round(3).tolist()
    [-2.83, 0.187]
    """
    if metric not in _SCORES:
        raise ToolkitError(f"the published tables have no metric '{metric}'{nearest(metric, _SCORES)}")
    base = _numbers(published_table(name).row(baseline))
    if np.isnan(base[metric]):
        raise ToolkitError(
            f"{published_table(name).title} prints no {metric} for '{baseline}', so it cannot be the baseline; name another row"
        )
    printed = paper_table(name).dropna(subset=[metric])[["label", "gflops", metric]].reset_index(drop=True)
    # Rounded as decimals of at most three places are subtracted.
    differences = printed.assign(
        difference=(printed[metric] - base[metric]).round(6),
        step=printed[metric].diff().round(6),
        gflops_ratio=printed["gflops"] / base["gflops"],
        n=1,
    )
    differences.attrs = {"title": published_table(name).title, "note": SINGLE_RUN}
    return differences


def gflops_fid(digitised: bool = False) -> pd.DataFrame:
    """FID-50K against inference GFLOPs after 400K training steps on ImageNet 256×256 without guidance, family by family.

    Columns family, model, gflops, fid, n, digitised and source. DiT's twelve models are Table 4's with adaLN-Zero, U-DiT's three
    are Table 2's, and SiT's and SiT-LLaMA's are of Table 8 of VisionLLaMA, which U-DiT's Figure 1 plots. `digitised=True` adds
    the points as measured off that figure (about ±0.3 FID). Four of its seven DiT points (S/2, L/4, B/2, L/2) lie 0.8 to 3.5 FID
    away from the nearer of the two numbers that U-DiT's own Table 2 prints for them.

    >>> gflops_fid().groupby("family", sort=False).size().to_dict()
    {'DiT': 12, 'U-DiT': 3, 'SiT': 4, 'SiT-LLaMA': 4}
    """
    standard = [
        r for r in published_table("dit_table4").rows if (r.resolution, r.train_steps_k, r.block) == (256, "400", "adaLN-Zero")
    ]
    points = [_point("DiT", row) for row in standard]
    points += [_point("U-DiT", row) for row in published_table("udit_table2").rows if row.printed.startswith("U-DiT")]
    for family in ("SiT", "SiT-LLaMA"):
        points += [_point(family, row) for row in published_table("visionllama_table8").rows if _family(row.printed) == family]
    if digitised:
        points += [_point(_FAMILIES.get(row.printed, row.printed), row) for row in published_table("udit_figure1").rows]
    frame = pd.DataFrame(points)
    frame.attrs = {"title": "FID against GFLOPs after 400K steps", "note": SINGLE_RUN}
    return frame


def _family(model: str) -> str:
    """`SiT-LLaMA` of `SiT-LLaMA-S/2`, `SiT` of `SiT-S/2 (reproduced)`."""
    return model.partition(" ")[0].rpartition("-")[0]


def _point(family: str, row: PublishedRow) -> dict[str, Any]:
    numbers = _numbers(row)
    model = row.label if row.digitised else row.printed.partition(" ")[0]
    return {"family": family, "model": model} | {name: numbers[name] for name in ("gflops", "fid", "n", "digitised", "source")}


def correlation(frame: pd.DataFrame, x: str, y: str, log_x: bool = True, log_y: bool = False) -> float:
    """Pearson's correlation of two columns, each taken as its logarithm where wanted; rows without one of both are left out.

    DiT prints -0.93 for GFLOPs and FID in Figures 8 and 12 and does not say of what. On the twelve rows of Table 4 it is the
    correlation of log GFLOPs with FID, as Figure 8's axes are: -0.930. The other forms round to other numbers: -0.725 without a
    logarithm, -0.936 with both, -0.876 of GFLOPs with log FID, and -0.916 for Spearman's ranks. Twelve models that share a recipe
    are no sample of anything, so there is no interval. Raises ToolkitError for a missing column, fewer than three rows, and for a
    logarithm of what is not positive.

    >>> printed = gflops_fid()
    >>> round(correlation(printed[printed["family"] == "DiT"], "gflops", "fid"), 2)
    -0.93
    """
    require_columns(frame, (x, y))
    pairs = frame[[x, y]].dropna().astype(float)
    if len(pairs) < 3:
        raise ToolkitError(f"a correlation of '{x}' and '{y}' needs three rows that have both, but there are {len(pairs)}")
    for column, log in ((x, log_x), (y, log_y)):
        if log and (pairs[column] <= 0).any():
            raise ToolkitError(
                f"column '{column}' has values that are not positive, so it has no logarithm; take log_x or log_y away"
            )
    first = np.log(pairs[x]) if log_x else pairs[x]
    second = np.log(pairs[y]) if log_y else pairs[y]
    return float(np.corrcoef(first, second)[0, 1])


def fid_by_steps() -> pd.DataFrame:
    """FID-50K against training steps on ImageNet 256×256 without guidance, batches of 256, model by model.

    Columns model, train_steps_k (thousands of steps), train_tflops (multiply-accumulates / 1e12 of forward and backward, by our
    count of the form that the authors train), gflops (inference, as printed), fid, n, digitised and source. Printed numbers are
    of U-DiT's Table 5 and DiT's Table 4. Where neither paper prints a model's FID after so many steps, there are the points
    measured off U-DiT's Figure 2, which say `digitised` (about ±0.3 FID).

    >>> points = fid_by_steps()
    >>> points[points["model"] == "U-DiT-B"]["fid"].tolist()
    [23.23, 16.64, 14.51, 13.53, 12.87]
    >>> points.groupby("digitised").size().to_dict()
    {False: 15, True: 9}
    """
    printed = [row for row in published_table("dit_table4").rows if row.resolution == 256 and row.block == "adaLN-Zero"]
    gflops = {row.printed: row.gflops for row in (*printed, *published_table("udit_table8").rows)}
    models = {row.printed for row in (*published_table("udit_table5").rows, *published_table("udit_figure2").rows)}
    points: dict[tuple[str, int], dict[str, Any]] = {}
    for row in (*published_table("udit_table5").rows, *printed, *published_table("udit_figure2").rows):
        key = (row.printed, int(row.train_steps_k))
        if row.printed in models and key not in points:
            points[key] = _trained(row, float(gflops[row.printed]))
    frame = pd.DataFrame([points[key] for key in sorted(points)])
    frame.attrs = {"title": "FID against training steps", "note": SINGLE_RUN}
    return frame


def fid_by_steps_fit(digitised: bool = False) -> ScalingFit:
    """E + A·C^(−α) through each model's FID over training compute, by `analysis.scaling_fit`; its columns are told there.

    C is train_tflops of `fid_by_steps`; as it is proportional to the steps, E and α are the same over steps. Only printed numbers
    count, of which U-DiT-B and U-DiT-L have five each; the other models have too few, and their row's `problem` says so.
    `digitised=True` adds the points measured off U-DiT's Figure 2, whose error of about ±0.3 FID then is in the fit. Each
    number is of one run, so the intervals rest on how well the curve meets the numbers and do not tell how runs differ.

    The last number of each curve, after a million steps, predicted from the four before it:

    >>> fit = fid_by_steps_fit().table.set_index("family")
    >>> fit.loc[["U-DiT-B", "U-DiT-L"], ["E", "alpha", "predicted", "observed"]].round(2).to_numpy().tolist()
    [[10.62, 1.07, 12.92, 12.87], [6.33, 1.23, 7.62, 7.54]]
    >>> fit.loc["DiT-XL/2", "problem"]
    '3 budgets, and a fit takes at least 4'
    """
    points = fid_by_steps()
    if not digitised:
        points = points[~points["digitised"]]
    return scaling_fit(points, metric="fid", compute="train_tflops", family="model")


def _trained(row: PublishedRow, gflops: float) -> dict[str, Any]:
    """A point of the curve of a model; the authors' U-DiT applies the branches of its feed-forward one by one while it trains."""
    spec = preset(row.printed.lower())
    if row.printed.startswith("U-DiT"):
        spec = spec.replace({"feed_forward.branches": True})
    steps, batch_size = row.protocol.train_steps, row.protocol.batch_size
    assert steps, "every row of these tables is of a training"
    assert batch_size
    return {
        "model": row.printed,
        "train_steps_k": int(row.train_steps_k),
        "train_tflops": steps * cost(spec).step_macs(batch_size) / 1e12,
        "gflops": gflops,
        "fid": float(row.scores["fid"]),
        "n": 1,
        "digitised": row.digitised,
        "source": row.source,
    }
