"""Variants against a baseline or the row before, seed by seed: what differs, by how much, and what may be claimed.

One rule makes a claim, and it stands before any number is seen: "better" or "worse" where the p-value of the paired t
test, adjusted by Holm over all comparisons of the table, is below 1 - level; "no evidence" else. The exact sign-flip test
stands beside it and assumes less, but makes no claims: with six seeds and six comparisons it cannot come below 0.19
(`nas.stats.paired.attainable_p`), so a rule by it would be deaf at the numbers of seeds that can be paid for.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import numeric_column, require_columns
from nas.stats.paired import holm, lower_is_better, paired_interval, paired_t_p, ratio_interval, sign_flip_p
from nas.stats.sequential import repeated_interval, sequential_p
from space.array import Array
from space.document import nearest
from space.errors import ToolkitError

BASELINE = "baseline"
BETTER, WORSE, NO_EVIDENCE = "better", "worse", "no evidence"
NO_PAIR, ONE_SEED, BEFORE_FIRST_LOOK = "no common seed: no test", "one seed: no test", "before the first look: no test"
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
"""For every variant its finite values by seed."""


def compare(
    frame: pd.DataFrame, baseline: str, metric: str = "val_loss", level: float = 0.95, looks: Sequence[int] | None = None
) -> pd.DataFrame:
    """Every variant of a tidy frame against the baseline, one row a variant in the order of first appearance.

    `frame` has one row a (variant, seed), with columns variant, seed and the metric; a metric that is not finite (not
    trained to the end, failed) leaves that seed out of its pair. Columns: variant; mean, sd (n-1) and n of its own values;
    pairs, the seeds in common with the baseline; difference, its mean less the baseline's over those; ci_low and ci_high,
    the paired t interval of it (`nas.stats.paired.paired_interval` says how it covers), not widened for the number of
    comparisons; p_value, the exact sign-flip test's, and p_holm, adjusted over all comparisons of this table, untested
    ones too (Holm 1979); p_t and p_t_holm, likewise of the paired t test, which assumes normal differences; verdict:
    baseline, better, worse, no evidence, or why there was no test. All but the p-values are in the unit of the metric, whose
    name is in `attrs["metric"]`.

    With `looks` (seeds were added until there was an answer) intervals are repeated ones and both p-values are the
    sequential one, valid under peeking: see `nas.stats.sequential`. Pairs then count in the order of their seeds.

    Raises ToolkitError for a missing column, a variant or seed that is missing, an unknown baseline or metric, a (variant,
    seed) that stands twice, a metric without any finite value, a level outside (0, 1), or more pairs than planned looks.

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
    table = pd.DataFrame(_summary(samples, list(samples)) | _tested(pairs, metric, level, looks))
    table.attrs["metric"] = metric
    return table


def ladder(
    frame: pd.DataFrame, order: Sequence[str], metric: str = "val_loss", level: float = 0.95, looks: Sequence[int] | None = None
) -> pd.DataFrame:
    """The rungs of a component table in the given order, each against the first and against the one before.

    Rows of other variants are left out. The columns are those of `compare` to the first, and of each row against the one
    before: step_pairs, step (the difference, in the unit of the metric), step_low, step_high, step_p and step_p_holm
    (exact sign-flip), step_p_t and step_p_t_holm (paired t), step_verdict. Differences to the first and steps are two
    tables of comparisons, and each is adjusted for itself (Holm 1979): the chance of a false claim is held at 1 - level
    among the ones and among the others, not among both together.

    Raises ToolkitError as `compare` does, and for an order of fewer than two variants or with one of them twice.

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
    step = {_STEP[name]: column for name, column in _tested(steps, metric, level, looks).items()}
    table = pd.DataFrame(_summary(samples, order) | _tested(first, metric, level, looks) | step)
    table.attrs["metric"] = metric
    return table


def gain_at_equal_cost(
    frame: pd.DataFrame, baseline: str, metric: str = "val_loss", control: str = "flop-matched", level: float = 0.95
) -> pd.DataFrame:
    """How much of each variant's raw gain over the baseline is left at equal cost, one row a variant but the baseline.

    `frame` has one row a (variant, control, seed): `raw` rows, and rows of `control` whose cost was matched to the
    baseline's. The baseline's own rows are the raw ones, for nothing was matched in it. Columns: variant; pairs, the seeds
    that baseline, raw and matched have in common; raw, raw_low, raw_high and matched, matched_low, matched_high, the two
    differences to the baseline with paired t intervals, in the unit of the metric; p_t_holm and verdict of the matched
    difference, as in `compare`; share = matched / raw with share_low and share_high, its interval by Fieller's theorem
    (`nas.stats.paired.ratio_interval`; Fieller 1954), where the raw interval lies wholly on the better side of zero; and note,
    which else says "no gain to share", or why there was no test, and is empty beside a share.

    Raises ToolkitError for a missing column, a variant, control or seed that is missing, an unknown baseline, control or
    metric, a (variant, control, seed) that stands twice, a metric without any finite value, or a level outside (0, 1).

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
    raw = _tested([raw for raw, _ in pairs], metric, level, None)
    matched = _tested([matched for _, matched in pairs], metric, level, None)
    shares = [_share(*own, level, lower_is_better(metric)) for own in pairs]
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
    """The share of a raw gain that is left, its interval, and why there is none."""
    if len(raw) < 2:
        return math.nan, math.nan, math.nan, _untested(len(raw))
    low, high = paired_interval(raw, level)
    if not (high < 0 if lower else low > 0):
        return math.nan, math.nan, math.nan, NO_GAIN
    return float(matched.mean() / raw.mean()), *ratio_interval(matched, raw, level), ""


def _samples(frame: pd.DataFrame, metric: str, keys: tuple[str, ...] = ("variant",)) -> Samples:
    """The values by what `keys` name (a tuple where they are two) and by seed; every key is there, even without a finite value."""
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
            raise ToolkitError(f"{_told(name)}, seed {seed} stands in two rows; keep one row for each of its seeds")
        seen.add((name, seed))
        own = samples.setdefault(name, {})
        if math.isfinite(value):
            own[seed] = value
    if not any(samples.values()):
        raise ToolkitError(f"column {metric} holds no finite value; wait until a trial is complete, or take another metric")
    return samples


def _told(name: Any) -> str:
    return f"variant '{name[0]}' of control {name[1]}" if isinstance(name, tuple) else f"variant '{name}'"


def _check_known(name: str, known: Iterable[Any], what: str = "variant") -> None:
    if name not in known:
        raise ToolkitError(f"no {what} '{name}' in the frame{nearest(str(name), list(map(str, known)))}")


def _differences(samples: Samples, name: str, other: str) -> Array:
    """Of one less the other, in the order of the seeds that both have."""
    own, others = samples[name], samples[other]
    return np.array([own[seed] - others[seed] for seed in sorted(own.keys() & others.keys())])


def _common(samples: Samples, raw: tuple[str, str], matched: tuple[str, str], baseline: tuple[str, str]) -> tuple[Array, Array]:
    """The raw and the matched differences to the baseline, over the seeds that all three have."""
    first, second, base = samples.get(raw, {}), samples.get(matched, {}), samples[baseline]
    seeds = sorted(first.keys() & second.keys() & base.keys())
    return np.array([first[seed] - base[seed] for seed in seeds]), np.array([second[seed] - base[seed] for seed in seeds])


def _summary(samples: Samples, names: Sequence[str]) -> dict[str, Any]:
    """Variant, mean, sd and n."""
    # Sorted, so that the order of rows does not matter, not even in rounding.
    values = [np.array(sorted(samples[name].values())) for name in names]
    return {
        "variant": list(names),
        "mean": [float(own.mean()) if len(own) else math.nan for own in values],
        "sd": [float(own.std(ddof=1)) if len(own) > 1 else math.nan for own in values],
        "n": [len(own) for own in values],
    }


def _tested(pairs: Sequence[Array | None], metric: str, level: float, looks: Sequence[int] | None) -> dict[str, Any]:
    """The columns of `compare` from `pairs` on, for paired differences; None stands for what the others are compared with."""
    least = looks[0] if looks else 2
    tests = [_test(own, level, tuple(looks) if looks else None) if own is not None and len(own) >= least else None for own in pairs]
    means = [float(own.mean()) if own is not None and len(own) else math.nan for own in pairs]
    low, high, p_value, p_t = (np.array([test[place] if test else math.nan for test in tests]) for place in range(4))
    compared = np.array([own is not None for own in pairs], dtype=bool)
    p_holm, p_t_holm = _adjusted(p_value, compared), _adjusted(p_t, compared)
    lower = lower_is_better(metric)
    verdicts = []
    for own, mean, test, adjusted in zip(pairs, means, tests, p_t_holm, strict=True):
        if own is None:
            verdicts.append(BASELINE)
        elif test is None:
            verdicts.append(_untested(len(own)))
        else:
            verdicts.append(NO_EVIDENCE if adjusted >= 1 - level else BETTER if (mean < 0) == lower else WORSE)
    return {
        "pairs": [len(own) if own is not None else 0 for own in pairs],
        "difference": means,
        "ci_low": low,
        "ci_high": high,
        "p_value": p_value,
        "p_holm": p_holm,
        "p_t": p_t,
        "p_t_holm": p_t_holm,
        "verdict": verdicts,
    }


def _test(differences: Array, level: float, looks: tuple[int, ...] | None) -> tuple[float, float, float, float]:
    """Interval, and the p-values that assume less and more."""
    if looks is None:
        return (*paired_interval(differences, level), sign_flip_p(differences), paired_t_p(differences))
    p_value = sequential_p(differences, looks)
    return (*repeated_interval(differences, looks, 1 - level), p_value, p_value)


def _untested(pairs: int) -> str:
    return (NO_PAIR, ONE_SEED)[pairs] if pairs < 2 else BEFORE_FIRST_LOOK


def _adjusted(p_values: Array, compared: Array) -> Array:
    """By Holm over all that is compared: what has no p-value yet counts, so that a claim outlives the tests to come."""
    adjusted = np.full(len(p_values), math.nan)
    adjusted[compared] = holm(np.nan_to_num(p_values[compared], nan=1.0))
    return np.where(np.isnan(p_values), math.nan, adjusted)
