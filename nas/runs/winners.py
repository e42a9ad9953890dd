"""What a finished run exports: a search's best, and of an ablation the best row that is claimed to be better than its baseline."""

from __future__ import annotations

from collections.abc import Iterator

from nas.runs.run import Run, TrialResult, values_by_seed
from nas.stats.sequential import looks
from nas.stats.verdicts import BETTER, judged
from nas.study.metrics import lower_is_better
from nas.study.rows import families


def winners(run: Run) -> list[TrialResult]:
    """The trials that a run exports at its end, best first.

    Of a search, the best of the finish, or the best one. Of an ablation, the row with the best mean of the ablation's metric
    among those with the verdict "better" in a comparison with their baseline, as its tables give it; none where no row has it.
    """
    if run.study.ablation is None:
        return leading(run, run.study.finish.best if run.study.finish else 1)
    better = set(_better(run))
    return [trial for trial in run.best(len(run.trials)) if trial.digest in better][:1]


def leading(run: Run, count: int) -> list[TrialResult]:
    """The best trials of a search, the confirmed one first; none while candidates are being confirmed."""
    if run.confirmed is None:
        return [] if run.study.confirm else run.best(count)
    chosen = run.trials[run.confirmed.chosen]
    return [chosen, *(trial for trial in run.best(count) if trial.digest != chosen.digest)][:count]


def _better(run: Run) -> Iterator[str]:
    """The digests of the rows that are claimed to be better than their baseline, with all comparisons of a table as one family."""
    ablation, metric = run.study.ablation, run.metric
    assert ablation is not None
    values = values_by_seed(run, metric)
    looked = looked_at(run)
    for family in families(run.study.rows).values():
        baseline = next(asked.reference.spec.digest for asked in family if asked.reference.is_baseline)
        place = {baseline: 0}
        for asked in family:
            place.setdefault(asked.row.spec.digest, len(place))
        pairs = [(place[asked.row.spec.digest], place[asked.reference.spec.digest]) for asked in family]
        results = judged([values.get(digest, {}) for digest in place], pairs, lower_is_better(metric), looks=looked)
        for asked, verdict in zip(family, results["verdict"], strict=True):
            if asked.reference.is_baseline and verdict == BETTER:
                yield asked.row.spec.digest


def looked_at(run: Run) -> tuple[int, ...] | None:
    """The numbers of pairs at which an ablation's differences were looked at; None where its seeds are a fixed plan."""
    ablation = run.study.ablation
    if ablation is None or not ablation.seeds.sequential:
        return None
    most = max([ablation.seeds.max, *(len(by_seed) for by_seed in values_by_seed(run, run.metric).values())])
    return looks(ablation.seeds.min, most)
