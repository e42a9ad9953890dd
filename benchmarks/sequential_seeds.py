"""What sequential seeds cost and find by simulation: trainings, error rate and power, with and without a stop for futility.

Tables are those of `benchmarks.claims`, with a baseline and five variants, of which two have an effect. All rows begin with three
seeds. After each seed a row ends that is claimed, or whose conditional power at twelve seeds is below the limit; the baseline goes
on with the last row. Verdicts are those of a table: sequential p-values with Holm's correction.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from benchmarks.claims import UNIT, drawn, holm
from nas.stats.hierarchical import RowVariances, posterior_variances
from nas.stats.sequential import FUTILE, bounds, conditional_power, looks, sequential_p
from nas.stats.sequential_variances import normal_levels, smallest_alpha
from space.array import Array

VARIANTS, TRUE, LOOKS = 5, 2, looks(3, 12)
ALPHA = 0.05 / VARIANTS


@dataclass(frozen=True)
class Outcome:
    """Means over tables."""

    trainings: float
    error: float
    """The share of tables with a false claim."""
    power: float
    """The share of true effects that are claimed."""


def played(case: str, effect: float, tables: int, rule: str, limit: float, seed: int = 0) -> Outcome:
    """Simulate tables by the rule `hierarchical` or `t`; a limit of 0 never stops for futility."""
    values = drawn(case, VARIANTS, LOOKS[-1], tables, np.random.default_rng(seed))
    values[:, 1 : 1 + TRUE] -= effect * UNIT
    last = normal_levels(LOOKS, ALPHA)[-1] if rule == "hierarchical" else 2 * stdtr(LOOKS[-1] - 1, -bounds(LOOKS, ALPHA)[-1])
    going, found = np.ones((tables, VARIANTS), dtype=bool), np.ones((tables, VARIANTS))
    trainings = np.full(tables, float(LOOKS[0] * (1 + VARIANTS)))
    for index, look in enumerate(LOOKS):
        if rule == "hierarchical":
            p = hierarchical(values[..., :look])
            found = np.where(going, np.minimum(found, smallest_alpha(LOOKS, index, p)), found)
            settled = found < ALPHA
        else:
            differences = values[:, 1:, :look] - values[:, :1, :look]
            t = np.abs(differences.mean(2)) * math.sqrt(look) / differences.std(2, ddof=1)
            p, settled = 2 * stdtr(look - 1, -t), t > bounds(LOOKS, ALPHA)[index]
        going &= ~settled & (conditional_power(p, look / LOOKS[-1], float(last)) >= limit)
        if look < LOOKS[-1]:
            trainings += going.sum(1) + going.any(1)
            values[:, 1:, look:] = np.where(going[..., None], values[:, 1:, look:], math.nan)
    if rule == "t":
        differences = values[:, 1:] - values[:, :1]
        found = np.array([[sequential_p(row[~np.isnan(row)], LOOKS) for row in table] for table in differences])
    claimed, true = holm(found) < 0.05, TRUE if effect else 0
    power = float(claimed[:, :true].mean()) if effect else math.nan
    return Outcome(float(trainings.mean()), float(claimed[:, true:].any(1).mean()), power)


def hierarchical(values: Array, chains: int = 4, kept: int = 60) -> Array:
    """The p-values (tables, variants) of one look."""
    table = RowVariances(values, posterior_variances(values, 0, chains, kept), 0)
    return np.stack([table.pairs(row, 0).p_value() for row in range(1, 1 + VARIANTS)], axis=1)


def main() -> None:
    """Print a row per case and effect, in per cent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=1000)
    given = parser.parse_args()
    plans = [("t", 0.0), ("hierarchical", 0.0), ("hierarchical", FUTILE)]
    print(
        "| case | effect |"
        + " |".join(f" {rule}{', futility' if limit else ''}: trainings | error | power" for rule, limit in plans)
        + " |"
    )
    print("| --- " * (2 + 3 * len(plans)) + "|")
    for number, (case, effect) in enumerate(
        [*(("normal", effect) for effect in (0.0, 1.0, 1.5, 2.0)), *(("hetero-random", effect) for effect in (0.0, 1.5))]
        + [(case, 0.0) for case in ("baseline-x3", "diverging-baseline-only", "diverging-variants-only", "hetero-one-x4")]
    ):
        found = [played(case, effect, given.tables, rule, limit, seed=100 + number) for rule, limit in plans]
        texts = (f"{one.trainings:.1f} | {100 * one.error:.1f} | {100 * one.power:.0f}" for one in found)
        print(f"| {case} | {effect} | " + " | ".join(texts).replace("nan", "") + " |", flush=True)


if __name__ == "__main__":
    main()
