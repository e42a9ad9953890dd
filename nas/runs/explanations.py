"""The explanation of a winner: which of its differences from the baseline carry its gain, from the runs that took them back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas.runs.confirmations import row_of
from nas.runs.layout import EXPLANATION, LEDGER, SIMPLIFICATION
from nas.runs.remote import RunLocation, locate
from nas.runs.run import Run, read_run, values_by_seed
from nas.runs.screening import marginals
from nas.runs.winners import leading, looked_at
from nas.stats.paired import paired_interval, paired_t_p
from nas.stats.verdicts import BETTER, LEVEL, NO_EVIDENCE, WORSE, judged
from nas.study.explanation import ADDED, SIMPLIFIED, TAKEN_BACK, WIDTH, Explained, at_gflops
from nas.study.metrics import METRICS, lower_is_better
from nas.study.rows import families
from space.costs.cost import cost
from space.costs.matching import TOLERANCE
from space.differences import diff
from space.errors import RunError
from space.spec import ModelSpec


@dataclass(frozen=True)
class Contrast:
    """A mean paired difference with its 95 % interval, its p-value (Holm over its table) and its verdict."""

    difference: float
    low: float
    high: float
    p: float
    pairs: int
    verdict: str


@dataclass(frozen=True)
class Effect:
    """One difference between the baseline and the winner."""

    path: str
    before: Any
    after: Any
    taken_back: Contrast | None
    """The winner without it, against the winner; None where no such architecture exists, or no seed has ended."""
    added: Contrast | None
    """The baseline with it, against the baseline."""

    @property
    def carries(self) -> bool:
        """Whether the winner is claimed to be worse without it."""
        return self.taken_back is not None and self.taken_back.verdict == WORSE


@dataclass(frozen=True)
class Explanation:
    """What separates a winner from the baseline, and what each part of it does at equal GFLOPs."""

    explained: Explained
    metric: str
    effects: tuple[Effect, ...]
    joint: Contrast | None
    """The winner against the baseline."""
    together: Contrast | None
    """The joint effect minus the sum of the single ones (added to the baseline): what appears only together. Paired t."""

    @property
    def passengers(self) -> tuple[str, ...]:
        """The paths without which the winner is not claimed to be worse."""
        return tuple(effect.path for effect in self.effects if not effect.carries)

    @property
    def simplified(self) -> ModelSpec | None:
        """The winner without its passengers; None where it has none, where nothing else is left, or where it cannot be built."""
        if not self.passengers or len(self.passengers) == len(self.effects):
            return None
        return self.explained.without(self.passengers)


def explained_by(run: Run) -> Explained:
    """The winner of a search, the baseline at its GFLOPs, and what separates them.

    Raises:
        RunError: No trial is complete, or the winner is the baseline.
    """
    best = leading(run, 1) or run.best()
    if not best:
        raise RunError(f"no trial of {run.study.name} is complete, so there is no winner to explain; run the search on")
    winner = best[0]
    name, given = run.study.hand_made
    target = cost(winner.spec).gflops
    baseline = at_gflops(given, target)
    if baseline.digest != given.digest:
        name = f"{name} at {cost(baseline).gflops:.4g} GFLOPs"
    found = {one.path: (one.old, one.new) for one in diff(given, winner.spec)}
    if len(found) > 1:
        found.pop(WIDTH, None)
    if not found:
        raise RunError(f"{row_of(winner)} is {name} itself, so there is nothing to explain")
    most = run.study.explain.most if run.study.explain else len(found)
    if len(found) <= most:
        return Explained(row_of(winner), winner.spec, name, baseline, found)
    ranked = marginals(run, found)
    kept = {marginal.path for marginal in ranked[:most]}
    screened = {path: values for path, values in found.items() if path in kept}
    return Explained(row_of(winner), winner.spec, name, baseline, screened, tuple(map(str, ranked[most:])))


def explanation_of(explained: Explained, run: Run) -> Explanation:
    """What the run of `explanation_study` says of every difference."""
    tables = {family[0]: _contrasts(run, family[0]) for family in families(run.study.rows)}
    back, added = tables.get(TAKEN_BACK, {}), tables.get(ADDED, {})
    effects = tuple(
        Effect(path, before, after, back.get(f"without {path}"), added.get(f"with {path}"))
        for path, (before, after) in explained.differences.items()
    )
    return Explanation(explained, run.metric, effects, added.get(explained.name), _together(explained, run))


def _contrasts(run: Run, block: str) -> dict[str, Contrast]:
    """The comparisons of a block with its baseline, by row."""
    values = values_by_seed(run, run.metric)
    rows = [row for row in run.study.rows if row.block == block]
    pairs = [(place, 0) for place in range(1, len(rows))]
    results = judged([values.get(row.spec.digest, {}) for row in rows], pairs, lower_is_better(run.metric), looks=looked_at(run))
    keys = ("difference", "ci_low", "ci_high", "p_rule_holm", "pairs", "verdict")
    columns = zip(*(results[key] for key in keys), strict=True)
    found = {row.variant: Contrast(*column) for row, column in zip(rows[1:], columns, strict=True)}
    return {name: contrast for name, contrast in found.items() if contrast.pairs}


def _together(explained: Explained, run: Run) -> Contrast | None:
    """What all differences bring beyond the sum of what each brings alone, over the seeds that all rows have."""
    values = values_by_seed(run, run.metric)
    rows = [row for row in run.study.rows if row.block == ADDED]
    singles = [row for row in rows if row.variant not in (explained.name, explained.baseline_name)]
    if explained.left_out or len(singles) < len(explained.differences) or len(singles) < 2:
        return None
    seeds = set.intersection(*({s for s, v in values.get(row.spec.digest, {}).items() if math.isfinite(v)} for row in rows))
    if len(seeds) < 2:
        return None
    table = {row.variant: np.array([values[row.spec.digest][seed] for seed in sorted(seeds)]) for row in rows}
    base = table[explained.baseline_name]
    surplus = table[explained.name] - base - sum(table[row.variant] - base for row in singles)
    low, high = paired_interval(surplus)
    p = paired_t_p(surplus)
    mean = float(surplus.mean())
    verdict = NO_EVIDENCE if p >= 1 - LEVEL else BETTER if (mean < 0) == lower_is_better(run.metric) else WORSE
    return Contrast(mean, low, high, p, len(seeds), verdict)


def explanation_sentences(found: Explanation, simplified: Mapping[str, Contrast] | None = None) -> list[str]:
    """What an explanation found, in a few sentences.

    Args:
        found: The explanation.
        simplified: The simplified winner's contrasts, with the baseline's name and the winner's as keys.
    """
    digits, of = METRICS[found.metric].digits, found.explained
    carrying = [_named(effect) for effect in found.effects if effect.carries]
    rest = [_named(effect) for effect in found.effects if not effect.carries]
    count = len(found.effects)
    head = f"{count} differences separate" if count > 1 else "one difference separates"
    at = "equal GFLOPs" if of.mismatch <= TOLERANCE else f"GFLOPs that differ by up to {100 * of.mismatch:.1f} %"
    told = [f"{head} {of.name} from {of.baseline_name}, at {at}"]
    if of.left_out:
        kept = f"{count} of {count + len(of.left_out)} differences were taken back at {at}"
        told = [f"{kept}; left out: {', '.join(of.left_out)}"]
    if carrying:
        told.append(f"worse without: {', '.join(carrying)}")
    else:
        told.append("of no single one is it shown that the winner is worse without it")
    if rest and carrying:
        told.append(f"not shown to be worse without: {', '.join(rest)}")
    if found.joint is not None:
        told.append(f"all together: {_signed(found.joint, digits)}, {found.joint.verdict}")
    if found.together is not None and found.together.verdict != NO_EVIDENCE:
        told.append(f"all together bring {_signed(found.together, digits)} beyond the sum of each alone")
    if simplified and found.simplified is not None:
        own, winner = cost(found.simplified).gflops, cost(of.winner).gflops
        which = "the simplified winner" + (f" ({own:.4g} GFLOPs)" if abs(own / winner - 1) > TOLERANCE else "")
        for name, contrast in simplified.items():
            told.append(f"{which} differs from {name} by {_signed(contrast, digits)}: {contrast.verdict}")
    return told


def _named(effect: Effect) -> str:
    return f"{effect.path} ({effect.before} → {effect.after})"


def _signed(contrast: Contrast, digits: int) -> str:
    return f"{contrast.difference:+.{digits}f} [{contrast.low:+.{digits}f}, {contrast.high:+.{digits}f}]"


def read_explanation(where: RunLocation | str | Path) -> tuple[Explanation, dict[str, Contrast]] | None:
    """The explanation in a run directory, and the contrasts of its simplified winner by what it is compared with.

    Args:
        where: The run directory of the search: its location, or its path.

    Returns:
        None where nothing was explained yet; no contrasts where the winner was not simplified.

    Raises:
        RunError: A run in it is damaged.
    """
    at = where if isinstance(where, RunLocation) else locate(str(where))
    explained, simplified_at = at.inside(EXPLANATION).folder, at.inside(SIMPLIFICATION).folder
    if not (explained / LEDGER).exists():
        return None
    run = read_run(at.folder)
    found = explanation_of(explained_by(run), read_run(explained))
    if found.simplified is None or not (simplified_at / LEDGER).exists():
        return found, {}
    of, simplified = found.explained, read_run(simplified_at)
    against = {name: _contrasts(simplified, f"{SIMPLIFIED}, against {name}") for name in (of.baseline_name, of.name)}
    return found, {name: contrasts[SIMPLIFIED] for name, contrasts in against.items() if SIMPLIFIED in contrasts}
