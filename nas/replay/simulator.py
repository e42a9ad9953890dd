"""Simulates searches with other rungs and samplers over the full-length curves of a run; nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import product
from statistics import fmean, stdev
from typing import Literal

import numpy as np

from nas.replay.curves import Recorded
from nas.replay.order import Order, ReplaySampler, order_of
from nas.runs.records import State
from nas.search.halving import SuccessiveHalving
from nas.stats.ranks import Agreement
from nas.study.budget import BudgetSettings
from nas.study.choices import Mode
from nas.study.objectives import to_judge
from space.document import parse
from space.errors import StudyError

Clock = Literal["seconds", "compute"]


@dataclass(frozen=True)
class Rules:
    """The rungs to replay: `nas.study.budget.BudgetSettings` over the recorded rungs.

    `reduction_factor` is the run's (the default) or a power of it. `rungs` is the number of fitting rungs to use, counted from the
    last down; all by default.
    """

    mode: Mode = "stop"
    reduction_factor: int | None = None
    rungs: int | None = None
    grace_rungs: int = 0
    brackets: int = 1


@dataclass(frozen=True)
class Arrival:
    """The order and the speed in which architectures arrive at the rungs.

    Training to the next rung occupies one of `workers` for the recorded time, or for the multiply-accumulates when `clock` is
    "compute". `trials` is the number of recorded trials that are tried (all by default). The replay is repeated in `repeats`
    orders; the recorded order is replayed once.
    """

    sampler: ReplaySampler = "random"
    workers: int = 1
    clock: Clock = "seconds"
    trials: int | None = None
    repeats: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """One repeat: the indices of the tried architectures in order, the rungs at which each reported, and the compute spent."""

    tried: tuple[int, ...]
    reached: tuple[int, ...]
    macs: int
    end: float
    """The time of the last report on the simulated clock: seconds, or multiply-accumulates of one worker."""
    regret: float
    """The lowest final score of those that reached the last rung, minus the lowest recorded."""


@dataclass(frozen=True)
class MeanSd:
    """Mean and standard deviation (n - 1) over repeats; `sd` is None for a single repeat."""

    mean: float
    sd: float | None


@dataclass(frozen=True)
class RungFacts:
    """One rung of a replay: its training, the trials that reported, and its agreement with the last rung.

    `mark` is in the unit of the budget, and `macs` in multiply-accumulates: a mean over trainings where that is another.

    `agreement` and `top_regret` are within the same trainings; `across_seeds` is None without replicates.
    """

    mark: int
    macs: int
    reported: MeanSd
    agreement: Agreement
    across_seeds: Agreement | None
    top_regret: float


@dataclass(frozen=True)
class Replay:
    """The results of one set of rules. `kept` is the share of repeats in which the best recorded architecture won."""

    budget: BudgetSettings
    trials: int
    top: int
    macs: MeanSd
    """The training compute spent, in multiply-accumulates."""
    share: MeanSd
    """The compute spent, as a share of training everything recorded."""
    regret: MeanSd
    kept: float
    hours: MeanSd | None
    """The time until the last report; None when the clock counts compute."""
    rungs: tuple[RungFacts, ...]
    outcomes: tuple[Outcome, ...]


def replay_run(record: Recorded, rules: Rules | None = None, arrival: Arrival | None = None, top: int = 3) -> Replay:
    """Simulate a search with these rungs over the recorded architectures. The same seed gives the same result.

    Args:
        record: The recorded curves.
        rules: The rungs to replay.
        arrival: The order, the workers and the clock.
        top: The k of top-k regret.

    Returns:
        The compute that the search would have spent, and its regret.

    Raises:
        StudyError: When the rungs do not fit the recorded ones, or when more trials are asked for than are recorded.
    """
    rules, arrival = rules or Rules(), arrival or Arrival()
    budget, used = _fitting(record.study.budget, rules)
    count = _architectures(record, arrival.trials)
    repeats = 1 if arrival.sampler == "recorded" else arrival.repeats
    outcomes = []
    for repeat in range(repeats):
        seed = int(np.random.SeedSequence([arrival.seed, repeat]).generate_state(1)[0])
        outcomes.append(_Simulation(record, budget, used, order_of(record, arrival.sampler, seed), count, arrival).outcome())
    rungs = tuple(
        RungFacts(
            mark=mark,
            macs=mark if budget.unit == "compute" else round(fmean(record.macs_at(used[rung]))),
            reported=_spread([record.study.replicates * sum(n > rung for n in outcome.reached) for outcome in outcomes]),
            agreement=record.agreements[used[rung]],
            across_seeds=record.agreements_across_seeds[used[rung]] if record.agreements_across_seeds else None,
            top_regret=record.top_regret(used[rung], top),
        )
        for rung, mark in enumerate(budget.milestones)
    )
    return Replay(
        budget=budget,
        trials=count * record.study.replicates,
        top=top,
        macs=_spread([outcome.macs for outcome in outcomes]),
        share=_spread([outcome.macs / record.full_macs for outcome in outcomes]),
        regret=_spread([outcome.regret for outcome in outcomes]),
        kept=fmean(outcome.regret == 0 for outcome in outcomes),
        hours=_spread([outcome.end / 3600 for outcome in outcomes]) if arrival.clock == "seconds" else None,
        rungs=rungs,
        outcomes=tuple(outcomes),
    )


def candidates(record: Recorded, rungs: int | None = None, brackets: int = 1) -> list[Rules]:
    """The rules to compare by default: no pruning, and modes stop and promote with reduction factors 2, 3, 4 and grace 0, 1.

    Rules that do not fit the recorded rungs are left out.

    Raises:
        StudyError: When no rules with pruning fit.
    """
    found, own = [], record.study.budget
    modes: tuple[Mode, ...] = ("stop", "promote")
    for mode, reduction_factor, grace_rungs in product(modes, (2, 3, 4), (0, 1)):
        rules = Rules(mode, reduction_factor, rungs, grace_rungs, brackets)
        try:
            budget, _ = _fitting(own, rules)
        except StudyError:
            continue
        if budget.rungs > 1:
            found.append(rules)
    if not found:
        raise StudyError(
            f"reductions 2, 3 and 4 with grace 0 and 1 do not fit the run's {own.rungs} rungs, each the next divided by "
            f"{own.reduction_factor}; replay one that does"
        )
    return [Rules("none", own.reduction_factor), *found]


def _spread(values: Sequence[float]) -> MeanSd:
    return MeanSd(fmean(values), stdev(values) if len(values) > 1 else None)


def _fitting(own: BudgetSettings, rules: Rules) -> tuple[BudgetSettings, tuple[int, ...]]:
    """The budget to replay, and the indices of the recorded rungs that are its rungs."""
    reduction_factor = rules.reduction_factor or own.reduction_factor
    apart = round(math.log(reduction_factor, own.reduction_factor))
    if own.reduction_factor**apart != reduction_factor:
        raise StudyError(
            f"reduction {reduction_factor} does not fit the run, whose rungs are each the next divided by {own.reduction_factor}; "
            f"take {own.reduction_factor} or one of its powers"
        )
    fitting = range(own.rungs - 1, -1, -apart)
    if rules.rungs is not None and rules.rungs > len(fitting):
        raise StudyError(
            f"{rules.rungs} rungs of reduction {reduction_factor} are more than the run has: of its {own.rungs}, {len(fitting)} fit"
        )
    used = tuple(fitting[: rules.rungs][::-1])
    how = {"mode": rules.mode, "grace_rungs": rules.grace_rungs, "brackets": rules.brackets}
    return parse(BudgetSettings, {own.key: own.full, "rungs": len(used), "reduction_factor": reduction_factor, **how}), used


def _architectures(record: Recorded, trials: int | None) -> int:
    """The number of architectures in a number of trials."""
    replicates = record.study.replicates
    if trials is None:
        return len(record.curves)
    if trials > len(record.curves) * replicates:
        raise StudyError(f"{trials} trials are more than the {len(record.curves) * replicates} recorded at every rung; take fewer")
    if trials < 1 or trials % replicates:
        raise StudyError(f"{trials} trials are no whole number of architectures with {replicates} replicates; change them")
    return trials // replicates


class _Simulation:
    """One search over recorded curves on a simulated clock; trials are handed out as in `nas.search.controller.Search`."""

    def __init__(
        self, record: Recorded, budget: BudgetSettings, used: tuple[int, ...], order: Order, count: int, arrival: Arrival
    ) -> None:
        self.record, self.used, self.order, self.workers = record, used, order, arrival.workers
        self.by_seconds = arrival.clock == "seconds"
        self.rungs, self.replicates = SuccessiveHalving(budget), record.study.replicates
        self.total = count * self.replicates
        self.begun = 0
        self.tried: list[int] = []
        self.idle: set[int] = set()

    def outcome(self) -> Outcome:
        """Run the search to its end."""
        busy: list[tuple[float, int, int]] = []
        now, started = 0.0, 0
        while True:
            while len(busy) < self.workers and (trial := self._next()) is not None:
                heappush(busy, (now + self._duration(trial), started, trial))
                started += 1
            if not busy:
                break
            now, _, trial = heappop(busy)
            if self._report(trial):
                heappush(busy, (now + self._duration(trial), started, trial))
                started += 1
        reached = tuple(len(self.rungs.variants[number].means) for number in range(len(self.tried)))
        curves = [(self.record.curves[index], n) for index, n in zip(self.tried, reached, strict=True)]
        spent = sum(macs[self.used[n - 1]] for curve, n in curves for macs in curve.macs)
        best = min(curve.losses[-1] for curve, n in curves if n == len(self.used))
        return Outcome(tuple(self.tried), reached, spent, now, best - self.record.best)

    @property
    def exhausted(self) -> bool:
        return self.begun == self.total

    def _next(self) -> int | None:
        """A trial for a free worker: an idle one, else the next replicate, else a promoted trial, else a new one."""
        while not self.idle:
            if self.begun % self.replicates == 0:
                if (promoted := self.rungs.promotion(self.exhausted)) is not None:
                    self._promote(promoted.number)
                    continue
                if self.exhausted:
                    return None
                number = len(self.tried)
                self.tried.append(self.order.next(number))
                self.rungs.add(number, range(self.begun, self.begun + self.replicates))
            self.idle.add(self.begun)
            self.begun += 1
        trial = min(self.idle)
        self.idle.discard(trial)
        return trial

    def _duration(self, trial: int) -> float:
        number, replicate = divmod(trial, self.replicates)
        curve, rung = self.record.curves[self.tried[number]], self.rungs.variant_of(trial).reported[trial]
        taken = (curve.seconds if self.by_seconds else curve.macs)[replicate]
        return taken[self.used[rung]] - (taken[self.used[rung - 1]] if rung else 0)

    def _report(self, trial: int) -> bool:
        """Apply the next report of a trial, and return whether it trains on with the worker it has."""
        number, replicate = divmod(trial, self.replicates)
        variant = self.rungs.variant_of(trial)
        rung = variant.reported[trial]
        values = self.record.curves[self.tried[number]].values[replicate][self.used[rung]]
        decision = self.rungs.report(trial, rung, to_judge(self.record.study.objectives, values))
        if variant.waits:
            self.order.tell_waiting(number, [mean[0] for mean in variant.means])
        decision += self.rungs.stop_unpromotable(self.exhausted)
        self.idle |= set(decision.released)
        ended = dict.fromkeys((trial // self.replicates for trial in decision.stopped), State.PRUNED)
        if len(variant.means) == len(self.used):
            ended[number] = State.COMPLETE
        for ended_number, state in sorted(ended.items()):
            self._end(ended_number, state)
        if variant.waits and self.rungs.promotion(self.exhausted) is variant:
            self._promote(number)
        return self.rungs.may_train(trial) and trial not in self.idle

    def _promote(self, number: int) -> None:
        self.idle |= set(self.rungs.promote(number).released)
        self.order.resume(number)

    def _end(self, number: int, state: State) -> None:
        curve, means = self.record.curves[self.tried[number]], self.rungs.variants[number].means
        last = [values[-1] for values in curve.values]
        values = tuple(fmean(objective) for objective in zip(*last, strict=True)) if state is State.COMPLETE else ()
        self.order.tell(number, state, values, [mean[0] for mean in means])
