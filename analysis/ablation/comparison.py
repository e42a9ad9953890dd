"""Variants compared seed by seed with a baseline or with the variant before: differences, intervals, tests and verdicts.

One rule decides the verdict, and it is fixed before any number is seen. It is "better" or "worse" where the p-value of the
paired t test, adjusted by Holm over all comparisons of the table, is below 1 - level, and "no evidence" otherwise. The exact
sign-flip test assumes less and is reported beside it, but decides nothing: with six seeds and six comparisons it cannot come
below 0.19 (`nas.stats.paired.attainable_p`), so a rule by it would find nothing at affordable numbers of seeds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import numeric_column, require_columns
from nas.stats.paired import paired_interval, ratio_interval
from nas.stats.verdicts import judged, untested
from nas.study.metrics import lower_is_better
from space.array import Array
from space.document import nearest
from space.errors import ToolkitError

NO_GAIN = "no gain to share"

_STEP = {
    "pairs": "step_pairs",
    "difference": "step",
    "ci_low": "step_low",
    "ci_high": "step_high",
    "p_value": "step_p",
    "p_holm": "step_p_holm",
    "p_t": "step_p_t",
    "p_t_holm": "step_p_t_holm",
    "verdict": "step_verdict",
}

Samples = Mapping[Any, Mapping[Any, float]]
"""The finite values of every variant by seed."""


def compare(
    frame: pd.DataFrame, baseline: str, metric: str = "val_loss", level: float = 0.95, looks: Sequence[int] | None = None
) -> pd.DataFrame:
    """Compare every variant of a tidy frame with the baseline.

    Args:
        frame: One row per (variant, seed), with columns variant, seed and the metric. A metric that is not finite (the trial
            failed or did not reach the full budget) leaves that seed out of its pair.
        baseline: The variant that the others are compared with.
        metric: The column of the metric.
        level: The level of the intervals; 1 - level is the threshold of the verdicts.
        looks: The numbers of pairs at which the differences were looked at, where seeds were added until there was an
            answer. Intervals are then repeated intervals and both p-values are the sequential one, valid under peeking
            (see `nas.stats.sequential`), and pairs count in the order of their seeds.

    Returns:
        One row per variant, in the order of first appearance: variant; mean, sd (n - 1) and n of its own values; pairs, the
        number of seeds in common with the baseline; difference, its mean minus the baseline's over those seeds; ci_low and
        ci_high, the paired t interval of the difference (`nas.stats.paired.paired_interval` gives its coverage), not widened
        for the number of comparisons; p_value of the exact sign-flip test and p_holm, adjusted over all comparisons of this
        table, untested ones included (Holm 1979); p_t and p_t_holm, the same for the paired t test, which assumes normal
        differences; verdict: baseline, better, worse, no evidence, or the reason why there was no test. All but the p-values
        are in the unit of the metric, whose name is in `attrs["metric"]`.

    Raises:
        ToolkitError: A column, a variant or a seed is missing, the baseline or the metric is unknown, a (variant, seed) has
            two rows, no value of the metric is finite, the level is outside (0, 1), or there are more pairs than planned looks.

    >>> loss = {"plain": [0.31, 0.35, 0.33, 0.30], "cosine": [0.29, 0.32, 0.31, 0.29]}
    >>> rows = [(variant, seed, value) for variant in loss for seed, value in enumerate(loss[variant])]
    >>> table = compare(pd.DataFrame(rows, columns=["variant", "seed", "val_loss"]), baseline="plain")
    >>> table.loc[1, ["difference", "ci_low", "ci_high", "p_value", "p_t"]].astype(float).round(4).tolist()
    [-0.02, -0.033, -0.007, 0.125, 0.0163]
    >>> table["verdict"].tolist()
    ['baseline', 'better']
    """
    samples = _samples(frame, metric)
    _check_known(baseline, samples)
    pairs = [None if name == baseline else _differences(samples, name, baseline) for name in samples]
    table = pd.DataFrame(_summary(samples, list(samples)) | judged(pairs, lower_is_better(metric), level, looks))
    table.attrs["metric"] = metric
    return table


def ladder(
    frame: pd.DataFrame, order: Sequence[str], metric: str = "val_loss", level: float = 0.95, looks: Sequence[int] | None = None
) -> pd.DataFrame:
    """Compare each rung of a component table with the first and with the one before.

    Differences to the first rung and steps are two tables of comparisons, each adjusted on its own (Holm 1979): the chance of
    a false claim is at most 1 - level within each table, not over both together.

    Args:
        frame: As for `compare`; rows of variants that are not in `order` are left out.
        order: The variants from the first rung up.
        metric: The column of the metric.
        level: As for `compare`.
        looks: As for `compare`.

    Returns:
        One row per rung. The columns are those of `compare` against the first rung, and against the rung before: step_pairs,
        step (the difference, in the unit of the metric), step_low, step_high, step_p and step_p_holm (exact sign-flip),
        step_p_t and step_p_t_holm (paired t), step_verdict.

    Raises:
        ToolkitError: As for `compare`, and when `order` has fewer than two variants or names one twice.

    >>> loss = {"plain": [0.31, 0.35, 0.33, 0.30], "+ cosine": [0.29, 0.32, 0.31, 0.29], "+ RoPE": [0.28, 0.32, 0.31, 0.28]}
    >>> rows = [(variant, seed, value) for variant in loss for seed, value in enumerate(loss[variant])]
    >>> table = ladder(pd.DataFrame(rows, columns=["variant", "seed", "val_loss"]), order=list(loss))
    >>> table[["variant", "difference", "step", "step_verdict"]].round(4).values.tolist()[1:]
    [['+ cosine', -0.02, -0.02, 'better'], ['+ RoPE', -0.025, -0.005, 'no evidence']]
    """
    samples = _samples(frame, metric)
    if len(order) < 2 or len(set(order)) < len(order):
        raise ToolkitError(
            f"a ladder of {', '.join(map(str, order)) or 'nothing'} has no steps; name two variants or more, each once"
        )
    for name in order:
        _check_known(name, samples)
    first = [None, *(_differences(samples, name, order[0]) for name in order[1:])]
    steps = [None, *(_differences(samples, name, before) for before, name in pairwise(order))]
    lower = lower_is_better(metric)
    step = {_STEP[name]: column for name, column in judged(steps, lower, level, looks).items()}
    table = pd.DataFrame(_summary(samples, order) | judged(first, lower, level, looks) | step)
    table.attrs["metric"] = metric
    return table


def gain_at_equal_cost(
    frame: pd.DataFrame, baseline: str, metric: str = "val_loss", control: str = "flop-matched", level: float = 0.95
) -> pd.DataFrame:
    """The share of each variant's raw gain over the baseline that is left at equal cost.

    Args:
        frame: One row per (variant, control, seed): rows of control `raw`, and rows of `control`, whose cost was matched to
            the baseline's. The baseline has raw rows only, as it matches itself.
        baseline: The variant that the others are compared with.
        metric: The column of the metric.
        control: The control of the matched rows.
        level: As for `compare`.

    Returns:
        One row per variant except the baseline: variant; pairs, the number of seeds that baseline, raw and matched have in
        common; raw, raw_low, raw_high and matched, matched_low, matched_high, the two differences to the baseline with paired
        t intervals, in the unit of the metric; p_t_holm and verdict of the matched difference, as in `compare`; share =
        matched / raw with share_low and share_high, its interval by Fieller's theorem (`nas.stats.paired.ratio_interval`;
        Fieller 1954), given where the raw interval lies wholly on the better side of zero; note, which is "no gain to share"
        or the reason why there was no test, and empty where there is a share.

    Raises:
        ToolkitError: A column, a variant, a control or a seed is missing, the baseline, control or metric is unknown, a
            (variant, control, seed) has two rows, no value of the metric is finite, or the level is outside (0, 1).

    >>> loss = {("plain", "raw"): [0.31, 0.35, 0.33, 0.30], ("big", "raw"): [0.27, 0.30, 0.29, 0.26]}
    >>> loss["big", "flop-matched"] = [0.29, 0.32, 0.31, 0.28]
    >>> rows = [(*key, seed, value) for key in loss for seed, value in enumerate(loss[key])]
    >>> table = gain_at_equal_cost(pd.DataFrame(rows, columns=["variant", "control", "seed", "val_loss"]), baseline="plain")
    >>> table[["variant", "raw", "matched", "share", "share_low", "share_high"]].round(3).values.tolist()
    [['big', -0.042, -0.022, 0.529, 0.421, 0.604]]
    """
    samples = _samples(frame, metric, ("variant", "control"))
    names = list(dict.fromkeys(name for name, _ in samples))
    _check_known(baseline, names)
    _check_known(control, dict.fromkeys(kind for _, kind in samples if kind != "raw"), "control")
    if (baseline, "raw") not in samples:
        raise ToolkitError(f"baseline '{baseline}' has no rows of control raw; keep them in the frame")
    others = [name for name in names if name != baseline]
    pairs = [_common(samples, (name, "raw"), (name, control), (baseline, "raw")) for name in others]
    lower = lower_is_better(metric)
    raw = judged([raw for raw, _ in pairs], lower, level)
    matched = judged([matched for _, matched in pairs], lower, level)
    shares = [_share(*differences, level, lower) for differences in pairs]
    return pd.DataFrame(
        {
            "variant": others,
            "pairs": raw["pairs"],
            "raw": raw["difference"],
            "raw_low": raw["ci_low"],
            "raw_high": raw["ci_high"],
            "matched": matched["difference"],
            "matched_low": matched["ci_low"],
            "matched_high": matched["ci_high"],
            "p_t_holm": matched["p_t_holm"],
            "verdict": matched["verdict"],
            "share": [share for share, _, _, _ in shares],
            "share_low": [low for _, low, _, _ in shares],
            "share_high": [high for _, _, high, _ in shares],
            "note": [note for _, _, _, note in shares],
        }
    )


def _share(raw: Array, matched: Array, level: float, lower: bool) -> tuple[float, float, float, str]:
    """The share of a raw gain that is left, its interval, and the reason where there is no share."""
    if len(raw) < 2:
        return math.nan, math.nan, math.nan, untested(len(raw))
    low, high = paired_interval(raw, level)
    if not (high < 0 if lower else low > 0):
        return math.nan, math.nan, math.nan, NO_GAIN
    return float(matched.mean() / raw.mean()), *ratio_interval(matched, raw, level), ""


def _samples(frame: pd.DataFrame, metric: str, keys: tuple[str, ...] = ("variant",)) -> Samples:
    """The finite values by the columns `keys` (a tuple for two) and by seed; a key without finite values is kept, empty."""
    require_columns(frame, (*keys, "seed", metric))
    lower_is_better(metric)
    numbers = numeric_column(frame, metric).tolist()
    names: list[Hashable] = frame[keys[0]].tolist() if len(keys) == 1 else list(zip(*(frame[key] for key in keys), strict=True))
    samples: dict[Any, dict[Any, float]] = {}
    if any(frame[key].isna().any() for key in (*keys, "seed")):
        raise ToolkitError(f"a row of the frame has no {' or no '.join((*keys, 'seed'))}; fill it in, or leave the row out")
    seen = set()
    for name, seed, value in zip(names, frame["seed"].tolist(), numbers, strict=True):
        if (name, seed) in seen:
            raise ToolkitError(f"{_described(name)}, seed {seed} has two rows; keep one row per seed")
        seen.add((name, seed))
        by_seed = samples.setdefault(name, {})
        if math.isfinite(value):
            by_seed[seed] = value
    if not any(samples.values()):
        raise ToolkitError(f"column {metric} holds no finite value; wait until a trial is complete, or take another metric")
    return samples


def _described(name: Any) -> str:
    return f"variant '{name[0]}' of control {name[1]}" if isinstance(name, tuple) else f"variant '{name}'"


def _check_known(name: str, known: Iterable[Any], what: str = "variant") -> None:
    if name not in known:
        raise ToolkitError(f"no {what} '{name}' in the frame{nearest(str(name), list(map(str, known)))}")


def _differences(samples: Samples, name: str, other: str) -> Array:
    """The values of one variant minus those of the other, in the order of the seeds that both have."""
    first, second = samples[name], samples[other]
    return np.array([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])


def _common(samples: Samples, raw: tuple[str, str], matched: tuple[str, str], baseline: tuple[str, str]) -> tuple[Array, Array]:
    """The raw and the matched differences to the baseline, over the seeds that all three have in common."""
    first, second, base = samples.get(raw, {}), samples.get(matched, {}), samples[baseline]
    seeds = sorted(first.keys() & second.keys() & base.keys())
    return np.array([first[seed] - base[seed] for seed in seeds]), np.array([second[seed] - base[seed] for seed in seeds])


def _summary(samples: Samples, names: Sequence[str]) -> dict[str, Any]:
    """The columns variant, mean, sd and n."""
    # Sorted, so that the result does not depend on the order of the rows, not even in rounding.
    values = [np.array(sorted(samples[name].values())) for name in names]
    return {
        "variant": list(names),
        "mean": [float(column.mean()) if len(column) else math.nan for column in values],
        "sd": [float(column.std(ddof=1)) if len(column) > 1 else math.nan for column in values],
        "n": [len(column) for column in values],
    }
