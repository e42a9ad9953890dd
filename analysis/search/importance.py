"""The importance of the searched parameters at each rung; the only module of `analysis` that imports Optuna, on first use."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.runs.data import RunData, require_loaded
from analysis.search.fidelity import better_sign, rung_tflops, rung_values
from nas.runs.run import Run
from space.errors import RunError, ToolkitError

Params = dict[str, Any]
"""Values by parameter name, as Optuna stores them."""

Floats = NDArray[np.float64]

EVALUATORS = ("ped-anova",)
"""Optuna's evaluators without other dependencies; fANOVA and mean decrease in impurity need scikit-learn."""

LEAST = 8
"""The least number of trials at a rung."""

RESAMPLES = 100
"""The number of resamples of the trials for the intervals."""

SHUFFLES = 100
"""The number of shuffles of the parameters' values for the importance by chance."""

_COLUMNS = ["rung", "train_tflops", "parameter", "nuisance", "importance", "low", "high", "chance", "trials", "censored"]


def param_importances(
    data: RunData, metric: str = "val_loss", rung: int | None = None, evaluator: str = "ped-anova", best: float = 0.5
) -> pd.DataFrame:
    """The importance of each searched parameter for being among the best at a rung.

    The evaluator is Optuna's PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023; for conditional parameters, Baba, Ozaki and
    Watanabe, Conditional PED-ANOVA, 2026). It compares the distribution of a parameter's values among the `best` share of the
    trials with that among all. Optuna's default share, a tenth, would leave a single trial of eight; the best half needs fewer
    trials to show what matters.

    Every rung is judged by the trials that reached it and by their values there, so a pruned trial counts at each rung that it
    reached and at none above. The higher the rung, the more its trials were selected by the rungs below: a parameter whose bad
    values were pruned has little influence left. Replicates are averaged and count as one trial. Architectures from outside the
    space, which have no values of its parameters, are left out. A parameter is judged among the trials in which it was active,
    weighted by their share of the best; the effect of its condition is not credited to it. A rung of 40 trials takes about two
    seconds.

    Args:
        data: The result of `analysis.load` for a search.
        metric: A column of its reports.
        rung: One rung (from 1); all by default.
        evaluator: `ped-anova`.
        best: The share of the trials that counts as the best.

    Returns:
        One row per rung and parameter, the most important first: rung and train_tflops (training multiply-accumulates / 1e12, the
        median over reports); parameter; nuisance, whether it is a training setting, tuned beside the architecture and no part of
        it; importance, its share of the sum over all parameters; low to high, the 95 % percentile interval over trials drawn with
        replacement (a resample has fewer distinct trials, which draws the shares together, so the
        interval is widened to the importance where needed); chance, the share that an importance must exceed to be evidence: with
        few trials, a wide range or a long choice gets a large share by chance; trials, the number that the row rests on; censored,
        the trials that reported but have no value at this rung. Importances are NaN at a rung with fewer than 8 trials, or whose
        values are all equal (or so many of them that the best share is all). `attrs` holds metric, best and shuffles.

        The chance is corrected for all parameters and rungs of the table: where no parameter matters, 5 % of tables have any
        importance above its chance (5.0 % of 1,000 simulated ones of 13 parameters, 40 trials and one rung). It comes from 100
        shuffles of every parameter's values and the greatest importance in each (P. H. Westfall and S. S. Young, Resampling-based
        multiple testing, 1993). A table of one rung is corrected for that rung alone, so choose the rung before you look.

    Raises:
        RunError: The run is an ablation.
        ToolkitError: The evaluator or the metric is unknown, the rung does not exist or has fewer than 8 trials, or no rung has 8.

    Example:
        table = param_importances(analysis.load("runs/quickstart-search"))
        print(table[table["importance"] > table["chance"]])
    """
    require_loaded(data)
    if evaluator not in EVALUATORS:
        raise ToolkitError(f"there is no evaluator '{evaluator}'; take {', '.join(EVALUATORS)}, which needs no other packages")
    if not 0 < best < 1:
        raise ToolkitError(f"best is {best:g}, which is not a share of the trials; give one between 0 and 1, such as 0.5")
    if data.study.search is None:
        raise RunError(f"run {data.name} is an ablation, which searches no parameters; compare its variants instead")
    space = _Searched(data.run)
    values = better_sign(metric) * rung_values(data, metric)
    values = values.loc[[candidate for candidate in values.index if candidate in space.params]]
    reached = values.notna().sum()
    _check(data.name, reached, rung)
    tflops = rung_tflops(data)
    tables, shuffled = [], []
    for number in reached.index if rung is None else [rung]:
        here = values[number].dropna()
        table, by_chance = _one_rung(
            space, [space.params[str(candidate)] for candidate in here.index], here.to_numpy(dtype=float), best
        )
        counts = {"trials": len(here), "censored": len(values) - len(here)}
        tables.append(table.assign(rung=number, train_tflops=tflops.get(number, np.nan), **counts))
        shuffled.append(by_chance)
    table = pd.concat(tables, ignore_index=True)
    table["nuisance"] = table["parameter"].isin(data.study.nuisance)
    table["chance"] = exceeded_by_chance(np.concatenate(shuffled, axis=1)) / table.pop("total")
    # The most important first, at each rung.
    table = table.sort_values(["rung", "importance"], ascending=[True, False], kind="stable", ignore_index=True)[_COLUMNS]
    table.attrs.update(metric=metric, best=best, shuffles=SHUFFLES)
    return table


def exceeded_by_chance(shuffled: Floats, level: float = 0.95) -> Floats:
    """Bounds (tests,) that any of many statistics exceeds with probability 1 - `level` where none of them has an effect.

    Every statistic gets the same share of that probability: the cube root of an importance is about normal, as that of a
    chi-squared statistic (E. B. Wilson and M. M. Hilferty, 1931), so the roots are standardised, and the bound is the quantile
    of the greatest in each shuffle. A shuffle is standardised by the others, as the table is by all of them.

    Args:
        shuffled: The statistics, (shuffles, tests), from 0 on; NaN throughout for a test that has none.
        level: The probability that none is exceeded.
    """
    roots = np.cbrt(shuffled)
    count, apart = len(roots), roots - roots.mean(axis=0)
    squares = (apart**2).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        others = np.sqrt(np.maximum(squares - apart**2 * count / (count - 1), 0) / (count - 2))
        scores = apart * count / (count - 1) / others
    # No finite score: a parameter with a single value, or one that no trial has.
    greatest = np.where(np.isfinite(scores), scores, -np.inf).max(axis=1)
    bound = np.percentile(greatest, 100 * level, method="higher")
    spread = np.sqrt(squares / (count - 1))
    return np.asarray(np.maximum(roots.mean(axis=0) + np.where(spread > 0, bound * spread, 0.0), 0.0) ** 3)


class _Searched:
    """The parameters of a run's space as Optuna distributions, and the values of each candidate."""

    def __init__(self, run: Run) -> None:
        # Imported here, as Optuna is slow to import and loading a run does not need it.
        from nas.search.distributions import distribution, encoded

        self.distributions = {parameter.name: distribution(parameter.domain) for parameter in run.study.search_space.parameters}
        self.params = {
            trial.candidate: {name: encoded(value) for name, value in trial.params.items()}
            for trial in run.trials.values()
            if trial.params is not None
        }

    @property
    def names(self) -> list[str]:
        """The names of the parameters, in the order of the space."""
        return list(self.distributions)

    def importances(self, taken: Sequence[Params], values: Floats, best: float) -> Floats:
        """The evaluator's importance per parameter (not a share); NaN for one that is active in none of the trials."""
        from optuna import create_study, logging
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
        from optuna.trial import create_trial

        logging.set_verbosity(logging.WARNING)
        trials = [
            create_trial(params=dict(params), distributions={name: self.distributions[name] for name in params}, value=value)
            for params, value in zip(taken, values.tolist(), strict=True)
        ]
        with warnings.catch_warnings():
            # Optuna warns that normalize=False is experimental, and of parameters active in few trials, which the interval shows.
            warnings.simplefilter("ignore")
            study = create_study()
            study.add_trials(trials)
            importances = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=best), normalize=False)
        return np.array([importances.get(name, np.nan) for name in self.names])


def _check(name: str, reached: pd.Series[int], rung: int | None) -> None:
    """Raises ToolkitError when a rung, or every rung, has too few trials."""
    if rung is not None and rung not in reached.index:
        raise ToolkitError(f"run {name} has no rung {rung}; it has 1 to {len(reached)}")
    most = int(reached.max() if rung is None else reached[rung])
    if most < LEAST:
        bound = "at most " if rung is None else ""
        at = "at a rung" if rung is None else f"at rung {rung}"
        raise ToolkitError(
            f"run {name} has {bound}{most} trials of its space {at}, and importance needs at least {LEAST}; train more"
        )


def _one_rung(space: _Searched, taken: Sequence[Params], values: Floats, best: float) -> tuple[pd.DataFrame, Floats]:
    """One row per parameter, with the sum of the importances, `total`; and the importances in shuffles, (shuffles, parameters)."""
    table = pd.DataFrame({"parameter": space.names}).assign(importance=np.nan, low=np.nan, high=np.nan, total=np.nan)
    shuffled = np.full((SHUFFLES, len(space.names)), np.nan)
    if len(taken) < LEAST:
        return table, shuffled
    raw = space.importances(taken, values, best)
    if not np.nansum(raw) > 0:
        return table, shuffled
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(taken), size=(RESAMPLES, len(taken)))
    shares = np.array([_shares(space.importances([taken[row] for row in rows], values[rows], best)) for rows in drawn])
    # Of a generator of their own: rungs with the same trials have the same shuffles, as they have the same parameters' values.
    rng = np.random.default_rng(1)
    shuffled = np.array([space.importances(_shuffled(taken, space.names, rng), values, best) for _ in range(SHUFFLES)])
    importance = table["importance"] = _shares(raw)
    table["total"] = np.nansum(raw)
    # A parameter that was active in no trial keeps its NaN.
    active = np.isfinite(raw)
    low, high = np.nanpercentile(shares[:, active], [2.5, 97.5], axis=0)
    table.loc[active, "low"], table.loc[active, "high"] = np.minimum(low, importance[active]), np.maximum(high, importance[active])
    return table, shuffled


def _shuffled(taken: Sequence[Params], names: Sequence[str], rng: np.random.Generator) -> list[Params]:
    """The trials with every parameter's values permuted among those in which it was active.

    Shuffling the metric instead would also separate a parameter from its condition, whose weight must stay as it is.
    """
    shuffled: list[Params] = [{} for _ in taken]
    for name in names:
        active = [row for row, params in enumerate(taken) if name in params]
        for row, source in zip(active, rng.permutation(active).tolist(), strict=True):
            shuffled[row][name] = taken[source][name]
    return shuffled


def _shares(raw: Floats) -> Floats:
    """Shares of the sum; all NaN where the sum is 0."""
    total = np.nansum(raw)
    return raw / total if total > 0 else np.full_like(raw, np.nan)
