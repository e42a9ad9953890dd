"""Which of the searched parameters decide, rung by rung; the only module of `analysis` that takes Optuna, when it is asked."""

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
"""Values by the names of parameters, as Optuna stores them."""

Floats = NDArray[np.float64]

EVALUATORS = ("ped-anova",)
"""Optuna's evaluators that need nothing else; fANOVA and mean decrease of impurity take random forests from scikit-learn."""

LEAST = 8
"""Fewer trials than these say nothing about a parameter."""

RESAMPLES = 100
"""Of the trials with replacement, for the intervals; and as many shuffles, for what chance gives."""

_COLUMNS = ["rung", "train_tflops", "parameter", "importance", "low", "high", "chance", "trials", "censored"]


def param_importances(
    data: RunData, metric: str = "val_loss", rung: int | None = None, evaluator: str = "ped-anova", best: float = 0.5
) -> pd.DataFrame:
    """How much each searched parameter has to do with being among the best at a rung.

    `data` is what `analysis.load` returned; `metric` a column of its reports; `rung` one rung (from 1), by
    default all. The evaluator is Optuna's PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023; for parameters that are not always
    active, Baba, Ozaki and Watanabe, Conditional PED-ANOVA, 2026): it compares how a parameter's values are spread among the
    `best` share of the trials with how they are spread among all. Optuna's own share, a tenth, would leave a single trial of
    eight; the best half shows what decides with fewer trials.

    Every rung is judged by the trials that reached it and by their values there, so a pruned one counts at each rung that it
    reached and nowhere above. The higher the rung, the more its trials were chosen by the rungs below: a parameter by whose bad
    values trials were pruned has little left to decide. Replicates are averaged and count as one trial. Architectures from
    outside the space, which have no values of its parameters, are left out. A parameter is judged among the trials in which it
    was active, weighted by how many of the best these are; what its condition decides is not credited to it.

    Returns one row a rung and parameter, the most important first:
    `rung` and `train_tflops` (training multiply-accumulates / 1e12, the median over reports); `parameter`; `importance`, its share
    of the sum over all parameters; `low` to `high`, the 95 % percentile interval over trials drawn with replacement (a resample
    holds fewer distinct trials, which draws the shares together, so where need be it is widened up to the importance itself);
    `chance`, what the importance stays within in 95 % of shuffles of the parameter's values (after Altmann et al., Permutation
    importance, Bioinformatics 26, 2010), as the same share. Only an importance above its chance says anything: with few trials a
    range or a long choice gets much by chance alone. `trials`, from which the row is; `censored`, those that reported but have no
    value at this rung. A rung with fewer than 8 trials, or whose values are all equal (or so many that the best share is
    all), has NaN for its importances. It takes some seconds: a rung of 40 trials about two.

    Raises RunError when the run is no search, and ToolkitError for another evaluator or metric, for a rung
    that does not exist or has fewer than 8 trials, and when no rung has 8.

        table = param_importances(analysis.load("runs/quickstart-search"))
        print(table[table["importance"] > table["chance"]])
    """
    require_loaded(data)
    if evaluator not in EVALUATORS:
        raise ToolkitError(f"there is no evaluator '{evaluator}'; take {', '.join(EVALUATORS)}, which needs no other packages")
    if not 0 < best < 1:
        raise ToolkitError(f"best is {best:g}, which is no share of the trials; give one between 0 and 1, such as 0.5")
    if data.study.search is None:
        raise RunError(f"run {data.name} is an ablation, which searches no parameters; compare its variants instead")
    space = _Searched(data.run)
    values = better_sign(metric) * rung_values(data, metric)
    values = values.loc[[digest for digest in values.index if digest in space.params]]
    reached = values.notna().sum()
    _check(data.name, reached, rung)
    tflops = rung_tflops(data)
    tables = []
    for place in reached.index if rung is None else [rung]:
        here = values[place].dropna()
        table = _one_rung(space, [space.params[str(digest)] for digest in here.index], here.to_numpy(dtype=float), best)
        about = {"rung": place, "train_tflops": tflops.get(place, np.nan), "trials": len(here), "censored": len(values) - len(here)}
        tables.append(table.assign(**about))
    table = pd.concat(tables, ignore_index=True)[_COLUMNS]
    table.attrs.update(metric=metric, best=best)
    return table


class _Searched:
    """The parameters of a run's space as Optuna has them, and the values that its architectures took."""

    def __init__(self, run: Run) -> None:
        # Optuna takes a while to import, and loading a run does without it.
        from nas.search.searcher import distribution, encoded

        assert run.study is not None, "a run begins with its study"
        self.distributions = {parameter.name: distribution(parameter.domain) for parameter in run.study.search_space.parameters}
        self.params = {
            trial.digest: {name: encoded(value) for name, value in trial.params.items()}
            for trial in run.trials.values()
            if trial.params is not None
        }

    @property
    def names(self) -> list[str]:
        """The parameters, in the order of the space."""
        return list(self.distributions)

    def importances(self, taken: Sequence[Params], values: Floats, best: float) -> Floats:
        """One a parameter, as the evaluator has it (not in shares); NaN for one that none of these trials has."""
        from optuna import create_study, logging
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
        from optuna.trial import create_trial

        logging.set_verbosity(logging.WARNING)
        trials = [
            create_trial(params=dict(own), distributions={name: self.distributions[name] for name in own}, value=value)
            for own, value in zip(taken, values.tolist(), strict=True)
        ]
        with warnings.catch_warnings():
            # That shares are not made is experimental; that a parameter was active in few trials shows in its interval.
            warnings.simplefilter("ignore")
            study = create_study()
            study.add_trials(trials)
            found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=best), normalize=False)
        return np.array([found.get(name, np.nan) for name in self.names])


def _check(name: str, reached: pd.Series[int], rung: int | None) -> None:
    """Raises ToolkitError when there is nothing to be told of a rung, or of any."""
    if rung is not None and rung not in reached.index:
        raise ToolkitError(f"run {name} has no rung {rung}; it has 1 to {len(reached)}")
    most = int(reached.max() if rung is None else reached[rung])
    if most < LEAST:
        where = "at most " if rung is None else ""
        place = "at a rung" if rung is None else f"at rung {rung}"
        raise ToolkitError(
            f"run {name} has {where}{most} trials of its space {place}, and importance takes at least {LEAST}; train more"
        )


def _one_rung(space: _Searched, taken: Sequence[Params], values: Floats, best: float) -> pd.DataFrame:
    """One row a parameter, the most important first."""
    found = pd.DataFrame({"parameter": space.names}).assign(importance=np.nan, low=np.nan, high=np.nan, chance=np.nan)
    if len(taken) < LEAST:
        return found
    raw = space.importances(taken, values, best)
    if not np.nansum(raw) > 0:
        return found
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(taken), size=(RESAMPLES, len(taken)))
    shares = np.array([_shares(space.importances([taken[row] for row in rows], values[rows], best)) for rows in drawn])
    shuffled = np.array([space.importances(_shuffled(taken, space.names, rng), values, best) for _ in range(RESAMPLES)])
    own = found["importance"] = _shares(raw)
    # A parameter that was active nowhere keeps its NaN.
    seen = np.isfinite(raw)
    low, high = np.nanpercentile(shares[:, seen], [2.5, 97.5], axis=0)
    found.loc[seen, "low"], found.loc[seen, "high"] = np.minimum(low, own[seen]), np.maximum(high, own[seen])
    found.loc[seen, "chance"] = np.percentile(shuffled[:, seen], 95, axis=0, method="higher") / raw[seen].sum()
    return found.sort_values("importance", ascending=False, kind="stable")


def _shuffled(taken: Sequence[Params], names: Sequence[str], rng: np.random.Generator) -> list[Params]:
    """The same trials with every parameter's values dealt anew among those in which it was active.

    Shuffling the metric instead would also part a parameter from its condition, which must go on to weigh as it does.
    """
    dealt: list[Params] = [{} for _ in taken]
    for name in names:
        active = [row for row, own in enumerate(taken) if name in own]
        for row, giver in zip(active, rng.permutation(active).tolist(), strict=True):
            dealt[row][name] = taken[giver][name]
    return dealt


def _shares(raw: Floats) -> Floats:
    """Shares of the sum; all NaN where nothing is told apart."""
    total = np.nansum(raw)
    return raw / total if total > 0 else np.full_like(raw, np.nan)
