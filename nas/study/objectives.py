"""The objectives of a search: which of them are scores, in what form rungs compare them, and what they need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nas.study.metrics import SCORES
from nas.study.settings import FidSettings, Objective
from space.errors import StudyError


def scores_first(objectives: Sequence[Objective]) -> tuple[Objective, ...]:
    """The objectives as they are given, but scores, which training changes, before costs."""
    return tuple(sorted(objectives, key=lambda objective: objective.metric not in SCORES))


def to_judge(objectives: Sequence[Objective], values: Sequence[float]) -> tuple[float, ...]:
    """Values of the objectives as rungs compare them: all to be minimised, and scores first."""
    given = dict(zip(objectives, values, strict=True))
    return tuple(
        given[objective] if objective.direction == "minimize" else -given[objective] for objective in scores_first(objectives)
    )


def of_samples(objectives: Sequence[Objective]) -> tuple[str, ...]:
    """The metrics of samples among the objectives."""
    return tuple(objective.metric for objective in objectives if objective.metric in SCORES and objective.metric != "val_loss")


def problems(objectives: Sequence[Objective], fid: FidSettings | None, rungs: int) -> Iterator[StudyError]:
    """What is wrong with the objectives of a search.

    Args:
        objectives: The objectives.
        fid: The study's `evaluation.fid`.
        rungs: The number of rungs of the budget.
    """
    metrics = [objective.metric for objective in objectives]
    if twice := next((metric for metric in metrics if metrics.count(metric) > 1), None):
        yield StudyError(f"search.objectives names {twice} twice")
    if not any(metric in SCORES for metric in metrics):
        yield StudyError(
            f"search.objectives has no score, only {' and '.join(metrics)}, which no rung changes; add {{metric: val_loss}}"
        )
    for objective in objectives:
        if objective.metric in SCORES and objective.direction != "minimize":
            yield StudyError(f"search.objectives: {objective.metric} is minimised; write direction: minimize or leave it out")
    sampled = of_samples(objectives)
    if fid is not None and fid.at == "every" and not sampled:
        yield StudyError("evaluation.fid.at: every is for ablations and searches by fid or kid; others score their winners alone")
    for metric in sampled:
        if fid is None:
            yield StudyError(
                f"search.objectives has {metric}, which evaluation.fid measures; add evaluation: {{fid: {{at: every}}}}"
            )
        elif fid.at == "last" and rungs > 1:
            yield StudyError(
                f"search.objectives has {metric}, by which trials are compared at every rung, but evaluation.fid.at is last; "
                "write at: every, or budget.rungs: 1"
            )
        elif few := fid.too_few_for(metric):
            yield StudyError(f"search.objectives has {metric}, {few}")
        elif few := fid.biased_order(metric):
            yield StudyError(f"search.objectives has {metric}, but {few}")
