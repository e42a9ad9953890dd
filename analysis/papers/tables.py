"""The papers' tables and figures as frames, from their published numbers only.

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

SINGLE_RUN = "one training run per row; neither paper prints error bars"
"""The reason why the frames here have no intervals; also in their `attrs`, under `note`."""

_SCORES = ("fid", "sfid", "is", "precision", "recall")
_FAMILIES = {"SiT-LLAMA": "SiT-LLaMA"}
"""Figure 1's spelling of a family, and that of the paper it is from."""


def paper_table(name: str) -> pd.DataFrame:
    """A published table with its numbers as floats; `space.published.published_table` has the printed texts.

    Args:
        name: The name of the table, such as `udit_table9`.

    Returns:
        One row per printed row, with NaN where no number is printed: label, gflops (multiply-accumulates / 1e9, batch 1), params_m
        (millions), fid, sfid, is, precision and recall (both 0 to 1), steps_per_s, train_steps_k, cfg (guidance scale, 1 is none),
        resolution (pixels), n (runs per number: 1), digitised (measured from a figure, about ±0.3 FID), note and source. `attrs`
        has the title and the reason why there are no intervals.

    Raises:
        ToolkitError: The name is unknown; the message names the nearest.

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
    """The differences of a published table's rows to one of them, and to the row above.

    Args:
        name: The name of the table.
        baseline: The label of the row that the others are compared with.
        metric: fid, sfid, is, precision or recall.

    Returns:
        One row per printed row that has the metric: label, gflops, the metric, difference (to the baseline's row), step (to the row
        above; NaN in the first) and gflops_ratio (to the baseline's). Differences are row minus baseline, in the metric's unit, so
        negative is better for FID; each is between two single runs.

    Raises:
        ToolkitError: The table, the label or the metric is unknown, or the baseline does not have the metric.

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
    # Rounded, as the printed numbers have at most three decimals.
    differences = printed.assign(
        difference=(printed[metric] - base[metric]).round(6),
        step=printed[metric].diff().round(6),
        gflops_ratio=printed["gflops"] / base["gflops"],
        n=1,
    )
    differences.attrs = {"title": published_table(name).title, "note": SINGLE_RUN}
    return differences


def gflops_fid(digitised: bool = False) -> pd.DataFrame:
    """FID-50K against inference GFLOPs after 400K training steps on ImageNet 256×256 without guidance, by family.

    DiT's twelve models are those of its Table 4 with adaLN-Zero, U-DiT's three are those of its Table 2, and SiT's and SiT-LLaMA's
    are those of Table 8 of VisionLLaMA, which U-DiT's Figure 1 plots. Four of the figure's seven DiT points (S/2, L/4, B/2, L/2)
    differ by 0.8 to 3.5 FID from the nearer of the two numbers that U-DiT's own Table 2 prints for them.

    Args:
        digitised: Whether to add the points measured from that figure (about ±0.3 FID).

    Returns:
        Columns family, model, gflops, fid, n, digitised and source.

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
    """Pearson's correlation of two columns or of their logarithms; rows without both values are left out.

    DiT prints -0.93 for GFLOPs and FID in Figures 8 and 12 without saying which correlation it is. On the twelve rows of Table 4
    it is that of log GFLOPs with FID, the axes of Figure 8: -0.930. The other forms round to other numbers: -0.725 without a
    logarithm, -0.936 with both, -0.876 for GFLOPs with log FID, and -0.916 for Spearman's ranks. Twelve models that share a recipe
    are not a random sample, so there is no interval.

    Args:
        frame: A frame with the two columns.
        x: The first column.
        y: The second column.
        log_x: Whether to take the logarithm of `x`.
        log_y: Whether to take the logarithm of `y`.

    Raises:
        ToolkitError: A column is missing, fewer than three rows have both values, or a logarithm is taken of a value that is not
            positive.

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
    """FID-50K against training steps on ImageNet 256×256 without guidance, batches of 256, by model.

    Printed numbers are those of U-DiT's Table 5 and DiT's Table 4. Where neither paper prints a model's FID at a point, it is
    measured from U-DiT's Figure 2 (about ±0.3 FID), and `digitised` is true.

    Returns:
        Columns model, train_steps_k (thousands of steps), train_tflops (multiply-accumulates / 1e12 of forward and backward, by our
        count of the form that the authors train), gflops (inference, as printed), fid, n, digitised and source.

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
    """E + A·C^(−α) through each model's FID over training compute, by `analysis.scaling_fit`, which describes the columns.

    C is train_tflops of `fid_by_steps`; as it is proportional to the steps, E and α are the same over steps. U-DiT-B and U-DiT-L
    have five printed numbers each; the other models have too few, and the `problem` of their row says so. Each number is one run,
    so the intervals rest on the misfit of the curve and do not show the difference between runs.

    Args:
        digitised: Whether to add the points measured from U-DiT's Figure 2, whose error of about ±0.3 FID is then in the fit.

    The last number of each curve, after a million steps, predicted from the four before it:

    >>> fit = fid_by_steps_fit().table.set_index("family")
    >>> fit.loc[["U-DiT-B", "U-DiT-L"], ["E", "alpha", "predicted", "observed"]].round(2).to_numpy().tolist()
    [[10.62, 1.07, 12.92, 12.87], [6.33, 1.23, 7.62, 7.54]]
    >>> fit.loc["DiT-XL/2", "problem"]
    '3 budgets, and a fit needs at least 4'
    """
    points = fid_by_steps()
    if not digitised:
        points = points[~points["digitised"]]
    return scaling_fit(points, metric="fid", compute="train_tflops", family="model")


def _trained(row: PublishedRow, gflops: float) -> dict[str, Any]:
    """A point of a model's curve. During training the authors' U-DiT applies the branches of its feed-forward one by one."""
    spec = preset(row.printed.lower())
    if row.printed.startswith("U-DiT"):
        spec = spec.replace({"feed_forward.branches": True})
    steps, batch_size = row.protocol.train_steps, row.protocol.batch_size
    assert steps, "every row of these tables has its training steps"
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
