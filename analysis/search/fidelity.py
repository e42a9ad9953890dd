"""Rank fidelity: the agreement between the order of architectures at a rung and their order at the last rung."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.columns import numeric_column, require_columns
from analysis.runs.data import RunData, require_loaded
from nas.stats.ranks import LEAST, agreement, agreement_across_seeds, pair_signs, resampled
from nas.study.metrics import lower_is_better
from space.errors import ToolkitError

Floats = NDArray[np.float64]

_COUNTS = ("architectures", "complete", "censored", "top_known", "replicated")


def rank_fidelity(run: RunData | pd.DataFrame, metric: str = "val_loss", top: int = 3, level: float = 0.95) -> pd.DataFrame:
    """Kendall's τ-b of every rung against the last one, and the regret of keeping only a rung's best.

    An architecture is a variant of a frame, or a candidate of a run (with other training settings, an architecture is another
    candidate); its replicates are averaged, at the rungs that all of them have reached. Reports of a finish are left out, and a
    value that is not finite counts as missing.

    Within seeds, a rung is compared with the end of the same trainings. What a seed did to them by then is in both, so a training's
    luck counts as fidelity: identical architectures whose losses correlate by 0.9 between the two have a τ of 0.71. The regret is
    within seeds too. Across seeds, one seed's order at the rung is compared with another's at the end, and identical architectures
    have a τ of 0. At the last rung that is the noise ceiling, the agreement of two full trainings: a rung that comes near it
    foretells as much as a full training would. It takes replicates; 8 architectures with a second seed (in a search,
    `replicates: 2`) show it with a wide interval.

    An architecture without a value at the last rung (pruned, failed or still running) is right-censored there. Those with a value
    were selected by the very rungs that are judged here: they differ less than all do, so τ over them is biased, mostly
    downwards. It therefore comes with two numbers: the share of the rung's architectures that it rests on, and the bounds of τ
    over all of them, for any missing values that equal no other value. The bounds are attained: each unknown architecture takes
    the position among the known ones that agrees most with the rung, and these positions are in the order of the rung, so that
    the unknown ones agree among themselves too; for the other bound everything is reversed. The bounds are wide. An unbiased τ
    needs a run in which nothing is pruned (`budget.mode: none`).

    The intervals are percentiles over architectures drawn with replacement, as in `nas replay`, and NaN with fewer than 8 complete
    architectures. In simulated normal data the 95 % intervals of τ covered 94 to 98 % from 8 complete ones on, and as little as
    64 % with 5. The intervals of the regret are a rough guide, as for all extremes: they are too short where the regret is zero
    in nearly every resample.

    Source: M. G. Kendall, The treatment of ties in ranking problems, Biometrika 33, 1945.

    Args:
        run: The result of `analysis.load`, or a tidy frame with one row per report: `rung` (from 1), the metric, and `trial`, or
            `variant` and `seed`.
        metric: A column of the reports.
        top: The number of a rung's best architectures whose regret is taken.
        level: The level of the intervals.

    Returns:
        One row per rung: rung and train_tflops (training multiply-accumulates / 1e12, the median over reports; NaN where the frame
        has none); architectures (with a value at the rung), complete (those of them with a value at the last rung) and
        complete_share; censored, those whose last value is at this rung (summed over rungs, with the complete ones of the last
        rung, they are all architectures); tau_within seeds, over the complete ones, with its interval within_low to within_high;
        tau_least and tau_most, its bounds over all; tau_across seeds with its interval across_low to across_high, and replicated,
        the architectures that it rests on (NaN and 0 without replicates); top_regret, the best known final metric among the rung's
        `top` best minus the best known one, in the metric's unit and positive where worse, with its interval regret_low to
        regret_high; top_known, the number of the `top` with a final metric. A missing final metric could only lower this regret; it
        is NaN where all are missing.

    Raises:
        ToolkitError: A column is missing, a report occurs twice, nothing has reached the last rung, or the direction of the metric
            is unknown.

    >>> frame = pd.DataFrame({"trial": [0, 1, 2, 3, 0, 1, 2], "rung": [1, 1, 1, 1, 2, 2, 2],
    ...                       "val_loss": [1.0, 2.0, 3.0, 4.0, 0.5, 0.9, 0.7]})
    >>> table = rank_fidelity(frame, top=1)
    >>> print(table[["rung", "complete", "tau_within", "tau_least", "tau_most", "top_regret"]].round(2).to_string(index=False))
     rung  complete  tau_within  tau_least  tau_most  top_regret
        1         3        0.33      -0.33      0.67         0.0
        2         3        1.00       1.00      1.00         0.0
    """
    if not isinstance(run, pd.DataFrame):
        require_loaded(run)
    if top < 1:
        raise ToolkitError(f"top is {top}, but a rung has at least one best; give 1 or more")
    if not 0 < level < 1:
        raise ToolkitError(f"level is {level:g}, which is not a share; give one between 0 and 1, such as 0.95")
    by_seed, tflops = _by_replicate(run, metric), rung_tflops(run)
    values, sign = _averaged(by_seed, run), better_sign(metric)
    signed = sign * values.to_numpy(dtype=float)
    ends = _ends(signed)
    if signed.shape[1] - 1 not in ends:
        raise ToolkitError(
            f"no architecture has a {metric} at the last rung ({values.columns[-1]}), so there is no order to compare with yet"
        )
    cells = by_seed.groupby(level=["architecture", "seed"], sort=False).first()
    seeded = [sign * cells[rung].unstack("seed").to_numpy(dtype=float) for rung in cells.columns]
    rows = [
        {
            "rung": rung,
            "train_tflops": tflops.get(int(rung), np.nan),
            **_fidelity(signed[:, column], signed[:, -1], top, level),
            **_across(seeded[column], seeded[-1], level),
            "censored": 0 if column == signed.shape[1] - 1 else (ends == column).sum(),
        }
        for column, rung in enumerate(values.columns.tolist())
    ]
    table = pd.DataFrame(rows, dtype=float)[_COLUMNS].astype(dict.fromkeys(("rung", *_COUNTS), int))
    table.attrs.update(metric=metric, top=top, level=level)
    return table


_COLUMNS = [
    *("rung", "train_tflops", "architectures", "complete", "complete_share", "censored"),
    *("tau_within", "within_low", "within_high", "tau_least", "tau_most"),
    *("tau_across", "across_low", "across_high", "replicated"),
    *("top_regret", "regret_low", "regret_high", "top_known"),
]


def tau_bounds(here: Floats, last: Floats) -> tuple[float, float]:
    """The least and the greatest τ-b of two orders (N,) when some values of `last` are unknown (NaN).

    An unknown value may be any that equals no other value. Both bounds are attained; both are NaN where all values are tied.
    """
    known = np.isfinite(last)
    ranks, inverse = np.unique(last[known], return_inverse=True)
    order_here, order_last = pair_signs(here), pair_signs(last[known])
    untied_here = np.count_nonzero(order_here) / 2
    tied_last = (order_last.size - len(inverse) - np.count_nonzero(order_last)) / 2
    untied_last = len(here) * (len(here) - 1) / 2 - tied_last
    if not untied_here or not untied_last:
        return np.nan, np.nan
    agreeing = (order_here[np.ix_(known, known)] * order_last).sum() / 2
    # The agreement of an unknown one (row) with all known ones, for every position that it can take among them (column).
    above = np.where(inverse[:, None] < np.arange(len(ranks) + 1), 1.0, -1.0)
    mixed = order_here[np.ix_(~known, known)] @ above
    among = np.count_nonzero(order_here[np.ix_(~known, ~known)]) / 2
    scale = np.sqrt(untied_here * untied_last)
    least, most = agreeing + mixed.min(axis=1).sum() - among, agreeing + mixed.max(axis=1).sum() + among
    return float(least / scale), float(most / scale)


def rung_values(run: RunData | pd.DataFrame, metric: str) -> pd.DataFrame:
    """The metric of every architecture (row) at every rung (column), the mean of its replicates; NaN where one is missing.

    `run` and the errors are those of `rank_fidelity`. Architectures that never reported are left out.
    """
    return _averaged(_by_replicate(run, metric), run)


def _averaged(wide: pd.DataFrame, run: RunData | pd.DataFrame) -> pd.DataFrame:
    """The mean of each architecture's replicates (rows) at every rung (columns), where all of them have a value."""
    # A run's architectures keep the order in which they were begun; the rows of a frame may be in any order.
    by_architecture = wide.groupby(level="architecture", sort=not isinstance(run, RunData))
    complete = by_architecture.count().eq(by_architecture.size(), axis=0)
    return by_architecture.mean().where(complete).dropna(how="all")


def _by_replicate(run: RunData | pd.DataFrame, metric: str) -> pd.DataFrame:
    """The metric of every replicate (rows: architecture, replicate, seed) at every rung (columns); NaN where one is missing."""
    frame = _tidy(run, metric)
    keys, rungs = ["architecture", "replicate", "seed"], _rungs(run, frame)
    reported = frame[frame["rung"].isin(rungs)]
    twice = reported[reported.duplicated([*keys, "rung"])]
    if len(twice):
        architecture, replicate, _, rung = twice[[*keys, "rung"]].astype(object).iloc[0]
        raise ToolkitError(
            f"the frame has two rows for {architecture}, replicate {replicate}, at rung {rung:g}; keep one, such as those of one "
            "block and one control"
        )
    wide = reported.pivot(index=keys, columns="rung", values=metric).reindex(columns=rungs)
    # A replicate that never reported is missing from the mean too.
    return wide.reindex(pd.MultiIndex.from_frame(frame[keys].drop_duplicates()))


def better_sign(metric: str) -> float:
    """The sign that makes a metric of reports one of which lower is better; raises ToolkitError for an unknown direction."""
    return 1.0 if lower_is_better(metric) else -1.0


def rung_tflops(run: RunData | pd.DataFrame) -> dict[int, float]:
    """Training TFLOPs (multiply-accumulates / 1e12) of every rung, the median over its reports; empty without that column."""
    reports = run.reports if isinstance(run, RunData) else run
    reports = reports[reports["phase"] != "finish"] if "phase" in reports else reports
    if "train_tflops" not in reports:
        return {}
    return {int(str(rung)): float(value) for rung, value in reports.groupby("rung")["train_tflops"].median().items()}


def _tidy(run: RunData | pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row per report: architecture, replicate, seed, rung, metric; a trial without reports has one row without a rung."""
    frame = run.reports if isinstance(run, RunData) else run
    require_columns(frame, ("rung", metric))
    frame = frame[frame["phase"] != "finish"] if "phase" in frame else frame
    if isinstance(run, RunData):
        frame = run.trials[["trial", "candidate", "seed"]].merge(frame[["trial", "rung", metric]], on="trial", how="left")
        frame = frame.rename(columns={"candidate": "architecture", "trial": "replicate"})
    elif "variant" in frame and {"seed", "trial"} & set(frame):
        frame = frame.assign(architecture=frame["variant"], replicate=frame["seed" if "seed" in frame else "trial"])
        if "seed" not in frame:
            frame["seed"] = frame.groupby("architecture")["replicate"].rank("dense")
    elif "trial" in frame:
        frame = frame.assign(architecture=frame["trial"], replicate=0, seed=0)
    else:
        raise ToolkitError("the reports do not name their trials; add a column trial, or variant and seed")
    values = numeric_column(frame, metric)
    return frame[["architecture", "replicate", "seed", "rung"]].assign(**{metric: values.where(np.isfinite(values))})


def _rungs(run: RunData | pd.DataFrame, frame: pd.DataFrame) -> list[int]:
    """All rungs of a run, also those not reached yet; of a frame, those in it."""
    if isinstance(run, RunData):
        return list(range(1, run.study.budget.rungs + 1))
    return sorted(int(rung) for rung in frame["rung"].dropna().unique())


def _ends(signed: Floats) -> NDArray[np.intp]:
    """The column of the last rung at which each architecture has a value."""
    return np.asarray(signed.shape[1] - 1 - np.isfinite(signed)[:, ::-1].argmax(axis=1))


def _fidelity(here: Floats, last: Floats, top: int, level: float) -> dict[str, float]:
    """One rung's row, from values of which lower is better."""
    reached = np.isfinite(here)
    here, last = here[reached], last[reached]
    known = np.isfinite(last)
    regret = _top_regret(here, last, top)
    least, most = tau_bounds(here, last)
    row = {
        "architectures": len(here),
        "complete": known.sum(),
        "complete_share": known.mean() if len(here) else np.nan,
        **{"tau_within": tau_bounds(here[known], last[known])[0], "within_low": np.nan, "within_high": np.nan},
        **{"tau_least": least, "tau_most": most},
        **{"top_regret": regret, "regret_low": np.nan, "regret_high": np.nan},
        "top_known": known[_best(here, top)].sum(),
    }
    if known.sum() < LEAST:
        return row
    tau = agreement(here[known], last[known], resampled(known.sum()), level)
    if tau.low is not None and tau.high is not None:
        row |= {"within_low": tau.low, "within_high": tau.high}
    regrets = [_top_regret(here[rows], last[rows], top) for rows in resampled(len(here))]
    if np.isfinite(regrets).any():
        row["regret_low"], row["regret_high"] = np.nanpercentile(regrets, [50 - 50 * level, 50 + 50 * level])
    return row


def _across(here: Floats, last: Floats, level: float) -> dict[str, float | None]:
    """The part of a rung's row that is across seeds, from values (architectures, seeds)."""
    tau, replicated = agreement_across_seeds(here, last, level)
    return {"tau_across": tau.tau, "across_low": tau.low, "across_high": tau.high, "replicated": replicated}


def _top_regret(here: Floats, last: Floats, top: int) -> float:
    """The least last value among the `top` best here, minus the least of all; NaN where none of them is known."""
    kept = last[_best(here, top)]
    return float(np.nanmin(kept) - np.nanmin(last)) if np.isfinite(kept).any() else np.nan


def _best(here: Floats, top: int) -> NDArray[np.intp]:
    return np.argsort(here, kind="stable")[:top]
