"""What a finished run exports: a search's best, and of an ablation the best row that is claimed to be better than its baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nas.runs.records import State
from nas.runs.run import Run, TrialResult, final_value
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
        return run.best(run.study.finish.best if run.study.finish else 1)
    better = set(_better(run))
    return [trial for trial in run.best(len(run.trials)) if trial.digest in better][:1]


def _better(run: Run) -> Iterator[str]:
    """The digests of the rows that are claimed to be better than their baseline, with all comparisons of a table as one family."""
    ablation, metric = run.study.ablation, run.metric
    assert ablation is not None
    values: dict[str, dict[int, float]] = {}
    for trial in run.trials.values():
        value, by_seed = final_value(trial, metric), values.setdefault(trial.digest, {})
        if value is not None or trial.state is State.FAILED:
            by_seed[trial.seed] = math.nan if value is None else value
    most_seeds = max([ablation.seeds.max, *map(len, values.values())])
    looked = looks(ablation.seeds.min, most_seeds) if ablation.seeds.sequential else None
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
