"""The bill: what a study would train and cost; needs neither torch, Ray nor Optuna."""

from __future__ import annotations

import math
import textwrap

from nas.execution.smoke import Throughput
from nas.study.settings import BudgetSettings
from nas.study.study import Study
from space.domains.census import Census

RARE = 0.01
"""Feasible share below which proposals come from the feasible part itself, as in nas/search/searcher.py, which needs Optuna."""

COLUMNS, LABEL = 100, 13
"""Width of the bill, and of the labels to its left."""

UNITS = {
    "gflops": "(inference, folded form, one image)",
    "train_gflops": "(one training sample, forward and backward)",
    "params_m": "million parameters (folded form)",
}
"""What the costs in a bill are."""


def bill(study: Study, rate: Throughput | None = None) -> str:
    """What a study would train and cost, a line a fact, at most 100 columns wide.

    With a `rate` it says how long that would take. Raises StudyError when the study cannot be run: nothing is feasible, or the
    first rung is under one step.
    """
    study.check_runs()
    census, search, training = study.census, study.search, study.training
    assert search is not None, "an ablation has a bill of its own"
    facts = [("study", f"{study.name}: {study.question}" if study.question else study.name), ("trials", _trials(study))]
    given = f", after {len(search.enqueue)} given first (enqueue)" if search.enqueue else ""
    facts.append(("sampler", f"{search.sampler.kind}, seed {search.sampler.seed}{given}"))
    facts.append(("feasible", _feasible(census)))
    facts += [(metric, f"{low:.4g} to {high:.4g} {UNITS[metric]}") for metric, (low, high) in census.costs.items()]
    milestones = ", ".join(f"{macs / 1e12:.4g}" for macs in study.budget.milestones)
    facts.append(("rungs", f"{milestones} training TFLOPs a trial; {_judged(study.budget)}"))
    facts.append(("training", _compute(study)))
    if study.finish:
        best, more = study.finish.best, study.finish.budget - study.budget.full
        facts.append(("finish", f"{best} best, each {more / 1e12:.4g} TFLOPs more (contained above)"))
    facts.append(("hours", _hours(study, rate)))
    facts.append(("units", f"FLOPs are multiply-accumulates; a training step is of {training.batch_size} samples"))
    return "\n".join(line(label, text) for label, text in facts)


def share_that_goes_on(budget: BudgetSettings, rung: int, bracket: int = 0) -> float:
    """The share of a bracket's trials that goes on from a rung, in expectation: 1 where nothing is judged, 0 from the last."""
    if rung >= budget.rungs - 1:
        return 0.0
    judged = budget.mode != "none" and rung >= budget.grace_rungs + bracket
    return 1 / budget.reduction_factor if judged else 1.0


def rung_macs(budget: BudgetSettings) -> tuple[int, ...]:
    """The multiply-accumulates from one rung to the next, the first from nothing."""
    milestones = budget.milestones
    return tuple(macs - before for before, macs in zip((0, *milestones), milestones, strict=False))


def in_bracket(study: Study, bracket: int) -> int:
    """How many trials a bracket has: architectures, with all their replicates, are dealt out in turn."""
    architectures, brackets = study.most_trials // study.replicates, study.budget.brackets
    return study.replicates * ((architectures - bracket + brackets - 1) // brackets)


def expected_search_macs(study: Study) -> float:
    """What all trials up to the last rung would take in expectation."""
    total = 0.0
    for bracket in range(study.budget.brackets):
        trials = float(in_bracket(study, bracket))
        for rung, macs in enumerate(rung_macs(study.budget)):
            total += trials * macs
            trials *= share_that_goes_on(study.budget, rung, bracket)
    return total


def finish_macs(study: Study) -> int:
    """What the finish adds."""
    return study.finish.best * (study.finish.budget - study.budget.full) if study.finish else 0


def duration(seconds: float) -> str:
    """A length of time as people say it: `40 s`, `12 min`, `3.4 h`, `2.5 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _trials(study: Study) -> str:
    trials, replicates, seed = study.most_trials, study.replicates, study.training.seed
    if replicates == 1:
        return f"{trials}, seed {seed}"
    return f"{trials}: {trials // replicates} architectures × {replicates} seeds, the first of them {seed}"


def _feasible(census: Census) -> str:
    text = f"{percent(census.share)} of the space ({census.feasible:,} of {census.draws:,} random points)"
    if census.share < RARE:
        text += f"; below {RARE:.0%}, so proposals come from the feasible part itself"
    if census.feasible < 10:
        text += "; so few say little of the range of costs"
    return text


def percent(share: float) -> str:
    """A share with one digit after the point, or as many as its first two digits need: `34.1%`, `0.0013%`."""
    digits = 1 if share >= 0.01 or share <= 0 else 1 - math.floor(math.log10(100 * share))
    return f"{share:.{digits}%}"


def _judged(budget: BudgetSettings) -> str:
    """How trials are judged at rungs, in words."""
    if budget.rungs == 1:
        return "nothing is judged before the end"
    if budget.mode == "none":
        return "mode none: all go on to the last"
    how = {"stop": "judged on arrival", "promote": "they wait, and the best go on"}[budget.mode]
    first = [budget.grace_rungs + bracket + 1 for bracket in range(budget.brackets)]
    if budget.brackets > 1:
        where = f", in {budget.brackets} brackets, first at rungs {', '.join(map(str, first))}"
    else:
        where = f", first at rung {first[0]} (grace {budget.grace_rungs})" if budget.grace_rungs else ""
    return f"mode {budget.mode}: {how}{where}"


def _compute(study: Study) -> str:
    budget, finish = study.budget, finish_macs(study)
    most = (budget.full * study.most_trials + finish) / 1e15
    if budget.rungs == 1 or budget.mode == "none":
        return f"at most {most:.4g} PFLOPs, as every trial trains to the last rung"
    likely = (expected_search_macs(study) + finish) / 1e15
    rungs = "every rung" if budget.grace_rungs == 0 and budget.brackets == 1 else "every judged rung"
    return f"at most {most:.4g} PFLOPs; about {likely:.4g} when 1 in {budget.reduction_factor} goes on from {rungs}"


def _hours(study: Study, rate: Throughput | None) -> str:
    if rate is None or not study.finish:
        return hours(expected_search_macs(study), study.most_trials, rate)
    # One after the other where there are more than run at once; a trial of the finish is taken to be no faster.
    turns = -(-study.finish.best // rate.concurrency)
    finish = turns * (study.finish.budget - study.budget.full) / rate.macs_per_s
    return hours(expected_search_macs(study), study.most_trials, rate, finish)


def hours(macs: float, trials: int, rate: Throughput | None, more_s: float = 0.0) -> str:
    """How long so many trials with so many multiply-accumulates in all take at a rate, and some seconds more."""
    if rate is None:
        return "unknown until a step is timed here: it takes a trial's multiply-accumulates a second, and how many run at once"
    seconds = macs / (rate.macs_per_s * min(rate.concurrency, trials)) + more_s
    return (
        f"about {duration(seconds)} of training at {rate.macs_per_s / 1e9:.3g} GFLOPs a second and trial, "
        f"{rate.concurrency} at once ({rate.source}); validation, checkpoints and samples come on top"
    )


def line(label: str, text: str) -> str:
    """A fact of the bill under its label, wrapped."""
    # A long word, such as a path in the question, is left whole.
    return textwrap.fill(
        text,
        COLUMNS,
        initial_indent=f"{label:{LABEL}s}",
        subsequent_indent=" " * LABEL,
        break_long_words=False,
        break_on_hyphens=False,
    )
