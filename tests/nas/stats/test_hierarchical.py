"""Comparisons with hierarchical variances: agreement of interval and p-value, missing trainings, extremes."""

import doctest
import math

import numpy as np
import pytest

from nas.stats import hierarchical
from nas.stats.hierarchical import row_variances
from nas.stats.paired import paired_interval, paired_t_p
from space.errors import ToolkitError


def drawn(seed, rows=6, seeds=4, effect=2.0):
    """Normal values with a common effect of the seed; row 1 differs from the others."""
    random = np.random.default_rng(seed)
    table = random.standard_normal((rows, seeds)) + random.standard_normal(seeds)
    table[1] += effect
    return table


def test_examples():
    found = doctest.testmod(hierarchical)
    assert found.attempted
    assert not found.failed


def test_the_order_of_rows_and_seeds_does_not_matter():
    table = drawn(1)
    found = row_variances(table, 0).compare(1, 0)
    assert row_variances(table[[2, 3, 0, 1, 4, 5]][:, [3, 1, 0, 2]], 2).compare(3, 2) == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-310, 1e-300, 1e-12, 1e12, 1e300])
def test_the_unit_does_not_matter(scale):
    low, high, p = row_variances(drawn(2), 0).compare(1, 0)
    found = row_variances(drawn(2) * scale, 0).compare(1, 0)
    assert found == (pytest.approx(low * scale, rel=1e-4), pytest.approx(high * scale, rel=1e-4), pytest.approx(p, rel=1e-4))


def test_a_common_level_does_not_matter():
    found = row_variances(drawn(2) + 1e9, 0).compare(1, 0)
    assert found == pytest.approx(row_variances(drawn(2), 0).compare(1, 0), rel=1e-3)
    low, high, _ = row_variances(drawn(2) + np.arange(6)[:, None], 0).compare(3, 2)
    assert low + high == pytest.approx(sum(row_variances(drawn(2), 0).compare(3, 2)[:2]) + 2), "differences are never shrunk"
