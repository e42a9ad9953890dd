"""Estimate of a search before it runs: trials, costs and hours; needs neither torch, Ray nor Optuna."""

from __future__ import annotations

from collections.abc import Iterator

from nas.reporting.text import amount, compute, duration, line, percent
from nas.runs.throughput import Throughput
from nas.study.budget import BudgetSettings
from nas.study.choices import DEFAULT_SAMPLERS, Mode
from nas.study.settings import FidSettings, SampleSettings
from nas.study.study import Study
from space.choices.table import covering
from space.costs.cost import cost
from space.domains.census import Census
from space.spec import ModelSpec

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
    census, search = study.census, study.search
    assert search is not None, "an ablation has an estimate of its own"
    facts = [("study", f"{study.name}: {study.question}" if study.question else study.name), ("trials", _trials(study))]
    given = f", after {len(search.enqueue)} given first (enqueue)" if search.enqueue else ""
    facts.append(("sampler", f"{search.sampler.kind}, seed {search.sampler.seed}{given}"))
    if study.nuisance:
        facts.append(("tuned", f"{', '.join(study.nuisance)}: nuisance settings, no part of the architecture"))
    facts.append(("feasible", _feasible(census)))
    facts += [("", text) for text in never_feasible(census)]
    facts += [(metric, f"{low:.4g} to {high:.4g} {UNITS[metric]}") for metric, (low, high) in census.costs.items()]
    unit = study.budget.unit
    trained = "of training" if unit == "compute" else unit
    facts.append(("rungs", f"{marks(study.budget)} {trained} a trial; {_judged(study.budget)}"))
    if unit != "compute":
        facts.append(("a trial", _one_trial(study)))
    facts.append(("training", _compute(study)))
    if study.finish:
        best, more = study.finish.best, study.finish.full - study.budget.full
        facts.append(("finish", f"{best} best, each {amount(unit, more)} more (contained above)"))
    winners = study.finish.best if study.finish else 1
    dearest = census.dearest or study.base
    sampling = winners * sum(
        drawing_macs(study, settings, dearest) for settings in (study.evaluation.samples, study.evaluation.fid)
    )
    facts.append(("sampling", sampling_line(study, sampling, f"{winners} exported" + (", scored" if study.evaluation.fid else ""))))
    scoring = 0.0
    if study.scores_trials and (fid := study.evaluation.fid) is not None:
        each = drawing_macs(study, fid, dearest)
        most, scoring = study.most_trials * study.budget.rungs * each, expected_reports(study) * each
        of = f"of {fid.samples * len(fid.seeds):,} samples each, of the dearest architecture"
        facts.append(("scoring", f"at most {compute(most)}, about {compute(scoring)} (every report, {of}), not contained above"))
    facts.append(("hours", _hours(study, throughput, sampling, scoring)))
    sizes = " to ".join(map(str, sorted(set(study.batch_sizes))))
    facts.append(("units", f"FLOPs are multiply-accumulates; a training step is of {sizes} samples"))
    return "\n".join(line(label, text) for label, text in facts)


def marks(budget: BudgetSettings) -> str:
    """The rungs in the budget's unit: `100 MFLOPs, 200 MFLOPs`, or `1,000, 2,000`."""
    return ", ".join(compute(mark) if budget.unit == "compute" else f"{mark:,}" for mark in budget.milestones)


def expected_search_macs(study: Study) -> float:
    """The expected training multiply-accumulates of all trials up to the last rung.

    Where trials are equal in steps or images, each is taken to cost as much as the mean of the feasible architectures.
    """
    total = sum(trials * increment for trials, increment in _expected_trials(study))
    return total * study.macs_of_one(study.census.mean_step_macs)


def expected_reports(study: Study) -> float:
    """The expected number of reports of all trials up to the last rung."""
    return sum(trials for trials, _ in _expected_trials(study))


def _expected_trials(study: Study) -> Iterator[tuple[float, int]]:
    """By bracket and rung: the expected number of trials that come to it, and the training of each to it from the one before."""
    budget = study.budget
    for bracket in range(budget.brackets):
        trials = float(study.replicates * budget.in_bracket(study.most_trials // study.replicates, bracket))
        for rung, increment in enumerate(budget.increments):
            yield trials, increment
            trials *= budget.share_promoted(rung, bracket)


def _finish_amount(study: Study) -> int:
    """The training that the finish adds to all of its trials, in the budget's unit."""
    return study.finish.best * (study.finish.full - study.budget.full) if study.finish else 0


def _trials(study: Study) -> str:
    trials, replicates, seed = study.most_trials, study.replicates, study.training.seed
    if replicates == 1:
        return f"{trials}, seed {seed}"
    return f"{trials}: {trials // replicates} architectures × {replicates} seeds, the first of them {seed}"


def _feasible(census: Census) -> str:
    text = f"{percent(census.share)} of the space ({census.feasible:,} of {census.draws:,} random points)"
    if census.feasible < 10:
        text += "; so few say little of the range of costs"
    return text


def never_feasible(census: Census) -> list[str]:
    """A sentence per parameter with values that no feasible architecture of the census has."""
    return [
        f"{name} {', '.join(map(str, values))}: no feasible architecture found in {census.draws:,} draws"
        for name, values in census.never_feasible.items()
    ]


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
    budget, finish = study.budget, _finish_amount(study)
    dearest, mean = (study.macs_of_one(macs) for macs in (_dearest_step(study), study.census.mean_step_macs))
    most = compute((budget.full * study.most_trials + finish) * dearest)
    likely = compute(expected_search_macs(study) + finish * mean)
    if budget.rungs == 1 or budget.mode == "none":
        about = "" if budget.unit == "compute" else f"; about {likely} at the mean cost of feasible architectures"
        return f"at most {most}, as every trial trains to the last rung{about}"
    rungs = "every rung" if budget.grace_rungs == 0 and budget.brackets == 1 else "every judged rung"
    return f"at most {most}; about {likely} when 1 in {budget.kept_one_in} goes on from {rungs}"


def _dearest_step(study: Study) -> int:
    """Multiply-accumulates of a training step of the dearest architecture that is known."""
    return max(cost(spec).step_macs(study.batch_sizes[-1]) for spec in study.architectures)


def _one_trial(study: Study) -> str:
    """The compute of a full trial, which differs between architectures where all train for as many steps or images."""
    costs = sorted(study.milestones_of(spec, size)[-1] for spec in study.architectures for size in study.batch_sizes)
    mean = study.budget.full * study.macs_of_one(study.census.mean_step_macs)
    return (
        f"{compute(costs[0])} (cheapest) to {compute(costs[-1])} (dearest) to the last rung, {compute(mean)} in the mean: "
        "the same samples for every architecture, not the same compute"
    )


def drawing_macs(study: Study, settings: SampleSettings | FidSettings | None, spec: ModelSpec) -> int:
    """The multiply-accumulates of drawing a grid, or all samples of an evaluation, from a model; 0 where there are no settings."""
    if settings is None:
        return 0
    if isinstance(settings, FidSettings):
        images = settings.samples * len(settings.seeds)
    else:
        images = settings.per_class * len(settings.classes(spec.num_classes))
    sampler = settings.sampler or DEFAULT_SAMPLERS[study.training.prediction.kind]
    # heun evaluates the model twice a step, and guidance evaluates it with and without the label.
    forwards = settings.steps * (2 if sampler == "heun" else 1) * (2 if settings.guidance != 1 and spec.null_class else 1)
    return round(images * forwards * cost(spec).gflops * 1e9)


def sampling_line(study: Study, macs: float, of: str) -> str:
    """A sentence on the compute of sampling."""
    grid = study.evaluation.samples
    if grid is None and study.evaluation.fid is None:
        return "none: evaluation.samples is null"
    classes = study.base.num_classes
    shown = "no grid" if grid is None else f"a grid of {grid.per_class * len(grid.classes(classes))} images"
    return f"at most {compute(macs)} ({of}; {shown}), not contained above"


def _hours(study: Study, throughput: Throughput | None, sampling: float, scoring: float) -> str:
    in_trials = expected_search_macs(study) + scoring
    drawn = sampling / throughput.macs_per_s if throughput else 0.0
    if throughput is None or not study.finish:
        return hours(in_trials, study.most_trials, throughput, drawn)
    # At most `concurrency` trials of the finish train at once, each at the throughput of a search trial.
    rounds = -(-study.finish.best // throughput.concurrency)
    more = (study.finish.full - study.budget.full) * study.macs_of_one(study.census.mean_step_macs)
    finish = rounds * more / throughput.macs_per_s
    return hours(in_trials, study.most_trials, throughput, finish + drawn)


def hours(macs: float, trials: int, throughput: Throughput | None, more_s: float = 0.0) -> str:
    """A sentence on the duration of training.

    Args:
        macs: Multiply-accumulates of all trials together.
        trials: The number of trials.
        throughput: Throughput per trial and number of trials at once; None gives the sentence for an unknown duration.
        more_s: Seconds to add.
    """
    if throughput is None:
        return "unknown until a step is timed here, or a trial's speed is given, such as --rate '40 TFLOP/s'"
    seconds = macs / (throughput.macs_per_s * min(throughput.concurrency, trials)) + more_s
    return (
        f"about {duration(seconds)} of training and sampling at {compute(throughput.macs_per_s, 3)} a second and trial, "
        f"{throughput.concurrency} at once ({throughput.source}); validation and checkpoints come on top"
    )
