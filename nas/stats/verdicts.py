"""The verdicts on paired differences: a t test with Holm's correction over all comparisons of a family, fixed beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nas.stats.paired import holm, paired_interval, paired_t_p, sign_flip_p
from nas.stats.sequential import repeated_interval, sequential_p
from space.array import Array

LEVEL = 0.95
"""The level of intervals; 1 - level is the threshold of verdicts."""

BASELINE = "baseline"
BETTER, WORSE, NO_EVIDENCE = "better", "worse", "no evidence"
NO_PAIR, ONE_SEED, BEFORE_FIRST_LOOK = "no common seed: no test", "one seed: no test", "before the first look: no test"


def judged(pairs: Sequence[Array | None], lower: bool, level: float = LEVEL, looks: Sequence[int] | None = None) -> dict[str, Any]:
    """Test one family of comparisons.

    Args:
        pairs: The paired differences of each row, in the order of their seeds; None marks the row that the others are compared
            with.
        lower: Whether lower values are better.
        level: The level of the intervals; 1 - level is the threshold of the verdicts.
        looks: The numbers of pairs at which the differences were looked at, where seeds were added until there was an answer.

    Returns:
        One entry per row: pairs, difference, ci_low, ci_high, p_value, p_holm, p_t, p_t_holm and verdict, as
        `analysis.compare` describes them.
    """
    least = looks[0] if looks else 2
    tests = [
        _test(differences, level, tuple(looks) if looks else None)
        if differences is not None and len(differences) >= least
        else None
        for differences in pairs
    ]
    means = [float(differences.mean()) if differences is not None and len(differences) else math.nan for differences in pairs]
    low, high, p_value, p_t = (np.array([test[column] if test else math.nan for test in tests]) for column in range(4))
    compared = np.array([differences is not None for differences in pairs], dtype=bool)
    p_holm, p_t_holm = _adjusted(p_value, compared), _adjusted(p_t, compared)
    verdicts = []
    for differences, mean, test, adjusted in zip(pairs, means, tests, p_t_holm, strict=True):
        if differences is None:
            verdicts.append(BASELINE)
        elif test is None:
            verdicts.append(untested(len(differences)))
        else:
            verdicts.append(NO_EVIDENCE if adjusted >= 1 - level else BETTER if (mean < 0) == lower else WORSE)
    return {
        "pairs": [len(differences) if differences is not None else 0 for differences in pairs],
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
    """The interval, the p-value of the sign-flip test and that of the t test; both are the sequential one with looks."""
    if looks is None:
        return (*paired_interval(differences, level), sign_flip_p(differences), paired_t_p(differences))
    p_value = sequential_p(differences, looks)
    return (*repeated_interval(differences, looks, 1 - level), p_value, p_value)


def untested(pairs: int) -> str:
    """Why so few pairs have no test."""
    return (NO_PAIR, ONE_SEED)[pairs] if pairs < 2 else BEFORE_FIRST_LOOK


def _adjusted(p_values: Array, compared: Array) -> Array:
    """Holm's adjustment over all comparisons. Those without a p-value yet count as 1, so that later tests undo no claim."""
    adjusted = np.full(len(p_values), math.nan)
    adjusted[compared] = holm(np.nan_to_num(p_values[compared], nan=1.0))
    return np.where(np.isnan(p_values), math.nan, adjusted)
