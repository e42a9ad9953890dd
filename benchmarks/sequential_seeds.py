"""What sequential seeds cost and find by simulation: trainings, error rate and power, with and without a stop for futility.

Tables are those of `benchmarks.claims`, with a baseline and five variants, of which two have an effect. All rows begin with three
seeds. After each seed, a row ends that is claimed, or whose conditional power at twelve seeds is below the limit; the baseline goes on
with the last row. Verdicts are those of a table: sequential p-values with Holm's correction.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from benchmarks.claims import UNIT, drawn, holm
from nas.search.seeds import FUTILE
from nas.stats.hierarchical import RowVariances, posterior_variances
from nas.stats.sequential import conditional_power, looks, normal_levels, smallest_alpha

VARIANTS, TRUE, LOOKS = 5, 2, looks(3, 12)


def played(case: str, effect: float, tables: int, seed: int, limit: float, chains: int = 4, kept: int = 60) -> dict[str, float]:
    """Simulate tables: the mean number of trainings, and the shares of tables with a false claim and of true effects claimed."""
    values = drawn(case, VARIANTS, LOOKS[-1], tables, np.random.default_rng(seed))
    values[:, 1 : 1 + TRUE] += effect * UNIT
    alpha = 0.05 / VARIANTS
    open_, found = np.ones((tables, VARIANTS), dtype=bool), np.ones((tables, VARIANTS))
    trainings = np.full(tables, float(LOOKS[0] * (1 + VARIANTS)))
    for index, look in enumerate(LOOKS):
        table = RowVariances(values[..., :look], posterior_variances(values[..., :look], 0, chains, kept), 0)
        p = np.stack([table.pairs(row, 0).p_value() for row in range(1, 1 + VARIANTS)], axis=1)
        found = np.where(open_, np.minimum(found, smallest_alpha(LOOKS, index, p)), found)
        open_ &= (found > alpha) & (conditional_power(LOOKS, index, p, alpha) >= limit)
        if look < LOOKS[-1]:
            trainings += open_.sum(1) + open_.any(1)
            values[:, 1:, look:] = np.where(open_[..., None], values[:, 1:, look:], math.nan)
    claimed = holm(found) < 0.05
    true = slice(0, TRUE if effect else 0)
    return {
        "trainings": float(trainings.mean()),
        "error": float(claimed[:, true.stop :].any(1).mean()),
        "power": float(claimed[:, true].mean()) if effect else math.nan,
    }
