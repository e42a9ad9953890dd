"""Scaling curves: the fit of a metric over compute through a few budgets, with intervals and a held-out prediction."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.columns import numeric_column, require_columns
from analysis.scaling.misfit import LEVEL, Residuals, bent_laws
from analysis.scaling.power_law import ALPHAS, Budgets, Law, Noise, SeedDraws, resampled_laws
from nas.study.metrics import lower_is_better, metric_named
from space.errors import ToolkitError

LEAST = 4
"""The least number of budgets for a fit of three parameters; a prediction of the largest from the others needs one more."""

_OFTEN = 0.025
"""An outcome in more than this share of the resamples lies within a 95 % interval."""

_CONTAGIOUS = 4
"""Where the law is in doubt for one in so many families, it is in doubt for all."""

_ESTIMATES = ["E", "A", "alpha"]
_COLUMNS = [
    "family",
    *(f"{name}{end}" for name in _ESTIMATES for end in ("", "_low", "_high")),
    *("budgets", "seeds", "r2", "residual_sd", "lack_of_fit", "held_out", "predicted", "predicted_low", "predicted_high"),
    *("observed", "error", "error_percent", "inside", "held_out_problem", "problem", "note"),
]


@dataclass(frozen=True, eq=False)
class Family:
    """One family's budgets and its fitted curve."""

    name: str
    points: pd.DataFrame
    """One row per budget: compute, mean, sd, seeds."""
    problem: str = ""
    """The reason why no curve is fitted; empty where one is."""
    laws: tuple[Law, Law] | None = None
    """The fitted curve and those of the resamples."""
    doubt: str = ""
    """What the budgets say against the law; empty where they say nothing."""

    @property
    def curves(self) -> tuple[Law, Law]:
        """The fitted curve, and those of the resamples; raises ToolkitError where there is a `problem`."""
        if self.laws is None:
            raise ToolkitError(f"family {self.name} has no curve to draw or compare: {self.problem}")
        return self.laws


@dataclass(frozen=True, eq=False)
class ScalingFit:
    """A fit: `table` has one row per family, in the columns that `scaling_fit` describes, and `families` the curves."""

    metric: str
    compute: str
    families: tuple[Family, ...]
    table: pd.DataFrame

    def family(self, name: Hashable) -> Family:
        """A family by its name; raises ToolkitError for an unknown name, listing the known ones."""
        for family in self.families:
            if family.name == str(name):
                return family
        raise ToolkitError(
            f"no family '{name}' in the fit of {self.metric}; there are: {', '.join(family.name for family in self.families)}"
        )


def scaling_fit(
    frame: pd.DataFrame,
    metric: str = "val_loss",
    compute: str = "train_tflops",
    family: str = "family",
    seed: str = "seed",
    held_out: bool = True,
    resamples: int = 1000,
) -> ScalingFit:
    """Fit L(C) = E + A·C^(−α) to each family of a tidy frame.

    The law is that of Kaplan et al. 2020, Henighan et al. 2020 and Hoffmann et al. 2022; where higher is better, E − A·C^(−α).

    The fit is least squares on the budgets' means. For a given α the best (E, A) with E, A ≥ 0 has a closed form, so a search over
    α in [0.01, 3] finds the optimum without starting values. Where lower is better, residuals are relative to the means, like the
    log-residuals of Hoffmann et al.; otherwise the large values of the small budgets would dominate. KID, which may be near zero,
    and metrics of which higher is better have absolute residuals (precision and recall with E ≤ 1).

    The 95 % intervals are percentiles over curves through resampled means, which vary for two reasons:
    - Seeds: one seed's curve is correlated across budgets and, by pairing, across families. A resample therefore gives each seed
      one normal weight for all of them (multiplier bootstrap, Wu 1986), scaled by a draw of √((n − 1) / χ²), so that any linear
      contrast has Student's t interval; drawing n seeds with replacement gives too little coverage.
    - Budgets: they are chosen, not drawn, and resampling them would leave fewer than four distinct ones. So the misfit of the means
      beyond the seeds' noise is drawn anew for each budget, from Student's t with (budgets − 3) degrees of freedom. With one seed
      this is the residual bootstrap, and the only source.

    Where the budgets speak against the law, by an F test of its lack of fit against the seeds' noise (`analysis.scaling.misfit`) or
    by a largest budget outside its prediction, the curve is the law plus a smooth process over log compute. The residuals of all
    families tell its size and what of it they have in common. Such a curve follows the budgets' means, and beyond them it is as
    uncertain as the misfit is large. E, A and α with their intervals remain those of the law.

    Measured on simulated curves (800 fits per case; 1 to 12 seeds; 4 to 8 budgets; noise of 0.3 to 2 %; means on and off the law):
    93 to 99 % of the 95 % intervals of E, A and α contain the truth, 94 to 97 % of those of predictions the observed value, 96 to
    99 % of those of crossings. Drawing six seeds with replacement, without the second source, gives 86 %, and 44 % where each
    budget misses the law by as much as one run's noise. Where the true E is 0, half of the fits have E at its bound, which `note`
    says; of the intervals of the other half 84 to 97 % contain it, and those of the former were not measured.

    The largest budget is held out once and predicted from the others; the interval is for the observed mean, including its noise.

    Args:
        frame: One row per (family, compute, seed); rows without a value of the metric are left out.
        metric: The column of the metric.
        compute: Any positive column, such as train_tflops or gflops (multiply-accumulates).
        family: The column of families; a frame without a column `family` is one family.
        seed: The column of seeds; a frame without a column `seed` has one seed (published numbers).
        held_out: Whether to predict the largest budget from the others.
        resamples: The number of resampled curves, at least 100.

    Returns:
        The fit. Columns of its `table`: family; E, A and alpha, each with _low and _high; budgets, seeds; r2 and residual_sd (of
        the budgets' means, in the metric's unit, with budgets − 3 degrees of freedom); lack_of_fit (the p-value of the law against
        the seeds' noise; NaN where no budget has two seeds); held_out (its compute), predicted,
        predicted_low, predicted_high, observed, error (predicted − observed; for a loss, above 0 means that the observed one is
        better), error_percent, inside (whether the interval contains the observed value), held_out_problem; problem, the reason
        why there is no curve (fewer than four budgets, no improvement, α at its bound), else empty; note, the basis of the
        intervals where it is thin, what speaks against the law, and whether E is at its bound: then the budgets do not show where
        the curve levels off, and beyond them it is too optimistic.

    Raises:
        ToolkitError: A column is missing, the metric is unknown, a compute is not positive, a value is infinite, a row occurs
            twice, or there are too few resamples.

    >>> rows = [(f, s, c, e + c**-0.5 + 0.001 * ((3 * s + c) % 5)) for f, e in (("DiT", 0.3), ("U-DiT", 0.2))
    ...         for s in range(6) for c in (1, 2, 4, 8, 16, 32)]
    >>> frame = pd.DataFrame(rows, columns=["family", "seed", "train_tflops", "val_loss"])
    >>> scaling_fit(frame).table[["family", "E", "alpha", "budgets", "seeds", "inside"]].round(2)
      family    E  alpha  budgets  seeds  inside
    0    DiT  0.3    0.5        6      6    True
    1  U-DiT  0.2    0.5        6      6    True
    """
    if resamples < 100:
        raise ToolkitError(f"{resamples} resamples are too few for a 95 % interval; take at least 100")
    sign = 1 if lower_is_better(metric) else -1
    rows = _tidy(frame, metric, compute, family, seed)
    seeds = pd.Index(sorted(rows["seed"].unique()))
    rng = np.random.default_rng(0)
    shared = SeedDraws.of(len(seeds), resamples, rng)
    families: list[Family] = []
    table: list[dict[str, Any]] = []
    known: dict[int, tuple[Residuals, Noise]] = {}
    for name, members in rows.groupby("family", sort=True):
        budgets = _budgets(members, seeds, metric, sign)
        noise = Noise.of(budgets, shared, rng)
        fitted, facts = _fitted(str(name), budgets, noise, compute)
        left_out = _predicted(budgets, noise, compute) if held_out else {}
        if fitted.laws is not None:
            residuals = Residuals.of(budgets, fitted.laws[0])
            facts["lack_of_fit"] = residuals.p
            known[len(families)] = (residuals, noise)
            fitted = replace(fitted, doubt=_doubt(facts | left_out))
        table.append({**facts, **left_out, "note": _note(members, budgets, fitted)})
        families.append(fitted)
    _bend(families, table, known, rng)
    return ScalingFit(metric, compute, tuple(families), pd.DataFrame(table).reindex(columns=_COLUMNS))


def _tidy(frame: pd.DataFrame, metric: str, compute: str, family: str, seed: str) -> pd.DataFrame:
    """The columns family and seed (as text), compute, and value, which may be missing."""
    named = [name for name, default in ((family, "family"), (seed, "seed")) if name != default]
    require_columns(frame, (metric, compute, *named))
    rows = pd.DataFrame(
        {
            "family": frame[family] if family in frame.columns else "all",
            "seed": frame[seed] if seed in frame.columns else "",
            "compute": numeric_column(frame, compute),
            "value": numeric_column(frame, metric),
        }
    )
    present = rows[rows["value"].notna()]
    if present.empty:
        raise ToolkitError(f"no row of the frame has a value of {metric}; a scaling curve needs at least {LEAST} budgets")
    for name, column in ((family, "family"), (seed, "seed")):
        if present[column].isna().any():
            raise ToolkitError(f"a row with a value of {metric} has no {name}; fill it in or drop the row")
    wrong = present[~(np.isfinite(present["compute"]) & (present["compute"] > 0))]
    if len(wrong):
        raise ToolkitError(f"{compute} of a row is {wrong['compute'].iloc[0]}; compute is a positive number")
    if np.isinf(present["value"]).any():
        raise ToolkitError(f"a value of {metric} is infinite; leave it empty where training diverged")
    rows = rows.astype({"family": str, "seed": str})
    present = rows[rows["value"].notna()]
    twice = present[present.duplicated(["family", "compute", "seed"])]
    if len(twice):
        row = twice.iloc[0]
        raise ToolkitError(
            f"family {row['family']} has two values of {metric} at {compute} {row['compute']:g}"
            f"{' for seed ' + row['seed'] if row['seed'] else ''}; name the column that distinguishes them as family= or seed="
        )
    return rows


def _budgets(members: pd.DataFrame, seeds: pd.Index[Any], metric: str, sign: int) -> Budgets:
    values = members.dropna(subset="value").pivot(index="seed", columns="compute", values="value").reindex(seeds)
    mean = values.mean().to_numpy()
    known = metric_named(metric)
    assert known is not None, "its better direction is known"
    # Relative residuals suit what cannot be below 0.
    relative = sign == 1 and known.low >= 0 and bool((mean > 0).all())
    return Budgets(
        compute=values.columns.to_numpy(dtype=float),
        values=values.to_numpy(dtype=float),
        mean=mean,
        count=values.count().to_numpy(),
        relative=relative,
        sign=sign,
        limit=0.0 if sign == 1 else known.high,
    )


def _refusal(law: Law, resampled: Law, budgets: Budgets, compute: str) -> str:
    """The reason why the budgets support no curve; empty where they do."""
    ends = law.at(budgets.compute[[0, -1]])[0]
    if abs(ends[0] - ends[1]) <= 1e-9 * np.abs(budgets.mean).max() or np.mean(resampled.A == 0) > _OFTEN:
        return f"no improvement with {compute} is visible above the noise"
    alpha = law.alpha[0]
    if alpha < ALPHAS[0] * 1.001:
        return f"α is at its lower bound {ALPHAS[0]:g}: a logarithm of {compute} fits these budgets as well"
    if alpha > ALPHAS[1] * 0.999:
        return f"α is at its upper bound {ALPHAS[1]:g}: all improvement lies between the smallest budgets"
    return ""


def _fitted(name: str, budgets: Budgets, noise: Noise, compute: str) -> tuple[Family, dict[str, Any]]:
    """The family with its curve, and the columns of the fit."""
    used = len(budgets.mean)
    sd = np.sqrt(np.sum(budgets.deviations**2, axis=0) / np.where(budgets.count > 1, budgets.count - 1, np.nan))
    points = pd.DataFrame({"compute": budgets.compute, "mean": budgets.mean, "sd": sd, "seeds": budgets.count})
    seeds = int((~np.isnan(budgets.values)).any(axis=1).sum())
    facts: dict[str, Any] = {"family": name, "budgets": used, "seeds": seeds}
    if used < LEAST:
        problem = f"{used} budget{'s' if used != 1 else ''}, and a fit needs at least {LEAST}"
        return Family(name, points, problem), {**facts, "problem": problem}
    law, resampled, _ = resampled_laws(budgets, noise, used)
    problem = _refusal(law, resampled, budgets, compute)
    if problem:
        return Family(name, points, problem), {**facts, "problem": problem}
    for parameter, draws in resampled.parameters.items():
        facts[parameter] = law.parameters[parameter][0]
        facts[f"{parameter}_low"], facts[f"{parameter}_high"] = np.percentile(draws, [2.5, 97.5])
    squares = np.sum((budgets.mean - law.at(budgets.compute)[0]) ** 2)
    facts["r2"] = 1 - squares / np.sum((budgets.mean - budgets.mean.mean()) ** 2)
    facts["residual_sd"] = math.sqrt(squares / (used - 3))
    return Family(name, points, laws=(law, resampled)), {**facts, "problem": ""}


def _predicted(budgets: Budgets, noise: Noise, compute: str) -> dict[str, Any]:
    """The columns of the largest budget, predicted from the others."""
    used = len(budgets.mean) - 1
    if used < LEAST:
        return {"held_out_problem": f"{used + 1} budgets, and a prediction of the largest needs at least {LEAST + 1}"}
    target, observed = budgets.compute[-1], budgets.mean[-1]
    law, resampled, deviations = resampled_laws(budgets, noise, used)
    problem = _refusal(law, resampled, budgets, compute)
    if problem:
        return {"held_out": target, "observed": observed, "held_out_problem": f"without the largest budget, {problem}"}
    predicted = law.at(target)[0, 0]
    # The same seeds trained the largest budget, so their common deviation cancels and its own noise is added.
    low, high = np.percentile(resampled.at(target)[:, 0] - deviations[:, -1], [2.5, 97.5])
    return {
        "held_out": target,
        "predicted": predicted,
        "predicted_low": low,
        "predicted_high": high,
        "observed": observed,
        "error": predicted - observed,
        "error_percent": 100 * (predicted - observed) / abs(observed) if observed else math.nan,
        "inside": bool(low <= observed <= high),
        "held_out_problem": "",
    }


def _doubt(row: dict[str, Any]) -> str:
    """What the budgets say against the law of a row of the table."""
    doubts = []
    if row["lack_of_fit"] <= LEVEL:
        p = f"p = {row['lack_of_fit']:.3f}" if row["lack_of_fit"] >= 0.0005 else "p < 0.001"
        doubts.append(f"the law misses the budgets by more than the seeds' noise (lack of fit, {p})")
    if row.get("inside") is False:
        low, high = row["predicted_low"], row["predicted_high"]
        doubts.append(f"the largest budget gave {row['observed']:.4g}, but {low:.4g} to {high:.4g} was predicted from the others")
    return " and ".join(doubts)


def _bend(
    families: list[Family], table: list[dict[str, Any]], known: dict[int, tuple[Residuals, Noise]], rng: np.random.Generator
) -> None:
    """Give families whose law is in doubt curves with a misfit, and say so in their notes; `known` has the places of the fitted."""
    doubtful = [place for place in known if families[place].doubt]
    if not doubtful:
        return
    names = " and ".join(families[place].name for place in doubtful)
    # One law is fitted to all, and what one family shows another may hide in its noise, so a comparison needs both bent.
    bent = list(known) if _CONTAGIOUS * len(doubtful) >= len(known) else doubtful
    for place, laws in zip(bent, bent_laws([known[place] for place in bent], rng), strict=True):
        doubt = families[place].doubt or f"may miss the law as {names} may"
        families[place] = replace(families[place], laws=laws, doubt=doubt)
        said = f"{doubt}, so the curve has a smooth misfit, which widens it beyond the budgets; E, A and alpha are the law's"
        table[place]["note"] = "; ".join(filter(None, [table[place]["note"], said]))


def _note(members: pd.DataFrame, budgets: Budgets, fitted: Family) -> str:
    """The basis of the intervals where it is thinner than several seeds at every budget, and bounds that were reached."""
    notes = []
    missing = int(members["value"].isna().sum())
    if missing:
        notes.append(f"{missing} missing value{'s' if missing > 1 else ''} left out")
    single = budgets.compute[budgets.count == 1]
    if fitted.problem:
        return "; ".join(notes)
    if len(single) == len(budgets.compute):
        freedom = len(single) - 3
        notes.append(
            f"one seed per budget: the intervals rest on the misfit only, with {freedom} degree{'s' * (freedom > 1)} of freedom"
        )
    elif len(budgets.compute) == LEAST:
        notes.append(f"{LEAST} budgets leave 1 degree of freedom to judge the fit of the law, so the intervals are wide")
    if 0 < len(single) < len(budgets.compute):
        notes.append(f"one seed at {', '.join(f'{value:g}' for value in single)}: its spread is taken from the other budgets")
    if fitted.curves[0].E[0] == budgets.limit:
        floor = f"E is at its bound {budgets.limit:g}: these budgets do not show where the curve levels off"
        return "; ".join([*notes, f"{floor}, so beyond them the line is too optimistic"])
    alpha, E = fitted.curves[1].alpha, fitted.curves[1].E
    for what, share in (
        ("α is at a bound", np.mean((alpha < ALPHAS[0] * 1.001) | (alpha > ALPHAS[1] * 0.999))),
        (f"E is at its bound {budgets.limit:g}", np.mean(budgets.limit == E)),
    ):
        if share > _OFTEN:
            notes.append(f"{what} in {100 * share:.0f} % of the resamples")
    return "; ".join(notes)
