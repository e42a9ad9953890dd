"""The ablation by which a search is confirmed: its candidates against a baseline of equal cost, with fresh seeds and images."""

from __future__ import annotations

from collections.abc import Mapping

from nas.study.derived import fresh_ablation
from nas.study.followups import FRESH_SEEDS
from nas.study.study import Study
from space.costs.cost import cost
from space.costs.matching import TOLERANCE, match_width
from space.errors import StudyError
from space.spec import ModelSpec


def confirmation_study(study: Study, candidates: Mapping[str, ModelSpec]) -> Study:
    """The ablation that trains candidates and the baseline of `study.confirm` with seeds and validation images of their own.

    Where the dearest candidate costs over 1 % more GFLOPs than the baseline, the baseline is widened to the dearest one's, so that
    no candidate wins by its size. Cheaper candidates are then compared with a baseline that costs more than they do.

    Args:
        study: A search with `confirm`.
        candidates: The candidates by the names of their rows; one that equals the baseline is left out.

    Raises:
        StudyError: If the study has no `confirm`, no candidate differs from the baseline, or the ablation would be refused, such
            as for a budget below the search's.
    """
    confirm = study.confirm
    if confirm is None:
        raise StudyError(f"{study.name} has no confirm; add one, such as confirm: {{best: 3, seeds: 6}}")
    name, baseline = study.hand_made
    others = {row: spec for row, spec in candidates.items() if spec.digest != baseline.digest}
    if not others:
        raise StudyError(f"no candidate differs from {name}, so there is nothing to confirm")
    dearest = max(cost(spec).gflops for spec in others.values())
    if dearest > (1 + TOLERANCE) * cost(baseline).gflops:
        baseline = match_width(baseline, dearest).spec
        name = f"{name} at {cost(baseline).gflops:.4g} GFLOPs"
    question = f"Is any of the best of {study.name} better than {name}?"
    made = fresh_ablation(study, "confirm", question, {"": {name: baseline, **others}}, FRESH_SEEDS, confirm.seeds.model_dump())
    if made.budget.full < study.budget.full:
        raise StudyError(f"confirm.budget {confirm.budget} is below the search's; leave it out, or take a larger one")
    return made
