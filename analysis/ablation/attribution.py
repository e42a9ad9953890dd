"""Attribution of a change to components: Shapley values of the total, and the effects of a factorial."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import chain, combinations, islice, pairwise
from math import comb, prod

import numpy as np
import pandas as pd

from analysis.columns import numeric_column, require_columns, require_seeds
from nas.stats.paired import holm, paired_interval, paired_t_p, sign_flip_p
from space.array import Array
from space.errors import ToolkitError

SHAPLEY = "shapley"
IN_ORDER = "in this order"

_NAMED = 4
"""The number of missing combinations that an error names."""

_ROUNDING = 16 * np.finfo(float).eps
"""A sum of cells below this share of the largest cell is rounding error."""

Coalition = frozenset[str]
"""A combination of components."""


def shapley(frame: pd.DataFrame, factors: Sequence[str], metric: str = "val_loss") -> pd.DataFrame:
    """Attribute the change from no component to all components to each of them.

    With all 2^k combinations the values are exact Shapley values (L. S. Shapley, A value for n-person games, 1953): the
    change that a component makes when it is added, averaged over all orders in which the k components can be added. They are
    computed within each seed and then averaged over the seeds.

    A ladder has k + 1 nested combinations, which show one order only and do not identify the Shapley value. For a ladder the
    value is the change at the component's place, and another order may credit it with more or less. Add-one-in and
    leave-one-out together show the change that a component makes first and last. These two bound its Shapley value only where
    components never both help and hinder one another, so they are not accepted as an attribution.

    Args:
        frame: One row per (variant, seed), with columns variant, seed, the metric, and a boolean column for each factor, true
            where the variant has that component. Other columns are ignored. A seed is left out if the metric of any
            combination is missing or not finite, so that all values rest on the same pairs.
        factors: The columns of the components.
        metric: The column of the metric.

    Returns:
        One row per component, in the order of `factors` or of the ladder: component; share of the total (shares sum to 1; a
        share is negative for a component that works against the total, and NaN where the total is zero); value in the unit
        of the metric, negative where the component lowers it; ci_low and ci_high, its 95 % paired interval over seeds (NaN
        for a single seed); seeds, the number counted; kind, "shapley" or "in this order". The values sum to the metric with
        all components minus that with none. `attrs["metric"]` names the metric.

    Raises:
        ToolkitError: A column is missing, a factor is not boolean, two variants have the same components, a variant has two
            rows for a seed, no seed has all combinations, or the combinations are neither all 2^k nor a ladder.

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
        raise _missing_error(present, factors, "the total cannot be attributed", "; a ladder, at least in one order")
    complete = _complete_seeds(cells, metric)
    values = _combined(complete, weights)
    means = values.mean(axis=0)
    # All minus none. The sum of the values is the same but for rounding, which would give shares of a total of zero.
    total = (complete[:, -1] - complete[:, 0]).mean()
    table = pd.DataFrame({"component": components, "share": means / total if total else np.nan, "value": means})
    table = table.assign(**_intervals(values), seeds=len(values), kind=kind)
    table.attrs["metric"] = metric
    return table


def factorial_effects(frame: pd.DataFrame, factors: Sequence[str], metric: str = "val_loss") -> pd.DataFrame:
    """The main effects and the two-way interactions of a full two-level factorial.

    Within each seed the effects are the usual ±1 contrasts (Box, Hunter and Hunter, Statistics for Experimenters, 2nd ed.
    2005, chapter 5). A main effect is the mean metric with the component minus that without it. An interaction A × B is half
    the difference between the effect of A with B and the effect of A without B. Interactions of three or more components are
    neither shown nor pooled into an error: the spread comes from the seeds.

    Args:
        frame: As for `shapley`, with all 2^k combinations.
        factors: The columns of the components.
        metric: The column of the metric.

    Returns:
        One row per effect, main effects first: effect ("A" or "A × B"); value, the mean over seeds in the unit of the metric;
        ci_low and ci_high, its 95 % paired interval; p_value of the exact two-sided sign-flip test and p_holm, adjusted over
        the table (S. Holm, 1979); p_t of the paired t test, which assumes that the seeds' values are normal, and p_t_holm;
        seeds, the number counted. With a single seed, which shows no spread, intervals and p-values are NaN.
        `attrs["metric"]` names the metric.

    Raises:
        ToolkitError: As for `shapley`, and when a combination is missing.

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
        raise _missing_error(present, factors, "the effects cannot be separated")
    effects = [*combinations(factors, 1), *combinations(factors, 2)]
    signs = [[prod(1 if factor in coalition else -1 for factor in effect) for effect in effects] for coalition in present]
    values = _combined(_complete_seeds(cells, metric), np.array(signs) / 2 ** (len(factors) - 1))
    table = pd.DataFrame({"effect": [" × ".join(effect) for effect in effects], "value": values.mean(axis=0)})
    table = table.assign(**_intervals(values), p_value=np.nan, p_holm=np.nan, p_t=np.nan, p_t_holm=np.nan, seeds=len(values))
    if len(values) > 1:
        table["p_value"] = [sign_flip_p(column) for column in values.T]
        table["p_t"] = [paired_t_p(column) for column in values.T]
        table["p_holm"], table["p_t_holm"] = holm(table["p_value"].to_numpy()), holm(table["p_t"].to_numpy())
    table.attrs["metric"] = metric
    return table


def _cells(frame: pd.DataFrame, factors: Sequence[str], metric: str) -> tuple[list[Coalition], Array]:
    """The combinations in the frame, smaller ones first, and their metric, (seeds, combinations), NaN where it is missing."""
    _check(frame, factors, metric)
    flags = frame[list(factors)].to_numpy(dtype=bool)
    rows = [frozenset(factor for factor, on in zip(factors, row, strict=True) if on) for row in flags]
    components: dict[Hashable, Coalition] = {}
    variants: dict[Coalition, Hashable] = {}
    cells: dict[tuple[Hashable, Coalition], float] = {}
    for variant, seed, coalition, value in zip(frame["variant"], frame["seed"], rows, numeric_column(frame, metric), strict=True):
        if components.setdefault(variant, coalition) != coalition:
            raise ToolkitError(
                f"variant {variant} has different components in some rows than in others; give each set its own name"
            )
        if variants.setdefault(coalition, variant) != variant:
            raise ToolkitError(
                f"variants {variants[coalition]} and {variant} both have {_label(coalition, factors)}; "
                "keep the rows of one block and one control"
            )
        if (seed, coalition) in cells:
            raise ToolkitError(f"variant {variant} has two rows for seed {seed}; keep one row per variant and seed")
        cells[seed, coalition] = value
    present = sorted(variants, key=lambda coalition: (len(coalition), [factor not in coalition for factor in factors]))
    # Sorted, so that the result does not depend on the order of the rows, not even in rounding.
    seeds = sorted(set(frame["seed"]))
    values = [[cells.get((seed, coalition), np.nan) for coalition in present] for seed in seeds]
    return present, np.array(values).reshape(len(seeds), len(present))


def _check(frame: pd.DataFrame, factors: Sequence[str], metric: str) -> None:
    if isinstance(factors, str) or not factors or len(set(factors)) < len(factors):
        raise ToolkitError(f"factors are {factors!r}; give a list of column names, each once")
    require_columns(frame, ("variant", "seed", metric, *factors))
    require_seeds(frame)
    for factor in factors:
        if not frame[factor].isin([True, False]).all():
            raise ToolkitError(
                f"column {factor} must be true where the variant has the component and false elsewhere, without missing values"
            )


def _complete_seeds(values: Array, metric: str) -> Array:
    """The rows of the seeds that have every combination; raises ToolkitError when there are none."""
    complete = values[np.isfinite(values).all(axis=1)]
    if not len(complete):
        raise ToolkitError(
            f"none of the {len(values)} seeds has {metric} for all {values.shape[1]} combinations; "
            "train those that are missing or failed for at least one seed"
        )
    return complete


def _shapley_weights(present: Sequence[Coalition], factors: Sequence[str]) -> Array:
    """The weight of each combination in each component's Shapley value, (combinations, components)."""
    count = len(factors)

    def weight(coalition: Coalition, factor: str) -> float:
        others = len(coalition - {factor})
        # In others! · (k - 1 - others)! of the k! orders exactly these come before the component: 1 / (k · C(k - 1, others)).
        return (1 if factor in coalition else -1) / (count * comb(count - 1, others))

    return np.array([[weight(coalition, factor) for factor in factors] for coalition in present])


def _step_weights(present: Sequence[Coalition]) -> Array:
    """The weights of each rung of a ladder minus the one before, (combinations, components)."""
    steps = len(present) - 1
    return np.eye(steps + 1, steps, k=-1) - np.eye(steps + 1, steps)


def _ladder_order(present: Sequence[Coalition], factors: Sequence[str]) -> list[str]:
    """The order in which a ladder adds the components; empty when the combinations (smaller first) are no ladder."""
    if len(present) != len(factors) + 1:
        return []
    # k + 1 nested subsets of k components start at none and add one component per step.
    added = [after - before for before, after in pairwise(present) if before < after]
    return [next(iter(components)) for components in added] if len(added) == len(factors) else []


def _combined(cells: Array, weights: Array) -> Array:
    """Weighted sums of cells, (seeds, columns of weights), with rounding errors set to 0: of one sign, they would be evidence."""
    sums = cells @ weights
    return np.where(np.abs(sums) > _ROUNDING * np.abs(cells).max(axis=1, keepdims=True), sums, 0.0)


def _intervals(values: Array) -> dict[str, Array]:
    """The 95 % paired interval of each column over its rows; NaN for a single row."""
    if len(values) < 2:
        return {"ci_low": np.full(values.shape[1], np.nan), "ci_high": np.full(values.shape[1], np.nan)}
    bounds = np.array([paired_interval(column) for column in values.T])
    return {"ci_low": bounds[:, 0], "ci_high": bounds[:, 1]}


def _missing_error(present: Sequence[Coalition], factors: Sequence[str], problem: str, alternative: str = "") -> ToolkitError:
    """The error for a frame that lacks combinations. There may be 2^k of them, so only the first few are searched for."""
    known = set(present)
    missing = (coalition for coalition in _all_combinations(factors) if coalition not in known)
    count = 2 ** len(factors) - len(known)
    named = ", ".join(_label(coalition, factors) for coalition in islice(missing, _NAMED)) + (", …" if count > _NAMED else "")
    return ToolkitError(
        f"{problem}: {count} of the {2 ** len(factors)} combinations of {', '.join(factors)} have no row ({named}); "
        f"a factorial design has all of them{alternative}"
    )


def _all_combinations(factors: Sequence[str]) -> Iterator[Coalition]:
    return map(frozenset, chain.from_iterable(combinations(factors, size) for size in range(len(factors) + 1)))


def _label(coalition: Coalition, factors: Sequence[str]) -> str:
    return " + ".join(factor for factor in factors if factor in coalition) or "none of them"
