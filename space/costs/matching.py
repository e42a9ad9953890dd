"""Equal cost by another width: the control that tells an architecture's merit from its size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from space.array import Array
from space.costs.cost import COST_METRICS, cost
from space.costs.points import Column, Points
from space.costs.table import CostTable
from space.document import nearest
from space.errors import SpecError
from space.spec import ModelSpec

TOLERANCE = 0.01

WIDEST, FIRST_WIDEST = 65_536, 256
"""Channels up to which a width is looked for, and how far at first."""

HIGHEST_RATIO = 64
"""The feed-forward's hidden width is looked for up to so many times the width."""


@dataclass(frozen=True)
class Match:
    """The nearest spec on the grid of valid widths, and how near it came."""

    spec: ModelSpec
    by: str
    metric: str
    target: float
    value: float

    @property
    def error(self) -> float:
        """Relative to the target; positive when the spec is dearer."""
        return self.value / self.target - 1

    @property
    def within(self) -> bool:
        """Whether the cost is within 1 % of the target."""
        return abs(self.error) <= TOLERANCE

    def __str__(self) -> str:
        width = f"{self.by} {self.spec.value_at(self.by):g}"
        found = f"{width} has {self.metric} {self.value:.4g}, {self.error:+.2%} from {self.target:.4g}"
        return found if self.within else f"no valid value comes within {TOLERANCE:.0%}: the nearest, {found}"


def match_cost(spec: ModelSpec, target: float, by: str = "channels", metric: str = "gflops") -> Match:
    """Re-solve a width so that a cost comes nearest to a target, everything else as it is.

    `by` is `channels` or `feed_forward.ratio`; `metric` is `gflops`, `train_gflops` or `params_m`. Heads stay, so widths are
    multiples of what they need; where that grid is too coarse for 1 %, the match says how near it came. Raises SpecError for
    another `by` or metric, a target that is not above 0, and when no width at all can be built.
    """
    if metric not in COST_METRICS:
        raise SpecError(f"'{metric}' is not a cost{nearest(metric, COST_METRICS)}")
    if not target > 0:
        raise SpecError(f"the target {target:g} is not above 0")
    if by == "channels":
        most = FIRST_WIDEST
        found = _costs(spec, by, np.arange(1, most + 1), metric)
        # A width's cost grows with it, so nothing beyond the first that is dear enough is nearer.
        while most < WIDEST and not (found[1] >= target).any():
            most *= 2
            found = _costs(spec, by, np.arange(1, most + 1), metric)
    elif by == "feed_forward.ratio":
        found = _costs(spec, by, _ratios(max(stage.width for stage in spec.stages)), metric)
    else:
        raise SpecError(f"the cost is matched by channels or feed_forward.ratio, not by '{by}'")
    values, costs = found
    if not len(values):
        raise SpecError(f"no value of {by} makes an architecture that can be built")
    best = int(np.argmin(np.abs(costs - target)))
    matched = spec.replace({by: values[best].item()})
    return Match(matched, by, metric, target, float(getattr(cost(matched), metric)))


def match_width(spec: ModelSpec, target: float, metric: str = "gflops") -> Match:
    """Re-solve the channels so that a cost comes nearest to a target, and the feed-forward's ratio where their grid is too coarse.

    Small models have few valid widths; the ratio then closes the gap that the nearest one leaves. Raises SpecError as `match_cost`.
    """
    match = match_cost(spec, target, "channels", metric)
    return match if match.within else match_cost(match.spec, target, "feed_forward.ratio", metric)


def _ratios(width: int) -> Array:
    """Ratios that give a stage of this width every hidden width in turn, rounded up where a product would fall below it."""
    hidden = np.arange(1, HIGHEST_RATIO * width + 1)
    ratios = hidden / width
    return np.where((width * ratios).astype(np.int64) < hidden, np.nextafter(ratios, np.inf), ratios)


def _costs(spec: ModelSpec, by: str, values: Array, metric: str) -> tuple[Array, Array]:
    """The values that can be built, and their costs."""
    column = Column(values, None, np.ones(len(values), dtype=bool))
    table = CostTable(Points(spec, {by: column}, len(values)))
    return values[table.buildable], getattr(table, metric)[table.buildable]
