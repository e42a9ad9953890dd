"""Which component brought how much: Shapley values of a total gain, and the effects of a factorial."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import chain, combinations, islice, pairwise
from math import comb, prod

import numpy as np
import pandas as pd

from analysis.columns import numeric_column, require_columns
from nas.stats.paired import holm, paired_interval, paired_t_p, sign_flip_p
from space.array import Array
from space.errors import ToolkitError

SHAPLEY = "shapley"
IN_ORDER = "in this order"

_NAMED = 4
"""How many missing combinations an error names."""

_ROUNDING = 16 * np.finfo(float).eps
"""Sums of cells smaller than this part of the largest cell are rounding alone."""

Coalition = frozenset[str]


def shapley(frame: pd.DataFrame, factors: Sequence[str], metric: str = "val_loss") -> pd.DataFrame:
    """How much of the change from no component to all of them each component brought.

    `frame` has one row a (variant, seed): `variant`, `seed`, the metric, and a boolean column for each of `factors`, true
    where the variant holds that component. Other columns are ignored. A seed for which the metric of some combination is
    missing, not finite or has no row is left out whole, so that all values rest on the same pairs.

    With all 2^k combinations the values are exact Shapley values (L. S. Shapley, A value for n-person games, 1953): what a
    component adds, averaged over all orders in which the k components can be added, computed within each seed and then
    averaged over the seeds. A ladder's k + 1 nested combinations know one order alone and do not identify the Shapley
    value; for them the value is what the component added at its place, and another order may credit it with more or less.
    Add-one-in and leave-one-out together say what a component brings first and last, which bounds its Shapley value only
    where components never both help and hinder one another; so they are not taken for an attribution.

    Returns one row a component, in the order of `factors`, or of the ladder: `component`; `share` of the total (they sum
    to 1; negative for a component that works against the total; NaN where the total is zero); `value` in the unit of the
    metric, negative where the component lowers it; `ci_low` and `ci_high`, its 95 % paired interval over seeds (NaN for a
    single seed); `seeds`, how many were counted; `kind`, "shapley" or "in this order". The values sum to the metric with
    all components minus that with none. `attrs["metric"]` names the metric.

    Raises ToolkitError when a column is missing, a factor is not boolean, two variants hold the same components, a variant
    stands there twice for a seed, no seed is whole, or the combinations are neither all nor a ladder.

    >>> frame = pd.DataFrame({"variant": ["none", "a", "b", "both"], "seed": [0] * 4,
    ...                       "a": [False, True, False, True], "b": [False, False, True, True],
    ...                       "val_loss": [1.0, 0.75, 0.5, 0.0]})
    >>> print(shapley(frame, ["a", "b"])[["component", "share", "value", "kind"]].to_string(index=False))
    component  share  value    kind
            a  0.375 -0.375 shapley
            b  0.625 -0.625 shapley
    """
    present, cells = _cells(frame, factors, metric)
    order = _ladder_order(present, factors)
    if len(present) == 2 ** len(factors):
        kind, components, weights = SHAPLEY, list(factors), _shapley_weights(present, factors)
    elif order:
        kind, components, weights = IN_ORDER, order, _step_weights(present)
    else:
        raise _lacking(present, factors, "the total cannot be attributed", "; a ladder, at least in one order")
    whole = _whole(cells, metric)
    values = _combined(whole, weights)
    means = values.mean(axis=0)
    # All less none, rather than the sum of the values, whose rounding would make shares of a total of zero.
    total = (whole[:, -1] - whole[:, 0]).mean()
    table = pd.DataFrame({"component": components, "share": means / total if total else np.nan, "value": means})
    table = table.assign(**_intervals(values), seeds=len(values), kind=kind)
    table.attrs["metric"] = metric
    return table


def factorial_effects(frame: pd.DataFrame, factors: Sequence[str], metric: str = "val_loss") -> pd.DataFrame:
    """The main effects and the two-way interactions of a full two-level factorial.

    `frame` is that of `shapley`, with all 2^k combinations. Within each seed the effects are the usual ±1 contrasts (Box,
    Hunter and Hunter, Statistics for Experimenters, 2nd ed. 2005, chapter 5): a main effect is the mean metric with the
    component minus that without it; an interaction A × B is half the difference between the effect of A where B is there
    and where it is not. Interactions of three and more components are not shown, nor pooled into an error: the spread
    comes from the seeds.

    Returns one row an effect, main effects first: `effect` ("A" or "A × B"); `value` in the unit of the metric, the mean
    over seeds; `ci_low` and `ci_high`, its 95 % paired interval; `p_value` of the exact two-sided sign-flip test and
    `p_holm`, that corrected over the table (S. Holm, 1979); `p_t` of the paired t test, which takes the seeds' values as
    normal, and `p_t_holm`; `seeds`, how many were counted. With a single seed intervals and p are NaN: one value
    shows no spread. `attrs["metric"]` names the metric.

    Raises ToolkitError as `shapley` does, and when a combination is missing.

    >>> frame = pd.DataFrame({"variant": ["none", "a", "b", "both"], "seed": [0] * 4,
    ...                       "a": [False, True, False, True], "b": [False, False, True, True],
    ...                       "val_loss": [1.0, 0.75, 0.5, 0.0]})
    >>> print(factorial_effects(frame, ["a", "b"])[["effect", "value"]].to_string(index=False))
    effect  value
         a -0.375
         b -0.625
     a × b -0.125
    """
    present, cells = _cells(frame, factors, metric)
    if len(present) < 2 ** len(factors):
        raise _lacking(present, factors, "the effects cannot be told apart")
    effects = [*combinations(factors, 1), *combinations(factors, 2)]
    signs = [[prod(1 if factor in held else -1 for factor in effect) for effect in effects] for held in present]
    values = _combined(_whole(cells, metric), np.array(signs) / 2 ** (len(factors) - 1))
    table = pd.DataFrame({"effect": [" × ".join(effect) for effect in effects], "value": values.mean(axis=0)})
    table = table.assign(**_intervals(values), p_value=np.nan, p_holm=np.nan, p_t=np.nan, p_t_holm=np.nan, seeds=len(values))
    if len(values) > 1:
        table["p_value"] = [sign_flip_p(column) for column in values.T]
        table["p_t"] = [paired_t_p(column) for column in values.T]
        table["p_holm"], table["p_t_holm"] = holm(table["p_value"].to_numpy()), holm(table["p_t"].to_numpy())
    table.attrs["metric"] = metric
    return table


def _cells(frame: pd.DataFrame, factors: Sequence[str], metric: str) -> tuple[list[Coalition], Array]:
    """The combinations in the frame, smaller ones first, and their metric as (seeds, combinations); NaN where there is none."""
    _check(frame, factors, metric)
    flags = frame[list(factors)].to_numpy(dtype=bool)
    rows = [frozenset(factor for factor, on in zip(factors, row, strict=True) if on) for row in flags]
    components: dict[Hashable, Coalition] = {}
    variants: dict[Coalition, Hashable] = {}
    cells: dict[tuple[Hashable, Coalition], float] = {}
    for variant, seed, held, value in zip(frame["variant"], frame["seed"], rows, numeric_column(frame, metric), strict=True):
        if components.setdefault(variant, held) != held:
            raise ToolkitError(f"variant {variant} holds other components in some rows than in others; give each set its own name")
        if variants.setdefault(held, variant) != variant:
            raise ToolkitError(
                f"variants {variants[held]} and {variant} both hold {_name(held, factors)}; "
                "keep the rows of one block and one control"
            )
        if (seed, held) in cells:
            raise ToolkitError(f"variant {variant} has two rows for seed {seed}; keep one row a variant and seed")
        cells[seed, held] = value
    present = sorted(variants, key=lambda held: (len(held), [factor not in held for factor in factors]))
    # Sorted, so that not even rounding depends on the order of the rows.
    seeds = sorted(set(frame["seed"]))
    values = [[cells.get((seed, held), np.nan) for held in present] for seed in seeds]
    return present, np.array(values).reshape(len(seeds), len(present))


def _check(frame: pd.DataFrame, factors: Sequence[str], metric: str) -> None:
    if isinstance(factors, str) or not factors or len(set(factors)) < len(factors):
        raise ToolkitError(f"factors are {factors!r}; give a list of column names, each once")
    require_columns(frame, ("variant", "seed", metric, *factors))
    for factor in factors:
        if not frame[factor].isin([True, False]).all():
            raise ToolkitError(
                f"column {factor} must be true where the variant holds the component and false elsewhere, without gaps"
            )


def _whole(values: Array, metric: str) -> Array:
    """The rows of the seeds that have every combination; raises ToolkitError when there is none."""
    whole = values[np.isfinite(values).all(axis=1)]
    if not len(whole):
        raise ToolkitError(
            f"none of the {len(values)} seeds has {metric} for all {values.shape[1]} combinations; "
            "train those that are missing or failed for at least one seed"
        )
    return whole


def _shapley_weights(present: Sequence[Coalition], factors: Sequence[str]) -> Array:
    """What each combination counts in each component's Shapley value, (combinations, components)."""
    count = len(factors)

    def weight(held: Coalition, factor: str) -> float:
        others = len(held - {factor})
        # Of k! orders, others! (k - 1 - others)! have just these before the component: 1 / (k · C(k - 1, others)).
        return (1 if factor in held else -1) / (count * comb(count - 1, others))

    return np.array([[weight(held, factor) for factor in factors] for held in present])


def _step_weights(present: Sequence[Coalition]) -> Array:
    """Each rung of a ladder minus the one before, (combinations, components)."""
    steps = len(present) - 1
    return np.eye(steps + 1, steps, k=-1) - np.eye(steps + 1, steps)


def _ladder_order(present: Sequence[Coalition], factors: Sequence[str]) -> list[str]:
    """The order in which a ladder adds the components; empty when these combinations, smaller first, are no ladder."""
    if len(present) != len(factors) + 1:
        return []
    # k steps up from k + 1 subsets of k components start at none and add one each.
    added = [after - before for before, after in pairwise(present) if before < after]
    return [next(iter(one)) for one in added] if len(added) == len(factors) else []


def _combined(cells: Array, weights: Array) -> Array:
    """Sums of cells, (seeds, columns of weights); what is but rounding is zero, or noise of one sign would be evidence."""
    sums = cells @ weights
    return np.where(np.abs(sums) > _ROUNDING * np.abs(cells).max(axis=1, keepdims=True), sums, 0.0)


def _intervals(values: Array) -> dict[str, Array]:
    """The 95 % paired interval of each column over its rows; NaN for a single row."""
    if len(values) < 2:
        return {"ci_low": np.full(values.shape[1], np.nan), "ci_high": np.full(values.shape[1], np.nan)}
    bounds = np.array([paired_interval(column) for column in values.T])
    return {"ci_low": bounds[:, 0], "ci_high": bounds[:, 1]}


def _lacking(present: Sequence[Coalition], factors: Sequence[str], problem: str, besides: str = "") -> ToolkitError:
    """The error for a frame without all combinations; k components have 2^k, so only the first missing are looked for."""
    known = set(present)
    missing = (held for held in _all_combinations(factors) if held not in known)
    count = 2 ** len(factors) - len(known)
    named = ", ".join(_name(held, factors) for held in islice(missing, _NAMED)) + (", …" if count > _NAMED else "")
    return ToolkitError(
        f"{problem}: {count} of the {2 ** len(factors)} combinations of {', '.join(factors)} have no row ({named}); "
        f"a factorial design has them all{besides}"
    )


def _all_combinations(factors: Sequence[str]) -> Iterator[Coalition]:
    return map(frozenset, chain.from_iterable(combinations(factors, size) for size in range(len(factors) + 1)))


def _name(held: Coalition, factors: Sequence[str]) -> str:
    return " + ".join(factor for factor in factors if factor in held) or "none of them"
