"""The confirmation of a search: who is confirmed, what the fresh seeds say, and the sentence that follows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nas.runs.events import CandidatesChosen, Confirmed
from nas.runs.layout import CONFIRMATION
from nas.runs.records import Confirmation, Fresh
from nas.runs.run import Run, TrialResult, values_by_seed
from nas.runs.winners import looked_at
from nas.stats.paired import mean_and_spread, minimum_detectable_effect
from nas.stats.verdicts import BETTER, LEVEL, WORSE, judged
from nas.study.confirmation import confirmation_study
from nas.study.metrics import METRICS, lower_is_better
from nas.study.study import Study
from space.costs.cost import cost
from space.costs.matching import TOLERANCE
from space.errors import RunError

Values = Mapping[int, float]
"""The value of every seed that has ended, NaN of one that failed."""


def candidates_of(run: Run) -> CandidatesChosen | None:
    """The best of a search that differ from the baseline of its confirmation, as an event; None where none is complete."""
    study = run.study
    assert study.confirm is not None, "asked of a study without confirm"
    baseline = study.hand_made[1].digest
    best = [trial.number for trial in run.best(len(run.trials)) if trial.digest != baseline]
    return CandidatesChosen(trials=tuple(best[: study.confirm.best])) if best else None


def fresh_study(run: Run) -> Study:
    """The ablation that trains the candidates of a run with fresh seeds."""
    return confirmation_study(run.study, {row_of(run.trials[number]): run.trials[number].spec for number in run.candidates})


def row_of(trial: TrialResult) -> str:
    """The name of a candidate's row in its confirmation."""
    return f"trial {trial.number}"


def confirmed_by(run: Run, fresh: Run) -> Confirmed:
    """What the run of `fresh_study` says of the candidates of a search.

    Each is compared with the baseline by the rule of all tables, as one family. The best by its fresh mean among those that are
    claimed to be better is chosen; where none is, the first of the search. Values of the search are shown beside, never used.
    """
    baseline, *rows = [row for row in fresh.study.rows if row.control == "raw"]
    values = values_by_seed(fresh, fresh.metric)
    trials = {row_of(run.trials[number]): run.trials[number] for number in run.candidates}
    searched = {standing.trial.digest: standing.mean for standing in run.standings()}
    compared = compare_with_baseline(
        [values.get(baseline.spec.digest, {}), *(values.get(row.spec.digest, {}) for row in rows)],
        fresh.metric,
        looked_at(fresh),
    )
    found = [
        Fresh(trial=trials[row.variant].number, searched=searched[row.spec.digest], **compared["candidates"][place])
        for place, row in enumerate(rows)
    ]
    claimed = [one for one in found if one.verdict == BETTER]
    sign = 1 if lower_is_better(fresh.metric) else -1
    first = run.best()[0].number
    chosen = min(claimed, key=lambda one: sign * (one.difference or 0.0)).trial if claimed else first
    result = Confirmation(
        metric=fresh.metric,
        baseline=baseline.variant,
        gflops=cost(baseline.spec).gflops,
        candidates=tuple(found),
        claimed=bool(claimed),
        replanned=fresh.replanned,
        **{key: compared[key] for key in ("mean", "sd", "visible", "rule")},
    )
    return Confirmed(chosen=chosen, result=result)


def compare_with_baseline(rows: Sequence[Values], metric: str, looks: Sequence[int] | None = None) -> dict[str, Any]:
    """Compare candidates with a baseline on seeds that chose none of them.

    Args:
        rows: The values of the baseline and of every candidate.
        metric: The metric, which says whether lower is better.
        looks: The numbers of pairs at which the differences were looked at, with sequential seeds.

    Returns:
        The fields of `Confirmation` and, under `candidates`, those of `Fresh` that follow from the values. Verdicts are Holm's over
        all candidates at 5 %; intervals are simultaneous (Bonferroni), since the best of several is chosen on the same seeds.
    """
    k, lower = len(rows) - 1, lower_is_better(metric)
    pairs = [(place, 0) for place in range(1, k + 1)]
    tests = judged(rows, pairs, lower, looks=looks, simultaneous=True)
    own = [_mean_and_sd(row) for row in rows]
    candidates = [
        {
            "mean": own[place][0],
            "sd": own[place][1],
            "pairs": tests["pairs"][place - 1],
            "difference": _known(tests["difference"][place - 1]),
            "low": _known(tests["ci_low"][place - 1]),
            "high": _known(tests["ci_high"][place - 1]),
            "p": _known(tests["p_rule_holm"][place - 1]),
            "verdict": tests["verdict"][place - 1],
        }
        for place in range(1, k + 1)
    ]
    return {
        "mean": own[0][0],
        "sd": own[0][1],
        "candidates": candidates,
        "visible": _visible(rows),
        "rule": tests["rule"][0],
    }


def conclusion(run: Run) -> str:
    """One sentence on the winner of a search: what is claimed of it, or that it is not confirmed; empty before there is one."""
    if run.confirmed is not None:
        return _sentence(run, run.confirmed)
    if run.candidates:
        chosen = ", ".join(str(number) for number in run.candidates)
        plural = "trials" if len(run.candidates) > 1 else "trial"
        return f"{plural} {chosen}: to be confirmed with fresh seeds, in the folder {CONFIRMATION}"
    best = run.standings()
    if not best:
        return ""
    seeds = "one seed" if best[0].seeds == 1 else f"the {best[0].seeds} seeds that chose it"
    return f"trial {best[0].trial.number} is not confirmed: its {run.metric} is of {seeds}, the best of {len(best)} and so too good"


def _sentence(run: Run, confirmed: Confirmed) -> str:
    result = confirmed.result
    digits = METRICS[result.metric].digits
    among = f" of {len(result.candidates)} comparisons" if len(result.candidates) > 1 else ""
    told = []
    if result.claimed:
        one = next(one for one in result.candidates if one.trial == confirmed.chosen)
        told.append(
            f"trial {one.trial} is better than {result.baseline} {_by(one, digits)} {_at(run.trials[one.trial], result)} "
            f"({one.pairs} fresh paired seeds, p = {one.p:.2g}{among})"
        )
    else:
        count = len(result.candidates)
        which = f"trial {result.candidates[0].trial}" if count == 1 else f"any of the {count}"
        seen = f"; a difference of {result.visible:.{digits}f} would have been seen" if result.visible else ""
        told.append(f"no evidence that {which} is better than {result.baseline}{seen}")
    told += [
        f"trial {one.trial} is worse than {result.baseline} {_by(one, digits)} (p = {one.p:.2g}{among})"
        for one in result.candidates
        if one.verdict == WORSE
    ]
    short = [one for one in result.candidates if one.difference is None]
    if short:
        told.append(f"{', '.join(f'trial {one.trial}' for one in short)} failed at every fresh seed")
    if result.replanned:
        told.append("seeds were added after a look at the first ones, which no p-value allows for")
    return "; ".join(told)


def _by(one: Fresh, digits: int) -> str:
    if one.difference is None or one.low is None or one.high is None:
        return ""
    sign = math.copysign(1, one.difference)
    low, high = sorted((sign * one.low, sign * one.high))
    return f"by {abs(one.difference):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _at(trial: TrialResult, result: Confirmation) -> str:
    """The costs at which a trial and the baseline are compared."""
    own = trial.cost.gflops
    if abs(own / result.gflops - 1) <= TOLERANCE:
        return "at equal GFLOPs"
    return f"at {own:.4g} against {result.gflops:.4g} GFLOPs"


def _mean_and_sd(row: Values) -> tuple[float | None, float | None]:
    known = [value for value in row.values() if math.isfinite(value)]
    if not known:
        return None, None
    mean, sd = mean_and_spread(known) if len(known) > 1 else (known[0], None)
    return mean, sd


def _visible(rows: Sequence[Values]) -> float | None:
    """The smallest difference from the baseline that is claimed with a chance of 80 %, by the pooled SD of paired differences."""
    squares, freedom, fewest = 0.0, 0, math.inf
    for row in rows[1:]:
        both = [seed for seed in row if math.isfinite(row[seed]) and math.isfinite(rows[0].get(seed, math.nan))]
        differences = np.array([row[seed] - rows[0][seed] for seed in both])
        if len(both) > 1:
            squares += float(((differences - differences.mean()) ** 2).sum())
            freedom, fewest = freedom + len(both) - 1, min(fewest, len(both))
    if not squares:
        return None
    return minimum_detectable_effect(math.sqrt(squares / freedom), int(fewest), (1 - LEVEL) / (len(rows) - 1))


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def check_confirmable(run: Run, study: Study) -> None:
    """Check that a search that has ended has as many candidates as a study confirms; raises RunError otherwise."""
    confirm = study.confirm
    assert confirm is not None, "asked of a study without confirm"
    complete = len(run.standings())
    if not complete:
        raise RunError(f"no trial of {study.name} is complete, so there is none to confirm; raise search.trials and run it on")
    if not run.candidates and confirm.best > complete:
        raise RunError(f"confirm.best is {confirm.best}, but {study.name} has {complete} complete architectures; lower it")
