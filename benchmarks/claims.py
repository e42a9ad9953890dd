"""What the claim rule claims: error rates, coverage and power by simulation, beside those of paired t tests, both with Holm.

A table has a baseline and m variants with n paired seeds; a fifth of the variance is the seed's. The error rate is the share of
tables without any effect in which something is claimed. The coverage is that of single comparisons' 95 % intervals, the mean over
the table and the least. The power is the share of true effects that are claimed where a third of the variants are lower (better)
by `effect` standard deviations of a paired difference of plain rows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from nas.stats.hierarchical import Pairs, RowVariances, posterior_variances
from space.array import Array

RULES = ("t", "hierarchical")

SEED_SHARE = 0.2
"""The share of a training's variance that is its seed's."""
UNIT = math.sqrt(2 * (1 - SEED_SHARE))
"""The standard deviation of a paired difference of plain rows, whose values have variance 1."""


def _lognormal(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return (np.exp(random.standard_normal(shape)) - math.exp(0.5)) / math.sqrt((math.e - 1) * math.e)


def _bimodal(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """One training in five ends four standard deviations of the others worse."""
    bad = random.random(shape) < 0.2
    return (random.standard_normal(shape) + 4 * (bad - 0.2)) / math.sqrt(1 + 16 * 0.16)


NOISES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "t3": lambda random, shape: random.standard_t(3, shape) / math.sqrt(3),
    "lognormal": _lognormal,
    "bimodal": _bimodal,
}
"""Noises of mean 0 and variance 1."""


DIVERGING = {
    "diverging-variants-only": slice(1, None),
    "diverging-baseline-only": slice(1),
    "diverging-one-variant": slice(-1, None),
}
"""The rows of which one training in eight ends five standard deviations worse; the means are kept equal."""


def drawn(case: str, variants: int, seeds: int, tables: int, random: np.random.Generator) -> Array:
    """Tables (tables, 1 + variants, seeds) without effects, the baseline first.

    Beside the noises and `DIVERGING`: one training in five is `missing`, all values are `rounded` to whole standard deviations, or
    a third of the variants are `copies` of the baseline, and one of the first variant.
    """
    shape = (tables, 1 + variants, seeds)
    noise = NOISES.get(case, NOISES["normal"])(random, shape)
    if case == "skew-variants-only":
        noise[:, 1:] = _lognormal(random, (tables, variants, seeds))
    spread = np.ones((tables, 1 + variants, 1))
    if case == "hetero-random":
        spread = np.exp(0.5 * random.standard_normal(spread.shape))
    elif case == "hetero-one-x4":
        spread[:, -1] = 4
    elif case == "hetero-two-x3-small-rest":
        spread[:, -2:] = 3
    elif case == "baseline-x3":
        spread[:, 0] = 3
    noise *= spread
    if case in DIVERGING:
        noise[:, DIVERGING[case]] += 5 * ((random.random(shape) < 1 / 8) - 1 / 8)[:, DIVERGING[case]]
    values = math.sqrt(1 - SEED_SHARE) * noise + math.sqrt(SEED_SHARE) * random.standard_normal((tables, 1, seeds))
    if case == "missing":
        values[random.random(shape) < 0.2] = math.nan
    elif case == "rounded":
        values = np.round(values)
    elif case == "copies":
        copied = max(1, variants // 3)
        values[:, -copied:] = values[:, :1]
        values[:, -1 - copied] = values[:, 1]
    return values


@dataclass(frozen=True)
class Cell:
    """One cell of the table."""

    case: str
    variants: int
    seeds: int
    effect: float = 0.0
    ladder: bool = False
    """Every variant is compared with the row before it too, in one family."""

    @property
    def comparisons(self) -> list[tuple[int, int]]:
        """The compared rows."""
        rows = range(1, 1 + self.variants)
        return [(row, 0) for row in rows] + [(row, row - 1) for row in rows if self.ladder and row > 1]


@dataclass(frozen=True)
class Rates:
    """Shares of one rule in one cell."""

    error: float
    coverage: float
    worst: float
    """The least coverage of a single comparison."""
    power: float


def rates(cell: Cell, tables: int, seed: int | list[int] = 0, rules: Sequence[str] = RULES) -> dict[str, Rates]:
    """Error rate, coverage and power of the rules."""
    values = drawn(cell.case, cell.variants, cell.seeds, tables, np.random.default_rng(seed))
    draws = (
        posterior_variances(values, 0, chains=4, kept=100) if "hierarchical" in rules else np.ones((tables, 1, 1 + cell.variants))
    )
    table = RowVariances(values, draws, baseline=0)
    pairs = [table.pairs(row, reference) for row, reference in cell.comparisons]
    levels = np.zeros(1 + cell.variants)
    levels[1 : 1 + max(1, round(cell.variants / 3))] = -cell.effect * UNIT
    shifts = np.array([levels[row] - levels[reference] for row, reference in cell.comparisons])
    found = {}
    for rule in rules:
        of = t_p_value if rule == "t" else Pairs.p_value
        untested = np.stack([one.count < 2 for one in pairs], axis=1)
        none = np.where(untested, 1.0, np.stack([of(one, 0.0) for one in pairs], axis=1))
        some = np.stack([of(one, -shift) for one, shift in zip(pairs, shifts, strict=True)], axis=1)
        some = np.where(untested, 1.0, some)
        covered = (none >= 0.05).mean(0)
        power = (holm(some) < 0.05)[:, shifts != 0].mean() if shifts.any() else math.nan
        found[rule] = Rates(float((holm(none) < 0.05).any(1).mean()), float(covered.mean()), float(covered.min()), float(power))
    return found


def t_p_value(pairs: Pairs, shift: float = 0.0) -> Array:
    """Two-sided p-values (tables,) of paired t tests that the true difference is `shift`; 1 without spread."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(pairs.mean - shift) * np.sqrt(pairs.count) / pairs.spread
        return np.where((pairs.spread > 0) & (pairs.count > 1), 2 * stdtr(np.maximum(pairs.count - 1, 1), -t), 1.0)


def holm(p_values: Array) -> Array:
    """Adjusted p-values (tables, comparisons) by Holm's method, a table a family."""
    order = np.argsort(p_values, axis=1)
    steps = np.take_along_axis(p_values, order, axis=1) * np.arange(p_values.shape[1], 0, -1)
    adjusted = np.empty_like(p_values)
    np.put_along_axis(adjusted, order, np.maximum.accumulate(steps, axis=1), axis=1)
    return adjusted


def cells() -> list[Cell]:
    """The cells of the table in `benchmarks/README.md`."""
    found = []
    for variants, case, seeds in [
        *((5, "normal", seeds) for seeds in (2, 3, 4, 6, 8, 12)),
        *((variants, "normal", seeds) for variants in (2, 12, 30) for seeds in (2, 3, 4, 6)),
        *((5, case, seeds) for case in ("t3", "lognormal", "bimodal") for seeds in (2, 4, 8)),
        *((5, "hetero-random", seeds) for seeds in (2, 3, 6)),
        *((variants, "hetero-random", 4) for variants in (2, 12, 30)),
        *((5, "hetero-one-x4", seeds) for seeds in (2, 3, 4, 8)),
        *((2, "hetero-one-x4", seeds) for seeds in (2, 3, 4)),
        *((variants, "hetero-one-x4", 4) for variants in (12, 30)),
        *((5, "hetero-two-x3-small-rest", seeds) for seeds in (2, 4, 6)),
        *((5, "baseline-x3", seeds) for seeds in (2, 3, 4, 8)),
        *((2, "baseline-x3", seeds) for seeds in (2, 3, 6)),
        *((variants, "baseline-x3", seeds) for variants in (12, 30) for seeds in (2, 4)),
        *((5, "diverging-variants-only", seeds) for seeds in (2, 4, 8, 12)),
        *((5, "diverging-baseline-only", seeds) for seeds in (2, 4, 8, 12)),
        *((2, "diverging-baseline-only", seeds) for seeds in (4, 6)),
        *((variants, "diverging-baseline-only", 8) for variants in (12, 30)),
        *((5, "diverging-one-variant", seeds) for seeds in (2, 6)),
        *((5, "skew-variants-only", seeds) for seeds in (2, 3, 8)),
        *(
            (variants, case, seeds)
            for case in ("missing", "rounded", "copies")
            for variants, seeds in ((5, 2), (5, 4), (12, 6), (30, 4))
        ),
    ]:
        found.append(Cell(case, variants, seeds, 2.0 if seeds < 6 else 1.5))
    for case in ("normal", "hetero-random", "hetero-one-x4", "baseline-x3", "diverging-variants-only"):
        found += [Cell(case, 5, seeds, 2.0 if seeds < 6 else 1.5, ladder=True) for seeds in (2, 4, 8)]
    return found


def main() -> None:
    """Print a row per cell, in per cent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", nargs="+")
    given = parser.parse_args()
    print(f"Monte-Carlo error at 5 %: {100 * math.sqrt(0.05 * 0.95 / given.tables):.1f} points")
    print("| m | case | n | effect | error t | rule | coverage t | rule | least t | rule | power t | rule |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for number, cell in enumerate(cells()):
        if given.cases and cell.case not in given.cases:
            continue
        t, rule = rates(cell, given.tables, seed=1000 * given.seed + number).values()
        shares = [t.error, rule.error, t.coverage, rule.coverage, t.worst, rule.worst]
        case = cell.case + (" (ladder)" if cell.ladder else "")
        text = " | ".join(f"{100 * share:.1f}" for share in shares) + f" | {100 * t.power:.0f} | {100 * rule.power:.0f}"
        print(f"| {cell.variants} | {case} | {cell.seeds} | {cell.effect} | {text} |", flush=True)


if __name__ == "__main__":
    main()
