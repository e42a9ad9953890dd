"""Estimate of a search before it runs: trials, costs and hours; needs neither torch, Ray nor Optuna."""

from __future__ import annotations

from nas.reporting.text import duration, line, percent
from nas.runs.throughput import Throughput
from nas.study.choices import Mode
from nas.study.settings import BudgetSettings
from nas.study.study import Study
from space.choices.table import covering
from space.domains.census import RARE, Census

UNITS = {
    "gflops": "(inference, folded form, one image)",
    "train_gflops": "(one training sample, forward and backward)",
    "params_m": "million parameters (folded form)",
}
"""The units of the costs in an estimate."""


def estimate(study: Study, throughput: Throughput | None = None) -> str:
    """Estimate a search.

    Args:
        study: The search.
        throughput: The measured throughput; None leaves the hours unknown.

    Returns:
        Lines of at most 100 columns, one fact per line.

    Raises:
        StudyError: If no architecture is feasible, or the first rung is under one step.
    """
    study.check_runs()
    census, search, training = study.census, study.search, study.training
    assert search is not None, "an ablation has an estimate of its own"
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
    facts.append(("hours", _hours(study, throughput)))
    facts.append(("units", f"FLOPs are multiply-accumulates; a training step is of {training.batch_size} samples"))
    return "\n".join(line(label, text) for label, text in facts)


def expected_search_macs(study: Study) -> float:
    """The expected training multiply-accumulates of all trials up to the last rung."""
    total, budget = 0.0, study.budget
    for bracket in range(budget.brackets):
        trials = float(study.replicates * budget.in_bracket(study.most_trials // study.replicates, bracket))
        for rung, macs in enumerate(budget.increments):
            total += trials * macs
            trials *= budget.share_promoted(rung, bracket)
    return total


def finish_macs(study: Study) -> int:
    """The training multiply-accumulates that the finish adds."""
    return study.finish.best * (study.finish.budget - study.budget.full) if study.finish else 0


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


_HOW = covering(
    Mode,
    {"stop": "judged on arrival", "promote": "they wait, and the best go on", "none": "all go on to the last"},
)
"""By `budget.mode`: how trials are judged, in words."""


def _judged(budget: BudgetSettings) -> str:
    """A description of the judgement at rungs."""
    if budget.rungs == 1:
        return "nothing is judged before the end"
    if budget.mode == "none":
        return f"mode none: {_HOW[budget.mode]}"
    first = [budget.first_judged(bracket) + 1 for bracket in range(budget.brackets)]
    if budget.brackets > 1:
        where = f", in {budget.brackets} brackets, first at rungs {', '.join(map(str, first))}"
    else:
        where = f", first at rung {first[0]} (grace {budget.grace_rungs})" if budget.grace_rungs else ""
    return f"mode {budget.mode}: {_HOW[budget.mode]}{where}"


def _compute(study: Study) -> str:
    budget, finish = study.budget, finish_macs(study)
    most = (budget.full * study.most_trials + finish) / 1e15
    if budget.rungs == 1 or budget.mode == "none":
        return f"at most {most:.4g} PFLOPs, as every trial trains to the last rung"
    likely = (expected_search_macs(study) + finish) / 1e15
    rungs = "every rung" if budget.grace_rungs == 0 and budget.brackets == 1 else "every judged rung"
    return f"at most {most:.4g} PFLOPs; about {likely:.4g} when 1 in {budget.kept_one_in} goes on from {rungs}"


def _hours(study: Study, throughput: Throughput | None) -> str:
    if throughput is None or not study.finish:
        return hours(expected_search_macs(study), study.most_trials, throughput)
    # At most `concurrency` trials of the finish train at once, each at the throughput of a search trial.
    rounds = -(-study.finish.best // throughput.concurrency)
    finish = rounds * (study.finish.budget - study.budget.full) / throughput.macs_per_s
    return hours(expected_search_macs(study), study.most_trials, throughput, finish)


def hours(macs: float, trials: int, throughput: Throughput | None, more_s: float = 0.0) -> str:
    """A sentence on the duration of training.

    Args:
        macs: Multiply-accumulates of all trials together.
        trials: The number of trials.
        throughput: Throughput per trial and number of trials at once; None gives the sentence for an unknown duration.
        more_s: Seconds to add.
    """
    if throughput is None:
        return "unknown until a step is timed here: it takes a trial's multiply-accumulates a second, and how many run at once"
    seconds = macs / (throughput.macs_per_s * min(throughput.concurrency, trials)) + more_s
    return (
        f"about {duration(seconds)} of training at {throughput.macs_per_s / 1e9:.3g} GFLOPs a second and trial, "
        f"{throughput.concurrency} at once ({throughput.source}); validation, checkpoints and samples come on top"
    )
