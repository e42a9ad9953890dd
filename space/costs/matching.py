"""Equal cost at another width: the control that separates the merit of an architecture from its size."""

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
"""The largest relative error that counts as equal cost."""

WIDEST, FIRST_WIDEST = 65_536, 256
"""The most channels that are searched, and the most in the first search."""

HIGHEST_RATIO = 64
"""The largest ratio of the feed-forward's hidden width to the width that is searched."""


@dataclass(frozen=True)
class Match:
    """The spec of the valid width whose cost is nearest to a target."""

    spec: ModelSpec
    by: str
    metric: str
    target: float
    value: float

    @property
    def error(self) -> float:
        """The relative difference from the target; positive when the spec costs more."""
        return self.value / self.target - 1

    @property
    def within(self) -> bool:
        """Whether the cost is within 1 % of the target."""
        return abs(self.error) <= TOLERANCE

    def __str__(self) -> str:
        width = f"{self.by} {self.spec.value_at(self.by):g}"
        nearest_value = f"{width} has {self.metric} {self.value:.4g}, {self.error:+.2%} from {self.target:.4g}"
        return nearest_value if self.within else f"no valid value comes within {TOLERANCE:.0%}: the nearest, {nearest_value}"


def match_cost(spec: ModelSpec, target: float, by: str = "channels", metric: str = "gflops") -> Match:
    """Find the width at which a spec costs nearest to a target, with everything else unchanged.

    The number of heads stays, so valid widths are multiples of what the heads need. Where that grid is too coarse to
    come within 1 %, the match reports the remaining difference.

    Args:
        spec: The spec to resize.
        target: The wanted cost.
        by: The width to change, `channels` or `feed_forward.ratio`.
        metric: The cost to match: `gflops`, `train_gflops` or `params_m`.

    Raises:
        SpecError: For another `by` or metric, for a target that is not above 0, and when no width can be built.
    """
    if metric not in COST_METRICS:
        raise SpecError(f"'{metric}' is not a cost{nearest(metric, COST_METRICS)}")
    if not target > 0:
        raise SpecError(f"the target {target:g} is not above 0")
    if by == "channels":
        most = FIRST_WIDEST
        widths = _costs(spec, by, np.arange(1, most + 1), metric)
        # The cost grows with the width, so no width beyond the first that reaches the target is nearer.
        while most < WIDEST and not (widths[1] >= target).any():
            most *= 2
            widths = _costs(spec, by, np.arange(1, most + 1), metric)
    elif by == "feed_forward.ratio":
        widths = _costs(spec, by, _ratios(max(stage.width for stage in spec.stages)), metric)
    else:
        raise SpecError(f"the cost is matched by channels or feed_forward.ratio, not by '{by}'")
    values, costs = widths
    if not len(values):
        raise SpecError(f"no value of {by} makes an architecture that can be built")
    best = int(np.argmin(np.abs(costs - target)))
    matched = spec.replace({by: values[best].item()})
    return Match(matched, by, metric, target, float(getattr(cost(matched), metric)))


def match_width(spec: ModelSpec, target: float, metric: str = "gflops") -> Match:
    """As `match_cost` by channels, and then by the feed-forward's ratio where the grid of channels is too coarse.

    Small models have few valid widths; the ratio then closes the gap that the nearest width leaves.

    Raises:
        SpecError: As `match_cost`.
    """
    match = match_cost(spec, target, "channels", metric)
    return match if match.within else match_cost(match.spec, target, "feed_forward.ratio", metric)


def _ratios(width: int) -> Array:
    """The ratio of every hidden width of a stage, rounded up where its product with the width would be too small."""
    hidden = np.arange(1, HIGHEST_RATIO * width + 1)
    ratios = hidden / width
    return np.where((width * ratios).astype(np.int64) < hidden, np.nextafter(ratios, np.inf), ratios)


def _costs(spec: ModelSpec, by: str, values: Array, metric: str) -> tuple[Array, Array]:
    """The values that can be built, and their costs."""
    column = Column(values, None, np.ones(len(values), dtype=bool))
    table = CostTable(Points(spec, {by: column}, len(values)))
    return values[table.buildable], getattr(table, metric)[table.buildable]
