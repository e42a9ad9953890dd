"""Studies that follow from another one: the ablation that trains given architectures as the study would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.study.study import Study
from space.differences import diff
from space.document import parse
from space.domains.space import FIXED_BY_DATA
from space.errors import StudyError, ToolkitError
from space.spec import ModelSpec, spec_paths

Rows = Mapping[str, ModelSpec]
"""Architectures by the names of their rows, the baseline first; their input and classes are the study's."""


def ablation_data(study: Study, name: str, question: str, blocks: Mapping[str, Rows], **ablation: Any) -> dict[str, Any]:
    """The plain data of an ablation whose rows are given architectures; nothing is pruned or sampled.

    Args:
        study: The study whose data, training, budget, evaluation and resources it takes.
        name: The name of the new study.
        question: Its question.
        blocks: Tables of at least two rows by the names of their blocks.
        ablation: Further keys of `ablation`, such as `seeds`.

    Returns:
        Nested mappings, to be changed further and parsed as a Study.
    """
    data = training_data(study)
    # With a value per path, in place of mappings and of single stages, the changes of a variant do not depend on their order.
    data["model"]["set"] = {path: study.base.value_at(path) for path in spec_paths() if path not in FIXED_BY_DATA}
    tables = [
        {
            "name": block,
            "design": "table",
            "baseline": next(iter(specs)),
            "variants": [
                {"name": row, "set": {one.path: one.new for one in diff(study.base, spec)}} for row, spec in specs.items()
            ],
        }
        for block, specs in blocks.items()
    ]
    data |= {"name": name, "question": question, "ablation": {"blocks": tables, "metric": "val_loss", **ablation}}
    data["budget"] |= {"mode": "none", "grace_rungs": 0, "brackets": 1}
    data["evaluation"]["samples"] = None
    if data["ablation"]["metric"] == "val_loss":
        data["evaluation"]["fid"] = None
    return data


def fresh_ablation(study: Study, what: str, question: str, blocks: Mapping[str, Rows], first: int, seeds: Any) -> Study:
    """The ablation of architectures on seeds and validation images that their search never used, with the budget of `confirm`.

    Args:
        study: The search.
        what: The section that asks for it, for the name of the new study and for messages.
        question: Its question.
        blocks: As of `ablation_data`.
        first: The first seed, counted from the study's.
        seeds: Of `ablation.seeds`.

    Raises:
        StudyError: If the ablation would be refused.
    """
    data = ablation_data(study, f"{study.name}-{what}", question, blocks, seeds=seeds, metric=study.metric)
    data["training"]["seed"] = study.training.seed + first
    val_loss = study.evaluation.val_loss
    data["evaluation"]["val_loss"] = {"images": val_loss.images, "skip": val_loss.skip + val_loss.images}
    if study.confirm and study.confirm.budget is not None:
        data["budget"][study.budget.key] = study.confirm.budget
    try:
        made = parse(Study, data, context={"header": study.header})
        made.check_runs()
    except ToolkitError as error:
        raise StudyError(f"{what}: {error}") from None
    return made


def training_data(study: Study) -> dict[str, Any]:
    """The sections of a study that say how it trains, as plain data."""
    return study.model_dump(mode="json", exclude={"search", "ablation", "finish", "confirm", "explain"})
