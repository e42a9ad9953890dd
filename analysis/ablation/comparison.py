"""Variants compared seed by seed with a baseline or with the variant before: differences, intervals, tests and verdicts.

One rule decides the verdict, and it is fixed before any number is seen (`nas.stats.verdicts.RULE`). It is "better" or "worse"
where the p-value of the rule, adjusted by Holm over all comparisons of the table, is below 1 - level, and "no evidence" otherwise.
The exact sign-flip test assumes less and is reported beside it, but decides nothing: with six seeds and six comparisons it cannot
come below 0.19 (`nas.stats.paired.attainable_p`), so a rule by it would find nothing at affordable numbers of seeds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import numeric_column, require_columns, require_seeds
from nas.stats.paired import LARGEST, paired_differences, ratio_interval
from nas.stats.verdicts import BASELINE, BETTER, RULE, Pair, judged, untested
from nas.study.metrics import lower_is_better
from space.array import Array
from space.document import nearest
from space.errors import ToolkitError

NO_GAIN = "no gain to share"

_STEP = {
    "planned": "step_planned",
    "pairs": "step_pairs",
    "difference": "step",
    "ci_low": "step_low",
    "ci_high": "step_high",
    "p_value": "step_p",
    "p_holm": "step_p_holm",
    "p_rule": "step_p_rule",
    "p_rule_holm": "step_p_rule_holm",
    "verdict": "step_verdict",
    "verdict_without_failures": "step_verdict_without_failures",
    "exaggeration": "step_exaggeration",
}

Samples = Mapping[Any, Mapping[Any, float]]
"""The values of every variant by seed; NaN where the trial failed."""


def compare(
    frame: pd.DataFrame,
    baseline: str,
    metric: str = "val_loss",
    level: float = 0.95,
    looks: Sequence[int] | None = None,
    rule: str = RULE,
    order: Sequence[str] = (),
) -> pd.DataFrame:
    """Compare every variant of a tidy frame with the baseline.

    Args:
        frame: One row per (variant, seed), with columns variant, seed and the metric. A metric that is not finite is a trial that
            failed: its seed is left out of its pair, and counted against a claim (`nas.stats.verdicts` says how). A seed without
            a row, or whose trial has not ended, is no failure: leave its row out.
        baseline: The variant that the others are compared with.
        metric: The column of the metric.
        level: The level of the intervals; 1 - level is the threshold of the verdicts.
        looks: The numbers of pairs at which the differences were looked at, where seeds were added until there was an
            answer. Intervals are then repeated intervals and p-values are sequential ones, valid under peeking (see
            `nas.stats.sequential`), p_value that of the t test; pairs count in the order of their seeds.
        rule: `hierarchical`, or `t` for the paired t test.
        order: The variants of a ladder from the baseline up. The table then has the columns of a step too, as `ladder` has.

    Returns:
        One row per variant, in the order of first appearance: variant; mean, sd (n - 1) and n of its own values; planned, the
        number of seeds at which it and the baseline have a trial, and pairs, those at which both have a value; difference, its
        mean minus the baseline's over the pairs; ci_low and ci_high, the interval of the difference by the rule, not widened for
        the number of comparisons; p_value of the exact sign-flip test and p_holm, adjusted over all comparisons of this table,
        steps and untested ones included (Holm 1979); p_rule and p_rule_holm, the same for the rule that the verdict rests on;
        verdict: baseline, better, worse, no evidence, or the reason why there was no test; verdict_without_failures, what it
        would be if failed trials did not count; exaggeration, for a claim the factor by which claims of a true difference as
        large as this one are too large on average (`nas.stats.paired.exaggeration`); rule, the name of the rule. It is the paired
        t test where fewer than two comparisons show a spread. Differences are in the unit of the metric, whose name is in
        `attrs["metric"]`.

    Raises:
        ToolkitError: A column, a variant or a seed is missing, seeds are of several types, the baseline, the metric or the rule is
            unknown, a (variant, seed) has two rows, no value of the metric is finite, the level is outside (0, 1), or there are
            more pairs than planned looks.

    >>> loss = {"plain": [0.31, 0.35, 0.33, 0.30], "cosine": [0.29, 0.32, 0.31, 0.29]}
    >>> rows = [(variant, seed, value) for variant in loss for seed, value in enumerate(loss[variant])]
    >>> table = compare(pd.DataFrame(rows, columns=["variant", "seed", "val_loss"]), baseline="plain")
    >>> table.loc[1, ["difference", "ci_low", "ci_high", "p_value", "p_rule"]].astype(float).round(4).tolist()
    [-0.02, -0.033, -0.007, 0.125, 0.0163]
    >>> table["verdict"].tolist()
    ['baseline', 'better']
    """
    samples = _samples(frame, metric)
    for name in (baseline, *order):
        _check_known(name, samples)
    if order and (order[0] != baseline or len(set(order)) < len(order)):
        raise ToolkitError(f"the order {', '.join(map(str, order))} does not start from '{baseline}', or names a variant twice")
    return _table(samples, list(samples), baseline, order, metric, level, looks, rule)


def ladder(
    frame: pd.DataFrame,
    order: Sequence[str],
    metric: str = "val_loss",
    level: float = 0.95,
    looks: Sequence[int] | None = None,
    rule: str = RULE,
) -> pd.DataFrame:
    """Compare each rung of a component table with the first and with the one before.

    Differences to the first rung and steps are one family, corrected together (Holm 1979): the chance of any false claim in the
    table is at most 1 - level. The first step is the first rung's difference, and counts once: k steps are 2k - 1 comparisons.

    Args:
        frame: As for `compare`; rows of variants that are not in `order` are left out.
        order: The variants from the first rung up.
        metric: The column of the metric.
        level: As for `compare`.
        looks: As for `compare`.
        rule: As for `compare`.

    Returns:
        One row per rung. The columns are those of `compare` against the first rung, and against the rung before: step_planned,
        step_pairs, step (the difference, in the unit of the metric), step_low, step_high, step_p and step_p_holm (exact
        sign-flip), step_p_rule and step_p_rule_holm, step_verdict, step_verdict_without_failures, step_exaggeration.

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
    return _table(samples, order, order[0], order, metric, level, looks, rule)


def gain_at_equal_cost(
    frame: pd.DataFrame,
    baseline: str,
    metric: str = "val_loss",
    control: str = "flop-matched",
    level: float = 0.95,
    rule: str = RULE,
) -> pd.DataFrame:
    """The share of each variant's raw gain over the baseline that is left at equal cost.

    Args:
        frame: One row per (variant, control, seed): rows of control `raw`, and rows of `control`, whose cost was matched to
            the baseline's. The baseline has raw rows only, as it matches itself.
        baseline: The variant that the others are compared with.
        metric: The column of the metric; values that are not finite are failed trials, as for `compare`.
        control: The control of the matched rows.
        level: As for `compare`.
        rule: As for `compare`.

    Returns:
        One row per variant except the baseline: variant; pairs, the number of seeds at which baseline, raw and matched have a
        value; raw, raw_low, raw_high and matched, matched_low, matched_high, the two differences to the baseline with intervals
        by the rule, in the unit of the metric; raw_verdict; p_rule_holm and verdict of the matched difference, as in `compare`;
        raw and matched differences are corrected together, as one family. share = matched / raw with share_low and share_high,
        its interval by Fieller's theorem (`nas.stats.paired.ratio_interval`; Fieller 1954), given where the raw verdict is
        "better" and the interval is bounded; note, which is "no gain to share" or the reason why there was no test, and empty
        where there is a share; rule, the name of the rule.

    Raises:
        ToolkitError: A column, a variant, a control or a seed is missing, seeds are of several types, the baseline, control,
            metric or rule is unknown, a (variant, control, seed) has two rows, no value of the metric is finite, or the level is
            outside (0, 1).

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
    base = samples[baseline, "raw"]
    rows = [row for name in others for row in _common(samples.get((name, "raw"), {}), samples.get((name, control), {}), base)]
    pairs = [(number, 0) for number in range(1, len(rows) + 1)]
    table = pd.DataFrame(judged([base, *rows], pairs, lower_is_better(metric), level, rule=rule))
    raw, matched = table.iloc[::2].reset_index(drop=True), table.iloc[1::2].reset_index(drop=True)
    differences = [_differences(row, base) for row in rows]
    shares = [
        _share(of_raw, of_matched, str(verdict), level)
        for of_raw, of_matched, verdict in zip(differences[::2], differences[1::2], raw["verdict"], strict=True)
    ]
    return pd.DataFrame(
        {
            "variant": others,
            "pairs": raw["pairs"],
            "raw": raw["difference"],
            "raw_low": raw["ci_low"],
            "raw_high": raw["ci_high"],
            "raw_verdict": raw["verdict"],
            "matched": matched["difference"],
            "matched_low": matched["ci_low"],
            "matched_high": matched["ci_high"],
            "p_rule_holm": matched["p_rule_holm"],
            "verdict": matched["verdict"],
            "share": [share for share, _, _, _ in shares],
            "share_low": [low for _, low, _, _ in shares],
            "share_high": [high for _, _, high, _ in shares],
            "note": [note for _, _, _, note in shares],
            "rule": matched["rule"],
        }
    )


def _table(
    samples: Samples,
    names: Sequence[str],
    baseline: str,
    order: Sequence[str],
    metric: str,
    level: float,
    looks: Sequence[int] | None,
    rule: str,
) -> pd.DataFrame:
    """Variants against the baseline and, in a ladder, against the one before; all comparisons are one family."""
    place = {name: number for number, name in enumerate([baseline, *(name for name in names if name != baseline)])}
    first = {name: (place[name], 0) for name in names if name != baseline}
    steps = {name: (place[name], place[before]) for before, name in pairwise(order)}
    family = list(dict.fromkeys([*first.values(), *steps.values()]))
    results = judged([samples[name] for name in place], family, lower_is_better(metric), level, looks, rule)
    table = pd.DataFrame(_summary(samples, names) | _results(results, family, first, names, baseline))
    if order:
        step = _results(results, family, steps, names, baseline)
        table = table.assign(**{title: step[column] for column, title in _STEP.items()})
    table.attrs["metric"] = metric
    return table


_ALONE = {"planned": 0, "pairs": 0, "verdict": BASELINE, "verdict_without_failures": BASELINE, "rule": ""}
"""What the columns hold for the variant that the others are compared with, where it is not NaN."""


def _results(
    results: Mapping[str, list[Any]], family: list[Pair], compared: Mapping[Any, Pair], names: Sequence[str], baseline: str
) -> dict[str, list[Any]]:
    """The results of the variants' comparisons, by column; NaN for a variant that is not among them."""
    places = {name: family.index(pair) for name, pair in compared.items()}
    alone = {baseline: _ALONE}
    return {
        column: [values[places[name]] if name in places else alone.get(name, {}).get(column, math.nan) for name in names]
        for column, values in results.items()
    }


def _share(raw: Array, matched: Array, verdict: str, level: float) -> tuple[float, float, float, str]:
    """The share of a raw gain that is left, its interval, and the reason where there is no share."""
    if len(raw) < 2:
        return math.nan, math.nan, math.nan, untested(len(raw))
    low, high = ratio_interval(matched, raw, level) if verdict == BETTER else (-math.inf, math.inf)
    if not math.isfinite(low):
        return math.nan, math.nan, math.nan, NO_GAIN
    return float(matched.mean() / raw.mean()), low, high, ""


def _samples(frame: pd.DataFrame, metric: str, keys: tuple[str, ...] = ("variant",)) -> Samples:
    """The values by the columns `keys` (a tuple for two) and by seed, NaN where they are not finite."""
    require_columns(frame, (*keys, "seed", metric))
    require_seeds(frame)
    lower_is_better(metric)
    numbers = numeric_column(frame, metric).tolist()
    names: list[Hashable] = frame[keys[0]].tolist() if len(keys) == 1 else list(zip(*(frame[key] for key in keys), strict=True))
    samples: dict[Any, dict[Any, float]] = {}
    if any(frame[key].isna().any() for key in (*keys, "seed")):
        raise ToolkitError(f"a row of the frame has no {' or no '.join((*keys, 'seed'))}; fill it in, or leave the row out")
    for name, seed, value in zip(names, frame["seed"].tolist(), numbers, strict=True):
        by_seed = samples.setdefault(name, {})
        if seed in by_seed:
            raise ToolkitError(f"{_described(name)}, seed {seed} has two rows; keep one row per seed")
        if math.isfinite(value) and abs(value) > LARGEST:
            raise ToolkitError(
                f"{_described(name)}, seed {seed} has {metric} {value:g}, beyond ±{LARGEST:g}, which no difference can be computed "
                "with; leave the value empty (NaN), as of a training that failed"
            )
        by_seed[seed] = value if math.isfinite(value) else math.nan
    if not any(math.isfinite(value) for by_seed in samples.values() for value in by_seed.values()):
        raise ToolkitError(f"column {metric} holds no finite value; wait until a trial is complete, or take another metric")
    return samples


def _described(name: Any) -> str:
    return f"variant '{name[0]}' of control {name[1]}" if isinstance(name, tuple) else f"variant '{name}'"


def _check_known(name: str, known: Iterable[Any], what: str = "variant") -> None:
    if name not in known:
        raise ToolkitError(f"no {what} '{name}' in the frame{nearest(str(name), list(map(str, known)))}")


def _differences(row: Mapping[Any, float], base: Mapping[Any, float]) -> Array:
    """The differences of the seeds at which both have a value, in the order of the seeds."""
    seeds = [seed for seed in sorted(row.keys() & base.keys()) if math.isfinite(row[seed]) and math.isfinite(base[seed])]
    return paired_differences([row[seed] for seed in seeds], [base[seed] for seed in seeds])


def _common(raw: Mapping[Any, float], matched: Mapping[Any, float], base: Mapping[Any, float]) -> Iterator[dict[Any, float]]:
    """The raw and the matched values of the seeds that all three have; where only the other one failed, the seed is left out."""
    seeds = [seed for seed in raw if seed in matched and seed in base]
    for row, other in ((raw, matched), (matched, raw)):
        yield {seed: row[seed] for seed in seeds if math.isfinite(other[seed]) or not math.isfinite(row[seed])}


def _summary(samples: Samples, names: Sequence[str]) -> dict[str, Any]:
    """The columns variant, mean, sd and n."""
    # Sorted, so that the result does not depend on the order of the rows, not even in rounding.
    values = [np.array(sorted(value for value in samples[name].values() if math.isfinite(value))) for name in names]
    return {
        "variant": list(names),
        "mean": [float(column.mean()) if len(column) else math.nan for column in values],
        "sd": [float(column.std(ddof=1)) if len(column) > 1 else math.nan for column in values],
        "n": [len(column) for column in values],
    }
