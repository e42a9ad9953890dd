"""Specs a second: the cost table over random points of a space that varies every path, against one cost after the other.

python -m benchmarks.cost_table
"""

import time

import numpy as np

from space import cost, cost_table
from tests.space.costs.test_table import WIDE, space

POINTS, SINGLE, ROUNDS = 100_000, 2_000, 5


def main():
    searched = space(WIDE)
    for _ in range(ROUNDS):
        start = time.perf_counter()
        table = cost_table(searched, POINTS)
        many = POINTS / (time.perf_counter() - start)
        points = searched.points(np.random.default_rng(0), SINGLE)
        start = time.perf_counter()
        for row in range(SINGLE):
            spec = searched.spec_or_none(points.params(row))
            if spec is not None:
                cost(spec)
        one = SINGLE / (time.perf_counter() - start)
        share = table.buildable.mean()
        print(f"table {many:,.0f} specs/s, one by one {one:,.0f} specs/s, ratio {many / one:.0f}, buildable {share:.1%}")


if __name__ == "__main__":
    main()
