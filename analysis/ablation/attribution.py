"""Attribution of a change to components: Shapley values of the total, and the effects of a factorial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations, islice, pairwise
from math import comb, prod

import numpy as np
import pandas as pd

from analysis.ablation.cells import NAMED, Coalition, Contrasts, contrasts, label, read_cells
from nas.stats.paired import holm, ratio_interval, sign_flip_p
from space.array import Array
from space.errors import ToolkitError

SHAPLEY = "shapley"
IN_ORDER = "in this order"


def shapley(frame: pd.DataFrame, factors: Sequence[str], metric: str = "val_loss") -> pd.DataFrame:
    """Attribute the change from no component to all components to each of them.

    With all 2^k combinations the values are exact Shapley values (L. S. Shapley, A value for n-person games, 1953): the
    change that a component makes when it is added, averaged over all orders in which the k components can be added. They are
    computed within each seed and then averaged over the seeds.

    A ladder has k + 1 nested combinations, which show one order only and do not identify the Shapley value. For a ladder the
    value is the change at the component's place, and another order may credit it with more or less. Add-one-in and
    leave-one-out together show the change that a component makes first and last. These two bound its Shapley value only where
    components never both help and hinder one another, so they are not accepted as an attribution.

    Where a seed lacks the metric of some combinations (missing or not finite), the others still count: see
    `analysis.ablation.cells.contrasts` for the estimates and their intervals, which then hold if what is missing is missing for
    reasons other than its value.

    A share of a total that may be zero says nothing: where none of three components does anything, the largest share exceeds 200 %
    in a fifth of tables. So there are shares only where the total's 95 % interval does not hold zero.

    Args:
        frame: One row per (variant, seed), with columns variant, seed, the metric, and a boolean column for each factor, true
            where the variant has that component. Other columns are ignored.
        factors: The columns of the components.
        metric: The column of the metric.

    Returns:
        One row per component, in the order of `factors` or of the ladder: component; share of the total with its 95 % interval
        share_low to share_high (Fieller's; shares sum to 1, and a share is negative for a component that works against the total);
        value in the unit of the metric, negative where the component lowers it; ci_low and ci_high, its 95 % paired interval over
        seeds (NaN for a single seed); seeds, the number counted; kind, "shapley" or "in this order". The values sum to the metric
        with all components minus that with none. `attrs` holds metric, its name; missing, the number of cells that the seeds lack;
        total, total_low and total_high, the whole change and its interval; and note, why there are no shares (empty where there
        are).

    Raises:
        ToolkitError: A column is missing, a factor is not boolean, two variants have the same components, a variant has two
            rows for a seed, the cells that are there do not determine the values, or the combinations are neither all 2^k nor a
            ladder.

    >>> frame = pd.DataFrame({"variant": ["none", "a", "b", "both"] * 3, "seed": [0] * 4 + [1] * 4 + [2] * 4,
    ...                       "a": [False, True, False, True] * 3, "b": [False, False, True, True] * 3,
    ...                       "val_loss": [1.0, 0.75, 0.5, 0.0, 1.1, 0.8, 0.6, 0.1, 0.9, 0.65, 0.5, 0.0]})
    >>> print(shapley(frame, ["a", "b"]).drop(columns=["ci_low", "ci_high", "seeds"]).round(2).to_string(index=False))
    component  share  share_low  share_high  value    kind
            a    0.4       0.35        0.46  -0.38 shapley
            b    0.6       0.54        0.65  -0.58 shapley
    """
    present, cells = read_cells(frame, factors, metric)
    order = _ladder_order(present, factors)
    if len(present) == 2 ** len(factors):
        kind, components, weights = SHAPLEY, list(factors), _shapley_weights(present, factors)
    elif order:
        kind, components, weights = IN_ORDER, order, _step_weights(present)
    else:
        raise _missing_error(present, factors, "the total cannot be attributed", "; a ladder, at least in one order")
    names = [label(coalition, factors) for coalition in present]
    values = contrasts(cells, weights, names, metric)
    # All minus none. The sum of the values is the same but for rounding, which would give shares of a total of zero.
    total = contrasts(cells, _step_weights(present).sum(axis=1, keepdims=True), names, metric)
    shares, note = _shares(values, total)
    table = pd.DataFrame({"component": components, **shares, "value": values.means})
    table = table.assign(**_intervals(values), seeds=len(values.values), kind=kind)
    (low, high), *_ = total.intervals().tolist()
    table.attrs.update(
        metric=metric, missing=values.missing, total=float(total.means[0]), total_low=low, total_high=high, note=note
    )
    return table


def factorial_effects(frame: pd.DataFrame, factors: Sequence[str], metric: str = "val_loss") -> pd.DataFrame:
    """The main effects and the two-way interactions of a full two-level factorial.

    Within each seed the effects are the usual ±1 contrasts (Box, Hunter and Hunter, Statistics for Experimenters, 2nd ed.
    2005, chapter 5). A main effect is the mean metric with the component minus that without it. An interaction A × B is half
    the difference between the effect of A with B and the effect of A without B. Interactions of three or more components are
    neither shown nor pooled into an error: the spread comes from the seeds.

    Args:
        frame: As for `shapley`, with all 2^k combinations, each in some seed.
        factors: The columns of the components.
        metric: The column of the metric.

    Returns:
        One row per effect, main effects first: effect ("A" or "A × B"); value, the mean over seeds in the unit of the metric;
        ci_low and ci_high, its 95 % paired interval; p_value of the two-sided sign-flip test (exact where no cell is missing) and
        p_holm, adjusted over the table (S. Holm, 1979); p_t of the paired t test, which assumes that the seeds' values are normal,
        and p_t_holm; seeds, the number counted. With a single seed, which shows no spread, intervals and p-values are NaN; where
        cells are missing, so are those of an effect that is not determined without one of the seeds. `attrs` holds metric, its
        name, and missing, the number of cells that the seeds lack.

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
    present, cells = read_cells(frame, factors, metric)
    if len(present) < 2 ** len(factors):
        raise _missing_error(present, factors, "the effects cannot be separated")
    effects = [*combinations(factors, 1), *combinations(factors, 2)]
    signs = [[prod(1 if factor in coalition else -1 for factor in effect) for effect in effects] for coalition in present]
    names = [label(coalition, factors) for coalition in present]
    found = contrasts(cells, np.array(signs) / 2 ** (len(factors) - 1), names, metric)
    table = pd.DataFrame({"effect": [" × ".join(effect) for effect in effects], "value": found.means})
    table = table.assign(**_intervals(found), p_value=np.nan, p_holm=np.nan, p_t=np.nan, p_t_holm=np.nan, seeds=len(found.values))
    known = found.known
    table.loc[known, "p_value"] = [sign_flip_p(column) for column in found.values.T[known]]
    table["p_t"] = found.p_values()
    for name, adjusted in (("p_value", "p_holm"), ("p_t", "p_t_holm")):
        table.loc[known, adjusted] = holm(table.loc[known, name].to_numpy())
    table.attrs.update(metric=metric, missing=found.missing)
    return table


def _shares(values: Contrasts, total: Contrasts) -> tuple[dict[str, Array], str]:
    """The shares of the total with their intervals, all NaN where the total may be zero, and why there are none."""
    none = np.full(values.values.shape[1], np.nan)
    (low, high), *_ = total.intervals().tolist()
    if not total.known.all():
        note = "no shares: without the spread of at least two seeds the total may be zero"
    elif low <= 0 <= high:
        note = f"no shares: the 95 % interval of the total, {total.means[0]:+.2g} [{low:+.2g}, {high:+.2g}], holds zero"
    else:
        # A share without an interval, which a missing cell may cause, is not given either.
        bounds = [
            ratio_interval(column, total.for_intervals[:, 0]) if known else (np.nan, np.nan)
            for column, known in zip(values.for_intervals.T, values.known, strict=True)
        ]
        share_low, share_high = np.array(bounds).T
        shares = np.where(values.known, values.means / total.means, np.nan)
        return {"share": shares, "share_low": share_low, "share_high": share_high}, ""
    return {"share": none, "share_low": none, "share_high": none}, note


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


def _intervals(found: Contrasts) -> dict[str, Array]:
    bounds = found.intervals()
    return {"ci_low": bounds[:, 0], "ci_high": bounds[:, 1]}


def _missing_error(present: Sequence[Coalition], factors: Sequence[str], problem: str, alternative: str = "") -> ToolkitError:
    """The error for a frame that lacks combinations. There may be 2^k of them, so only the first few are searched for."""
    known = set(present)
    missing = (coalition for coalition in _all_combinations(factors) if coalition not in known)
    count = 2 ** len(factors) - len(known)
    named = ", ".join(label(coalition, factors) for coalition in islice(missing, NAMED)) + (", …" if count > NAMED else "")
    return ToolkitError(
        f"{problem}: {count} of the {2 ** len(factors)} combinations of {', '.join(factors)} have no row ({named}); "
        f"a factorial design has all of them{alternative}"
    )


def _all_combinations(factors: Sequence[str]) -> Iterator[Coalition]:
    return map(frozenset, chain.from_iterable(combinations(factors, size) for size in range(len(factors) + 1)))
