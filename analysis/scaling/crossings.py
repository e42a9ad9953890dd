"""The compute at which two scaling curves cross, and the probability that one is better at a given compute."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from analysis.scaling.fit import Family, ScalingFit
from analysis.scaling.power_law import Law
from space.array import Array
from space.errors import ToolkitError

BEYOND = 4
"""A curve is read up to this factor beyond its budgets; further away it holds only if nothing changes, which no data can tell."""

_POINTS = 1000
"""The points of the grid on which curves are compared; a crossing is interpolated between two of them."""


@dataclass(frozen=True)
class Crossover:
    """The crossing of two families' curves; computes are in the fit's unit, and NaN where the fitted curves do not cross."""

    one: str
    other: str
    compute: float
    low: float
    """The lower end of the 95 % interval; 0 where it reaches below the budgets."""
    high: float
    """The upper end of the interval; infinite where it reaches beyond the range searched."""
    better_after: str
    """The family that is better beyond the crossing; without a crossing, the family that is better throughout, if any."""
    share_without: float
    """The share of resamples whose curves do not cross in the range searched."""
    text: str
    """All of this as a sentence."""


@dataclass(frozen=True)
class Probability:
    """The share of resamples in which `one` is better than `other` at a compute."""

    one: str
    other: str
    at: float
    probability: float
    warning: str
    """Empty unless the compute is far beyond the budgets, or these speak against the law of a family."""


def scaling_crossover(fit: ScalingFit, one: Hashable, other: Hashable) -> Crossover:
    """The compute at which two families' curves cross.

    It is searched for from their smallest budget to 4 times the largest budget that both have, and a crossing that is not among the
    budgets of both is called an extrapolation. The interval is taken over the
    resamples of the fit, in which both families have the same seeds. A resample without a crossing counts as an earlier or a later
    one, depending on the family that leads, so the interval is open where such resamples are many. Two curves of this law cross at
    most twice; then the later crossing is returned and the text names the earlier.

    Args:
        fit: The result of `scaling_fit`.
        one: The name of a family.
        other: The name of another family.

    Raises:
        ToolkitError: A family is unknown, is compared with itself, or has a fit that is refused.

    >>> import pandas as pd
    >>> from analysis.scaling.fit import scaling_fit
    >>> rows = [(f, s, c, e + a * c**-0.5 + 0.0002 * ((3 * s + c) % 5)) for f, e, a in (("DiT", 0.3, 1), ("U-DiT", 0.2, 1.4))
    ...         for s in range(6) for c in (1, 2, 4, 8, 16, 32)]
    >>> fit = scaling_fit(pd.DataFrame(rows, columns=["family", "seed", "train_tflops", "val_loss"]))
    >>> print(scaling_crossover(fit, "DiT", "U-DiT").text)
    DiT and U-DiT cross at 16 train_tflops (95 % interval 16 to 16), beyond which U-DiT is better
    """
    first, second = _pair(fit, one, other)
    smallest, largest = _common(first, second)
    start, end = min(first.points["compute"].min(), second.points["compute"].min()), BEYOND * largest
    grid = np.geomspace(start, end, _POINTS)
    names = f"{first.name} and {second.name}"
    fitted, resampled = (_lead(mine, its, grid) for mine, its in zip(first.curves, second.curves, strict=True))
    after = first if fitted[0, -1] > 0 else second
    sign = 1 if after is first else -1
    compute = float(_crossing(sign * fitted, grid)[0])
    without = float(np.mean((resampled > 0).all(axis=1) | (resampled <= 0).all(axis=1)))
    span = f"between {start:.3g} and {end:.3g} {fit.compute} (beyond {largest:.3g} an extrapolation)"
    doubts = "".join(f"; {family.name}: {family.doubt}" for family in (first, second) if family.doubt)
    if not 0 < compute < math.inf:
        # Equal curves give infinity.
        leader = after.name if compute == 0 else ""
        text = f"{names} do not cross {span}, where {leader or 'neither'} is better; nor do {100 * without:.0f} % of the resamples"
        text += doubts
        return Crossover(first.name, second.name, math.nan, math.nan, math.nan, leader, without, text)
    low, high = (float(value) for value in np.quantile(_crossing(sign * resampled, grid), [0.025, 0.975], method="inverted_cdf"))
    text = (
        f"{names} cross at {compute:.3g} {fit.compute} (95 % interval {_interval(low, high)}), beyond which {after.name} is better"
    )
    if compute > largest:
        text += (
            f"; that is an extrapolation to {compute / largest:.3g} times the largest budget that both have, {largest:.3g}, "
            "and holds if nothing changes beyond it"
        )
    elif compute < smallest:
        text += f"; that is below the smallest budget that both have, {smallest:.3g}, and holds if nothing changes below it"
    elif high > largest:
        text += f"; the interval reaches beyond the largest budget that both have, {largest:.3g}, if nothing changes beyond it"
    before = grid <= max(compute, start)
    earlier = float(_crossing(-sign * fitted[:, before], grid[before])[0])
    if 0 < earlier < math.inf:
        text += f"; they also cross at {earlier:.3g}"
    if without > 0:
        text += f"; {100 * without:.0f} % of the resamples do not cross {span}"
    text += doubts
    return Crossover(first.name, second.name, compute, low, high, after.name, without, text)


def probability_better(fit: ScalingFit, one: Hashable, other: Hashable, at: float) -> Probability:
    """The share of resamples in which `one`'s curve is better than `other`'s at a compute.

    It is a probability insofar as what the budgets show goes on: the law, or where they speak against it the law with its misfit,
    both of which the warning tells. 0 and 1 mean less than one resample.

    Args:
        fit: The result of `scaling_fit`.
        one: The name of a family.
        other: The name of another family.
        at: The compute, in the fit's unit.

    Raises:
        ToolkitError: As for `scaling_crossover`, and when the compute is not positive.

    >>> import pandas as pd
    >>> from analysis.scaling.fit import scaling_fit
    >>> rows = [(f, s, c, e + c**-0.5 + 0.001 * ((3 * s + c) % 5)) for f, e in (("DiT", 0.3), ("U-DiT", 0.2))
    ...         for s in range(6) for c in (1, 2, 4, 8, 16, 32)]
    >>> fit = scaling_fit(pd.DataFrame(rows, columns=["family", "seed", "train_tflops", "val_loss"]))
    >>> probability_better(fit, "U-DiT", "DiT", at=100).probability
    1.0
    """
    first, second = _pair(fit, one, other)
    if not (at > 0 and math.isfinite(at)):
        raise ToolkitError(f"{fit.compute} to compare at is {at}; compute is a positive number")
    lead = _lead(first.curves[1], second.curves[1], np.array([at]))
    smallest, largest = _common(first, second)
    warnings = [f"{family.name}: {family.doubt}" for family in (first, second) if family.doubt]
    for extreme, side, ratio in (("largest", "beyond", at / largest), ("smallest", "below", smallest / at)):
        if ratio > BEYOND:
            warnings.append(
                f"{at:g} {fit.compute} is {ratio:.3g} times {side} the {extreme} budget that both have: "
                f"holds if nothing changes {side} it"
            )
    warning = "; ".join(warnings)
    return Probability(first.name, second.name, at, float(np.mean(lead > 0)), warning)


def _pair(fit: ScalingFit, one: Hashable, other: Hashable) -> tuple[Family, Family]:
    first, second = fit.family(one), fit.family(other)
    if first is second:
        raise ToolkitError(f"family {first.name} cannot be compared with itself; name two families")
    return first, second


def _common(first: Family, second: Family) -> tuple[float, float]:
    """The smallest and the largest compute at which both families' budgets begin and end."""
    one, other = first.points["compute"], second.points["compute"]
    return float(max(one.min(), other.min())), float(min(one.max(), other.max()))


def _lead(first: Law, second: Law, grid: Array) -> Array:
    """The amount by which the first is better, shape (curves, computes)."""
    return first.sign * (second.at(grid) - first.at(grid))


def _crossing(lead: Array, grid: Array) -> Array:
    """The compute at which each row of leads turns positive for good: 0 if it always is, infinity if it is not at the end."""
    behind = lead <= 0
    last = lead.shape[1] - 1 - behind[:, ::-1].argmax(axis=1)
    rows, after = np.arange(len(lead)), np.minimum(last + 1, lead.shape[1] - 1)
    before_lead, after_lead = lead[rows, last], lead[rows, after]
    with np.errstate(invalid="ignore", divide="ignore"):
        fraction = -before_lead / (after_lead - before_lead)
        crossed = np.exp(np.log(grid[last]) + fraction * (np.log(grid[after]) - np.log(grid[last])))
    return np.where(~behind.any(axis=1), 0.0, np.where(behind[:, -1], np.inf, crossed))


def _interval(low: float, high: float) -> str:
    below = f"{low:.3g}" if low > 0 else "below the data"
    return f"{below} to {high:.3g}" if math.isfinite(high) else f"{below} and up"
