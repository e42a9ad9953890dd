"""Calibrations: what the scores of protocols tell of the same architectures, from the runs that trained them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import kendalltau

from analysis.runs.data import RunData, require_loaded
from nas.runs.calibrations import CalibratedRung, Calibration, RungFigures
from nas.runs.run import Run, TrialResult, final_value
from nas.stats.reliability import advantage_p, agreeing_sd, reliability, seeds_needed, split_half_tau
from nas.study.calibration import OWN, TrainingProtocol, protocol_digest, space_digest
from nas.study.study import Study
from space.errors import RunError

Floats = NDArray[np.float64]

ALPHA = 0.025
"""The chance, over all claims of a calibration, of recommending in place of the study's own protocol one that is no better."""


@dataclass(frozen=True)
class _Scored:
    """A row, and the scores (architectures, seeds) behind its figures; None where there are too few."""

    row: CalibratedRung
    values: Floats | None


def calibration_of(study: Study, runs: Sequence[tuple[TrainingProtocol, Run]], reference: Run | None = None) -> Calibration:
    """What the protocols of a calibration tell of its architectures, and which of them to take.

    A protocol is better than the study's own where two architectures are told apart for less compute. Without a reference it is not
    known whether a cheap distinction is the one that long training makes, so only the last rungs of protocols are compared, at
    budgets that differ by at most a tenth. With a reference the difference to tell apart is the part of the SD between
    architectures that agrees with it, and every rung of every protocol may be recommended. The study's own protocol and budget are
    kept unless another one's advantage is significant (`nas.stats.reliability.advantage_p`, Bonferroni over all that are compared).
    A protocol with failed trainings is never recommended.

    Args:
        study: The calibrated study.
        runs: The protocols and their runs, the study's own first.
        reference: The run of the reference.

    Raises:
        RunError: The study's own protocol has no rung with scores of two seeds for all architectures.
    """
    own_run = runs[0][1]
    metric = own_run.metric
    goal = _reference_values(own_run, reference, metric) if reference is not None else None
    every = [one for protocol, run in runs for one in _rungs(protocol, run, metric, goal)]
    # A decay changes nothing before the last rung, so a protocol with one has the other rungs of the protocol without.
    shared = [one.row.digest in {before.row.digest for before in every[:index]} for index, one in enumerate(every)]
    scored = [one for one, is_shared in zip(every, shared, strict=True) if one.row.last or not is_shared]
    own = next((one for one in scored if one.row.protocol == OWN and one.row.last), None)
    if own is None or own.values is None:
        raise RunError(
            f"{study.name}: too many trainings of the study's own protocol failed to say anything of it; see the reasons above, "
            "mend the protocol, and calibrate anew"
        )
    rivals = [one for one in scored if one is not own and _comparable(one, own, goal is not None)]
    compared = []
    for one in scored:
        if any(one is rival for rival in rivals):
            assert one.values is not None
            # Where trainings of the study's own protocol failed, it has fewer seeds; both are judged by as few.
            seeds = min(own.values.shape[1], one.values.shape[1])
            p = advantage_p(own.values[:, :seeds], one.values[:, :seeds], goal, (own.row.macs, one.row.macs))
            one = _Scored(one.row.model_copy(update={"better_p": min(1.0, p * len(rivals))}), one.values)
        compared.append(one)
    chosen, verdict = _choice(own, [one for one in compared if one.row.better_p is not None], goal is not None)
    return Calibration(
        study=study.name,
        space=space_digest(study),
        metric=metric,
        architectures=tuple(row.spec.digest for row in own_run.study.rows),
        reference=reference.study.budget.full if reference is not None else None,
        rows=tuple(one.row for one in compared),
        protocol=chosen.row.protocol,
        rung=chosen.row.rung,
        verdict=verdict,
    )


def calibration_table(found: Calibration) -> pd.DataFrame:
    """A calibration as a table to print: one row per protocol and rung, the recommended one marked `→`.

    Columns: protocol; rung; TFLOPs (multiply-accumulates / 1e12) of a training up to the rung; between, within and seed, the SDs of
    the architectures' part, of what pairing leaves and of what a seed does to all; ICC with its 95 % interval; seeds, needed to
    tell two architectures apart; price, these seeds in TFLOPs; tau of halves, Kendall's τ between halves of the seeds; tau of
    reference; p better, that the price is below the study's own, corrected for the number of claims; failed, trainings without a
    score. Columns without any value are left out.
    """
    rows = []
    for row in found.rows:
        f = row.figures
        needed = f.seeds_needed if f and f.seeds_needed else "∞"
        told = (
            {
                "between": f"{f.between_sd:.2g}",
                "within": f"{f.within_sd:.2g}",
                "seed": f"{f.seed_sd:.2g}",
                "ICC": f"{f.icc:.2f} [{f.icc_low:.2f}, {f.icc_high:.2f}]",
                "seeds": str(needed),
                "price": _figure(f.price and f.price / 1e12, ".3g"),
                "tau of halves": _figure(f.half_tau, ".2f"),
                "tau of reference": _figure(f.reference_tau, ".2f"),
            }
            if f
            else {}
        )
        rows.append(
            {
                "": "→" if (row.protocol, row.rung) == (found.protocol, found.rung) else "",
                "protocol": row.protocol,
                "rung": str(row.rung),
                "TFLOPs": f"{row.macs / 1e12:.3g}",
                **{name: told.get(name, "") for name in _TOLD},
                "p better": _figure(row.better_p, ".2g"),
                "failed": f"{row.failed} of {row.planned}" if row.failed else "",
            }
        )
    table = pd.DataFrame(rows)
    return table[[name for name in table if name == "" or (table[name] != "").any()]]


_TOLD = ("between", "within", "seed", "ICC", "seeds", "price", "tau of halves", "tau of reference")


def spread_of_replicates(data: RunData) -> str:
    """A sentence on how much of the spread of a search's final losses is a seed's; empty where its replicates do not tell.

    Args:
        data: The result of `analysis.load`, of a search with replicates.
    """
    require_loaded(data)
    replicates = data.study.replicates
    if replicates < 2:
        return ""
    by_variant: dict[int, dict[int, TrialResult]] = {}
    for trial in data.run.trials.values():
        by_variant.setdefault(trial.variant, {})[trial.seed] = trial
    values = [[final_value(by_seed[seed], data.study.metric) for seed in sorted(by_seed)] for by_seed in by_variant.values()]
    complete = [row for row in values if len(row) == replicates and None not in row]
    if len(complete) < 2:
        return ""
    found = reliability(np.array(complete, dtype=float))
    if math.isnan(found.icc):
        return ""
    what = "candidates" if data.study.nuisance else "architectures"
    pruned = "" if len(complete) == len(values) else ", which the rungs chose, so that they differ less than all"
    return (
        f"at one seed, {max(0.0, found.icc):.0%} [{max(0.0, found.low):.0%}, {max(0.0, found.high):.0%}] of the variance of final "
        f"{data.study.metric} is the {what}' and the rest a seed's (SD {found.between_sd:.2g} between {len(complete)} complete "
        f"{what}{pruned}; {found.within_sd:.2g} over {replicates} seeds)"
    )


def _rungs(protocol: TrainingProtocol, run: Run, metric: str, goal: Floats | None) -> list[_Scored]:
    """The rungs of a protocol at which the metric was measured."""
    made = run.study
    assert made.ablation is not None, "protocols are trained by ablations"
    trials = {(trial.digest, trial.seed): trial for trial in run.trials.values()}
    first = made.training.seed
    seeds, digests = range(first, first + made.ablation.seeds.min), [row.spec.digest for row in made.rows]
    found = []
    for rung in range(made.budget.rungs):
        scores = np.array([[_score(trials.get((digest, seed)), rung, metric) for seed in seeds] for digest in digests])
        known = np.isfinite(scores)
        last = rung == made.budget.rungs - 1
        if not known.any() and not last:
            continue
        macs = [trial.reports[rung].macs for trial in trials.values() if len(trial.reports) > rung]
        row = CalibratedRung(
            protocol=protocol.name,
            changes=protocol.changes,
            digest=protocol_digest(made, rung + 1),
            rung=rung + 1,
            last=last,
            macs=float(np.mean(macs)) if macs else float(made.budget.milestones[rung]),
            planned=scores.size,
            failed=int(scores.size - known.sum()),
        )
        whole = scores[:, known.all(axis=0)]
        figures = _figures(whole, row.macs, goal) if min(whole.shape) > 1 else None
        found.append(_Scored(row.model_copy(update={"figures": figures}), whole if figures else None))
    return found


def _figures(values: Floats, macs: float, goal: Floats | None) -> RungFigures | None:
    """What complete scores tell; None where all are equal."""
    found = reliability(values)
    if math.isnan(found.icc):
        return None
    difference = found.between_sd if goal is None else max(0.0, agreeing_sd(values, goal))
    needed = seeds_needed(found.within_sd, difference)
    tau = math.nan if goal is None else float(kendalltau(values.mean(axis=1), goal).statistic)
    half = split_half_tau(values)
    return RungFigures(
        architectures=found.architectures,
        seeds=found.seeds,
        between_sd=found.between_sd,
        seed_sd=found.seed_sd,
        within_sd=found.within_sd,
        icc=found.icc,
        icc_low=found.low,
        icc_high=found.high,
        difference=difference,
        seeds_needed=int(needed) if math.isfinite(needed) else None,
        price=needed * macs if math.isfinite(needed) else None,
        half_tau=None if math.isnan(half) else half,
        reference_tau=None if math.isnan(tau) else tau,
    )


def _score(trial: TrialResult | None, rung: int, metric: str) -> float:
    """The metric of a trial at a rung (from 0); NaN where it was not measured."""
    value = trial.reports[rung].value(metric) if trial is not None and len(trial.reports) > rung else None
    return math.nan if value is None else value


def _reference_values(own: Run, reference: Run, metric: str) -> Floats:
    """The reference's metric of every architecture, the mean over its seeds; raises RunError where one is missing."""
    by_digest: dict[str, list[float]] = {row.spec.digest: [] for row in own.study.rows}
    for trial in reference.trials.values():
        value = final_value(trial, metric)
        if value is not None and trial.digest in by_digest:
            by_digest[trial.digest].append(value)
    lacking = [digest for digest, values in by_digest.items() if not values]
    if lacking:
        raise RunError(
            f"the reference has no {metric} of architecture {lacking[0]}, which failed; leave --reference out, or mend that"
        )
    return np.array([np.mean(values) for values in by_digest.values()])


def _comparable(one: _Scored, own: _Scored, with_reference: bool) -> bool:
    if one.values is None or one.row.failed:
        return False
    return with_reference or (one.row.last and abs(one.row.macs / own.row.macs - 1) <= 0.1)


def _choice(own: _Scored, rivals: Sequence[_Scored], with_reference: bool) -> tuple[_Scored, str]:
    """What to take, and why, in a sentence."""
    better = [one for one in rivals if one.row.better_p is not None and one.row.better_p <= ALPHA and _cost(one) < _cost(own)]
    what = f"telling two architectures apart by one SD {'that the reference shares' if with_reference else 'between them'} takes"
    if better:
        best = min(better, key=_cost)
        return best, (
            f"{_called(best)} is recommended: {what} {_priced(best)}, and {_priced(own)} by the study's own "
            f"(p = {best.row.better_p:.2g}, corrected for {len(rivals)} claims)"
        )
    start = "the study's own protocol is kept: "
    if own.row.failed:
        start += f"{own.row.failed} of its {own.row.planned} trainings failed, and "
    if not rivals:
        return own, f"{start}no other can be compared with it"
    best = min(rivals, key=_cost)
    if _cost(best) >= _cost(own):
        return own, f"{start}{what} {_priced(own)}, and no less by another"
    return own, (
        f"{start}{what} {_priced(own)}, and {_priced(best)} by {_called(best)}, but so few architectures and seeds do not show "
        f"that this is no luck (p = {best.row.better_p:.2g}, corrected for {len(rivals)} claims)"
    )


def _cost(one: _Scored) -> float:
    figures = one.row.figures
    return math.inf if figures is None or figures.price is None else figures.price


def _called(one: _Scored) -> str:
    return f"'{one.row.protocol}'" + ("" if one.row.last else f" up to rung {one.row.rung}")


def _priced(one: _Scored) -> str:
    figures = one.row.figures
    if figures is None or figures.price is None:
        return "more seeds than there are"
    return f"{figures.seeds_needed} seeds ({figures.price / 1e12:.3g} TFLOPs an architecture)"


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
