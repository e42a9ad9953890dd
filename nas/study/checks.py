"""The checks that concern several sections of a study; each mistake is found, whatever others there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nas.study.choices import SAMPLERS
from nas.study.followups import FRESH_SEEDS
from nas.study.objectives import problems
from space.errors import Location, Mistakes, StudyError, ToolkitError

if TYPE_CHECKING:
    from nas.study.study import Study


def problems_of(study: Study) -> Iterator[StudyError]:
    """What is wrong between the sections of a study whose data and model are known."""
    for check in (_search, _confirm, _ablation, _rest):
        yield from check(study)


def _rest(study: Study) -> Iterator[StudyError]:
    kind = study.training.prediction.kind
    for key in ("samples", "fid"):
        sampler = getattr(getattr(study.evaluation, key), "sampler", None)
        if sampler is not None and sampler not in SAMPLERS[kind]:
            yield StudyError(f"evaluation.{key}.sampler is {sampler}, but {kind} is sampled with {', '.join(SAMPLERS[kind])}")
    if len(set(study.training.ema)) < len(study.training.ema):
        yield StudyError("training.ema names a decay twice; remove one")
    if study.finish and study.search and study.finish.unit != study.budget.unit:
        wanted = "budget" if study.budget.unit == "compute" else study.budget.unit
        yield StudyError(
            f"finish.{study.finish.key} is {study.finish.unit}, but budget.{study.budget.key}, from which the winner trains on, "
            f"is {study.budget.unit}; write finish.{wanted}"
        )
    elif study.finish and study.search and study.finish.full <= study.budget.full:
        yield StudyError(f"finish.{study.finish.key} must be above budget.{study.budget.key}: the winner trains on")
    if study.finish and study.budget.decay:
        yield StudyError("budget.decay ends every trial's training, but the finish goes on with it; write finish.decay instead")


def _search(study: Study) -> Iterator[StudyError]:
    search = study.search
    if search is None:
        return
    parts = (lambda: study.nuisance, lambda: study.architecture_space, lambda: study.search_space, lambda: study.enqueued)
    for part in parts:
        try:
            within("search", part)
        except StudyError as error:
            yield error
    yield from problems(search.objectives, study.evaluation.fid, study.budget.rungs)
    if study.training.prediction.kind != "epsilon" and "learned_variance" in search.space:
        yield StudyError(f"search.space varies learned_variance, which {study.training.prediction.kind} has none of; remove it")


def _confirm(study: Study) -> Iterator[StudyError]:
    confirm, search = study.confirm, study.search
    if study.explain and confirm is None:
        yield StudyError("explain is of a confirmed winner; add confirm, such as confirm: {best: 3, seeds: 6}")
    if confirm is None:
        return
    if search is None:
        yield StudyError("confirm trains the best of a search anew, but the rows of an ablation have paired seeds; remove it")
        return
    if tuned_paths := ", ".join(study.nuisance):
        yield StudyError(
            f"search.space tunes {tuned_paths}, but confirm trains candidates and baseline with the study's own training; "
            "remove confirm, or write the values into training"
        )
    architectures = search.trials // search.replicates
    if confirm.best > architectures:
        yield StudyError(f"confirm.best is {confirm.best}, but the search has {architectures} architectures; lower it")
    if search.replicates > FRESH_SEEDS:
        yield StudyError(
            f"search.replicates {search.replicates} overlap the fresh seeds of confirm, which begin at "
            f"{FRESH_SEEDS} after training.seed; take fewer"
        )
    try:
        within("confirm.against", lambda: study.hand_made)
    except StudyError as error:
        yield error


def _ablation(study: Study) -> Iterator[StudyError]:
    ablation = study.ablation
    if ablation is None:
        return
    if study.budget.mode != "none":
        yield StudyError(f"budget.mode {study.budget.mode} prunes, but an ablation trains every row to the end; remove it")
    if study.finish:
        yield StudyError("finish trains winners on, but the rows of an ablation are compared at one budget; remove it")
    if ablation.metric != "val_loss" and study.evaluation.fid is None:
        yield StudyError(f"ablation.metric is {ablation.metric}, which evaluation.fid measures; add evaluation: {{fid: {{}}}}")
    if study.evaluation.fid and (few := study.evaluation.fid.too_few_for(ablation.metric)):
        yield StudyError(f"ablation.metric is {ablation.metric}, {few}")
    try:
        within("ablation", lambda: study.rows)
    except StudyError as error:
        yield error


def within(key: str, check: Any) -> None:
    """Run a check; prefix the messages of its error, and their places, with the key."""
    try:
        check()
    except Mistakes as error:
        raise Mistakes([((key, *at), f"{key}: {what}") for at, what in error.each]) from None
    except ToolkitError as error:
        raise Mistakes([((key, *begins_with(str(error))), f"{key}: {error}")]) from None


def begins_with(message: str) -> Location:
    """The keys that a message begins with, such as those of `enqueue.0 has …`."""
    leading = re.match(r"[\w.]+", message)
    return tuple(int(part) if part.isdecimal() else part for part in leading[0].split(".")) if leading else ()
