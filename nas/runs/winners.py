"""What a finished run exports: a search's best, and of an ablation the best row that is claimed to be better than its baseline."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nas.runs.run import Run, TrialResult, final_value
from nas.stats.sequential import looks
from nas.stats.verdicts import BETTER, judged
from nas.study.metrics import lower_is_better
from nas.study.rows import Row


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
    """The digests of the rows that are claimed to be better than their baseline."""
    ablation, metric = run.study.ablation, run.metric
    assert ablation is not None
    values: dict[str, dict[int, float]] = {}
    for trial in run.trials.values():
        value = final_value(trial, metric)
        by_seed = values.setdefault(trial.digest, {})
        if value is not None:
            by_seed[trial.seed] = value
    most_seeds = max([ablation.seeds.max, *map(len, values.values())])
    looked = looks(ablation.seeds.min, most_seeds) if ablation.seeds.sequential else None
    baselines = {row.block: values.get(row.spec.digest, {}) for row in run.study.rows if row.is_baseline}
    tables: dict[tuple[str, str], list[Row]] = {}
    for row in run.study.rows:
        if not row.is_baseline:
            tables.setdefault((row.block, row.control), []).append(row)
    for (block, _), rows in tables.items():
        base = baselines[block]
        compared = [values.get(row.spec.digest, {}) for row in rows]
        pairs = [np.array([of[seed] - base[seed] for seed in sorted(of.keys() & base.keys())]) for of in compared]
        verdicts = judged(pairs, lower_is_better(metric), looks=looked)["verdict"]
        yield from (row.spec.digest for row, verdict in zip(rows, verdicts, strict=True) if verdict == BETTER)
