"""Estimate of an ablation before it runs: trials, costs, and statistical power; needs neither torch, Ray nor Optuna."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from nas.reporting.estimate import UNITS, drawing_macs, hours, marks, sampling_line
from nas.reporting.power import pooled_sd
from nas.reporting.text import compute, line
from nas.runs.run import Run
from nas.runs.throughput import Throughput
from nas.stats.paired import attainable_p, exaggeration, minimum_detectable_effect, pairs_needed
from nas.stats.pairing import spared_variance
from nas.stats.sequential import looks
from nas.stats.sequential_variances import expected_seeds
from nas.stats.verdicts import RULE, RULES, SEQUENTIAL
from nas.study.rows import Row, comparisons, families, names_of
from nas.study.settings import FidSettings
from nas.study.study import Study
from space.costs.cost import cost

ALPHA = 0.05


def ablation_estimate(study: Study, root: Path, throughput: Throughput | None = None) -> str:
    """Estimate an ablation.

    Args:
        study: The ablation.
        root: The run root. Its earlier runs give the SD of paired differences, from which the visible difference follows.
        throughput: The measured throughput; None leaves the hours unknown.

    Returns:
        Lines of at most 100 columns, one fact per line.

    Raises:
        StudyError: If the first rung is under one step.
    """
    study.check_runs()
    assert study.ablation is not None
    return "\n".join(line(label, text) for label, text in _facts(study, root, throughput))


def planned_macs(study: Study, seeds: int) -> int:
    """Training multiply-accumulates of all architectures of an ablation, each with `seeds` seeds."""
    return seeds * sum(_macs(study).values())


def _macs(study: Study) -> dict[str, int]:
    """Training multiply-accumulates of one seed of each architecture, by digest."""
    specs = {row.spec.digest: row.spec for row in study.rows}
    return {digest: study.milestones_of(spec)[-1] for digest, spec in specs.items()}


def what_is_new(study: Study, run: Run) -> str:
    """The planned trainings that have not begun in a run, by row and seed; of sequential seeds, the first `min`."""
    assert study.ablation is not None
    names, first = names_of(study.rows), study.training.seed
    begun = {(trial.digest, trial.seed) for trial in run.trials.values()}
    planned = range(first, first + study.ablation.seeds.min)
    missing = {digest: [seed for seed in planned if (digest, seed) not in begun] for digest in names}
    rows_by_seeds: dict[tuple[int, ...], list[str]] = {}
    for digest, seeds in missing.items():
        if seeds:
            rows_by_seeds.setdefault(tuple(seeds), []).append(names[digest])
    if not rows_by_seeds:
        return "nothing: every planned training has begun"
    parts = [f"{_counted(seeds)} of {_rows(rows, len(names))}" for seeds, rows in rows_by_seeds.items()]
    return f"{sum(map(len, missing.values()))} of {len(names) * len(planned)} trainings: {'; '.join(parts)}"


def _counted(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    whole = seeds[-1] - seeds[0] == len(seeds) - 1
    return f"seeds {seeds[0]} to {seeds[-1]}" if whole else f"seeds {', '.join(map(str, seeds))}"


def _rows(names: Sequence[str], all_rows: int) -> str:
    return "every row" if len(names) == all_rows else ", ".join(f"'{name}'" for name in names)


def _facts(study: Study, root: Path, throughput: Throughput | None) -> Iterator[tuple[str, str]]:
    assert study.ablation is not None
    seeds, budget = study.ablation.seeds, study.budget
    yield "study", f"{study.name}: {study.question}" if study.question else study.name
    count = len({row.spec.digest for row in study.rows})
    often = f"{seeds.min} to {seeds.max}" if seeds.sequential else str(seeds.min)
    trials = f"{count * seeds.min} to {count * seeds.max}" if seeds.sequential else str(count * seeds.min)
    yield "trials", f"{trials}: {count} architectures × {often} seeds, the first of them {study.training.seed}"
    if seeds.sequential and seeds.margin is None:
        expected = _expected_seeds(study)
        macs = sum(expected[digest] * macs for digest, macs in _macs(study).items())
        yield "expected", f"about {sum(expected.values()):.0f} trials ({compute(round(macs))}) where no row differs, by simulation"
    yield from _blocks(study)
    for name, unit in UNITS.items():
        costs = [float(getattr(cost(row.spec), name)) for row in study.rows]
        yield name, f"{min(costs):.4g} to {max(costs):.4g} {unit}"
    yield from _mismatches(study.rows)
    yield from _equals(study.rows)
    of = "of training" if budget.unit == "compute" else budget.unit
    same = "" if budget.unit == "compute" else ": the same samples for every row, not the same compute"
    yield "budget", f"{marks(budget)} {of} a trial{same}"
    least, most = (compute(planned_macs(study, n)) for n in (seeds.min, seeds.max))
    yield "training", f"{least} to {most}" if seeds.sequential else least
    if study.evaluation.fid:
        yield "evaluation", _evaluation(study.evaluation.fid)
        if biased := study.evaluation.fid.biased_order(study.ablation.metric):
            yield "biased", biased
    scoring, grid = _sampling_macs(study)
    yield "sampling", sampling_line(study, scoring + grid, "every trial scored" if scoring else "the winner")
    drawn = grid / throughput.macs_per_s if throughput else 0.0
    yield "hours", hours(planned_macs(study, seeds.max) + scoring, count * seeds.max, throughput, drawn)
    yield from claims(study, root)
    yield "units", f"FLOPs are multiply-accumulates; a training step is of {study.training.batch_size} samples"


def _expected_seeds(study: Study) -> dict[str, float]:
    """The mean number of seeds of each architecture, by digest, where no row differs."""
    assert study.ablation is not None
    digests = list(_macs(study))
    corrected = {family: len(pairs) for family, pairs in families(study.rows).items()}
    pairs = [pair for pair in comparisons(study.rows) if pair.row.spec.digest != pair.reference.spec.digest]
    places = [(digests.index(pair.row.spec.digest), digests.index(pair.reference.spec.digest)) for pair in pairs]
    alphas = [ALPHA / corrected[pair.holm_family] for pair in pairs]
    planned = looks(study.ablation.seeds.min, study.ablation.seeds.max)
    return dict(zip(digests, map(float, expected_seeds(len(digests), places, alphas, planned)), strict=True))


def _sampling_macs(study: Study) -> tuple[int, int]:
    """Multiply-accumulates of scoring all trials with all seeds, and of the grid of the dearest row."""
    assert study.ablation is not None
    specs = {row.spec.digest: row.spec for row in study.rows}.values()
    fid = study.evaluation.fid
    times = study.ablation.seeds.max * (study.budget.rungs if fid and fid.at == "every" else 1)
    scoring = times * sum(drawing_macs(study, fid, spec) for spec in specs)
    return scoring, max(drawing_macs(study, study.evaluation.samples, spec) for spec in specs)


def _blocks(study: Study) -> Iterator[tuple[str, str]]:
    assert study.ablation is not None
    for block in study.ablation.blocks:
        names = list(dict.fromkeys(row.variant for row in study.rows if row.block == block.name))
        controls = ", ".join(study.ablation.controls)
        printed = f"; beside {block.published}" if block.published else ""
        yield block.name or "rows", f"{block.design}, {controls}: {'; '.join(names)} (baseline {block.baseline}){printed}"


def _mismatches(rows: tuple[Row, ...]) -> Iterator[tuple[str, str]]:
    """Rows under a control whose cost could not be matched to the baseline's."""
    missed = [row for row in rows if row.match and not row.match.within]
    if missed:
        text = "; ".join(f"{row.variant}: {row.match.error:+.1%} of {row.match.metric}" for row in missed if row.match)
        yield "not matched", f"{text}; their cost is not the baseline's, so read their rows with that"


def _equals(rows: tuple[Row, ...]) -> Iterator[tuple[str, str]]:
    """Rows with the same architecture as their reference: they cannot differ, yet count in the correction."""
    same = [pair for family in families(rows).values() for pair in family if pair.row.spec.digest == pair.reference.spec.digest]
    if same:
        text = "; ".join(f"{pair.row.variant} is {pair.reference.variant} ({pair.row.control})" for pair in same)
        yield "equal rows", f"{text}; they cannot differ, but count in the correction"


def _evaluation(fid: FidSettings) -> str:
    often = "every rung" if fid.at == "every" else "the last rung"
    return f"{len(fid.seeds)} × {fid.samples:,} samples of {fid.steps} steps at {often} of every trial"


def claims(study: Study, root: Path) -> Iterator[tuple[str, str]]:
    """The attainable p-value, the smallest visible difference of the planned seeds, and what pairing them brings."""
    assert study.ablation is not None
    seeds = study.ablation.seeds
    most = max(len(family) for family in families(study.rows).values())
    if seeds.max < 2:
        yield "claims", "one seed a row: no test and no interval; differences of one seed are not evidence"
        return
    p, needed = attainable_p(seeds.max, most), pairs_needed(most, ALPHA)
    many = f"{most} comparisons" if most > 1 else "one comparison"
    by = RULES[RULE] if most > 1 else RULES["t"]
    rule = f"{many} in a table, decided by {by}{' with Holm' if most > 1 else ''}"
    exact = f"; the exact sign-flip test, beside it, reaches p = {p:.2g} at best with {seeds.max} seeds"
    if p > ALPHA:
        exact += f" ({needed} seeds would get below {ALPHA})"
    if seeds.sequential:
        rule = (
            f"{many} in a table, looked at after each of {seeds.min} to {seeds.max} seeds by "
            f"{SEQUENTIAL[RULE if most > 1 else 't']}, valid under peeking if the differences are normal"
        )
        exact = "; there is no exact one"
    yield "claims", rule + exact
    spread = pooled_sd(root, study)
    share = minimum_detectable_effect(1.0, seeds.max, ALPHA / most)
    if spread is None:
        seen = f"{share:.2g} standard deviations of the paired differences; no earlier run under {root} says how much that is"
    else:
        known = f"paired differences scatter by {spread.sd:.2g} in run {spread.run} ({spread.pairs} pairs)"
        seen = f"{share * spread.sd:.2g} in {study.ablation.metric}, as {known}"
    least = "at the best, as looks cost some, " if seeds.sequential else ""
    yield "visible", f"{least}with a chance of 80 % (paired t, Bonferroni), a difference of {seen}"
    too_large = (exaggeration(share / times, seeds.max**-0.5, seeds.max - 1, ALPHA / most) - 1 for times in (1, 2))
    of_visible, of_half = (f"{100 * factor:.0f} %" for factor in too_large)
    yield (
        "too large",
        (
            f"claimed estimates are, on average (type M error of the paired t): by {of_visible} where the true difference has that "
            f"size, by {of_half} where it has half of it"
        ),
    )
    if spread is not None and spread.seeds is not None:
        rows = max(sum(pair.reference.is_baseline for pair in family) for family in families(study.rows).values())
        yield "pairing", f"{spread.seeds} in run {spread.run}{_baseline_seeds(spread.seeds.icc, rows)}"


def _baseline_seeds(icc: float, rows: int) -> str:
    """What more seeds of the baseline than of the other rows would bring at equal cost, where that is something."""
    spared = spared_variance(max(icc, 0.0), rows)
    if spared < 0.05:
        return ""
    return (
        f"; {math.sqrt(rows):.1f} times as many seeds for the baseline, unpaired, would remove {100 * spared:.0f} % at equal cost"
    )
