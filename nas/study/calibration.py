"""The protocols that a calibration compares, the architectures that it trains, and the studies by which it trains them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from nas.study.overrides import apply_override
from nas.study.settings import BudgetSettings
from nas.study.study import Study
from space.costs.cost import cost
from space.differences import diff
from space.document import parse
from space.domains.space import FIXED_BY_DATA
from space.errors import StudyError, ToolkitError
from space.spec import ModelSpec, spec_paths

OWN = "as given"
"""The name of the study's own protocol."""

CHANGEABLE = ("training", "evaluation.val_loss", "budget.max", "budget.steps", "budget.decay")
"""What a protocol may change."""

UNCHANGEABLE = ("training.seed", "training.prediction")
"""What it may not: seeds are paired, and losses of different predictions are of different things."""

MOST_REPEATS = 200
"""The space counts as spent when so many feasible draws in a row bring no new architecture."""


@dataclass(frozen=True)
class TrainingProtocol:
    """A way of training and scoring, as changes `key=value` to a study; without any it is the study's own."""

    name: str
    changes: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name of its run directory: the name's letters and digits, joined by dashes."""
        return "-".join(re.findall(r"[a-z0-9.]+", self.name.lower()))


def parse_protocol(text: str) -> TrainingProtocol:
    """A protocol from `NAME: key=value, key=value`; raises StudyError for other text, or a key that a protocol cannot change."""
    name, colon, rest = (part.strip() for part in text.partition(":"))
    # A comma separates changes only before a key, so that values may be lists.
    changes = tuple(change.strip() for change in re.split(r",\s*(?=[A-Za-z_.]+\s*=)", rest) if change.strip())
    protocol = TrainingProtocol(name, tuple(re.sub(r"^([\w.]+)\s*=\s*", r"\1=", change) for change in changes))
    if not colon or not changes or not protocol.folder:
        raise StudyError(f"--protocol '{text}': write NAME: KEY=VALUE, KEY=VALUE, such as 'warm-up: training.warmup_steps=60'")
    for change in protocol.changes:
        key = change.partition("=")[0]
        if not _within(key, CHANGEABLE) or _within(key, UNCHANGEABLE):
            raise StudyError(
                f"--protocol '{name}' changes {key}; a protocol changes keys of training (but for seed and prediction), "
                "evaluation.val_loss.images, budget.max, budget.steps and budget.decay"
            )
    return protocol


def own_and(protocols: Iterable[TrainingProtocol]) -> tuple[TrainingProtocol, ...]:
    """The study's own protocol and others; raises StudyError when two of them would share a run directory."""
    together = (TrainingProtocol(OWN), *protocols)
    folders = [protocol.folder for protocol in together] + [REFERENCE.folder]
    twice = next((protocol for protocol in together if folders.count(protocol.folder) > 1), None)
    if twice is not None:
        raise StudyError(f"two protocols are called '{twice.name}' ('{OWN}' and '{REFERENCE.name}' are taken); rename one")
    return together


def default_protocols(study: Study, specs: Sequence[ModelSpec]) -> tuple[TrainingProtocol, ...]:
    """The protocols that a calibration compares by default, but for the study's own: one change each.

    Warm-up takes 15 % of the steps of the median architecture, a decay the last 40 % of the budget, or as much as its rungs allow.
    """
    training, budget = study.training, study.budget
    steps = median(budget.steps_of(cost(spec).step_macs(training.batch_size))[-1] for spec in specs)
    latest = 1.0 if budget.rungs == 1 else 1 / budget.rungs if budget.even else 1 - 1 / budget.reduction_factor
    rate = "training.learning_rate={:.6g}"
    batch = [f"training.batch_size={2 * training.batch_size}"]
    if budget.steps is not None:
        # As many samples as before, so as much compute.
        batch.append(f"budget.steps={max(1, budget.steps // 2)}")
    return (
        TrainingProtocol("half the rate", (rate.format(training.learning_rate / 2),)),
        TrainingProtocol("twice the rate", (rate.format(training.learning_rate * 2),)),
        TrainingProtocol("no warm-up", ("training.warmup_steps=0",))
        if training.warmup_steps
        else TrainingProtocol("warm-up", (f"training.warmup_steps={max(1, round(0.15 * steps))}",)),
        TrainingProtocol("no decay", ("budget.decay=0",))
        if budget.decay
        else TrainingProtocol("decay", (f"budget.decay={min(0.4, latest):g}",)),
        TrainingProtocol("no EMA", ("training.ema=0",)) if training.ema[0] else TrainingProtocol("EMA", ("training.ema=0.999",)),
        TrainingProtocol("twice the batch", tuple(batch)),
    )


def calibration_architectures(study: Study, count: int) -> tuple[ModelSpec, ...]:
    """The architectures that a calibration of a study trains, in order; a larger count begins with those of a smaller one.

    Those of a search are the enqueued ones, then uniform draws from the feasible part of its space with the sampler's seed: the
    variance between architectures is that of the space only where they are drawn at random. Those of an ablation are its rows.

    Args:
        study: The study.
        count: The most architectures to take; a small space may have fewer.

    Raises:
        StudyError: There are fewer than two.
    """
    found: dict[str, ModelSpec] = {}
    repeats = 0
    for spec in _candidates(study):
        if len(found) == count or repeats == MOST_REPEATS:
            break
        repeats = repeats + 1 if spec.digest in found else 0
        found.setdefault(spec.digest, spec)
    if len(found) < 2:
        raise StudyError(f"{study.name} has {len(found)} architectures to calibrate with, which have no variance; take 2 or more")
    return tuple(found.values())


def _candidates(study: Study) -> Iterable[ModelSpec]:
    if study.search is None:
        yield from (row.spec for row in study.rows)
        return
    yield from study.enqueued
    space = study.search_space
    for params in space.feasible(np.random.default_rng(study.search.sampler.seed)):
        yield space.spec(params)


def calibration_study(study: Study, protocol: TrainingProtocol, specs: Sequence[ModelSpec], seeds: int) -> Study:
    """The ablation that trains architectures with some seeds under a protocol: a row an architecture, nothing pruned or sampled.

    Args:
        study: The study to calibrate.
        protocol: The protocol.
        specs: At least two architectures.
        seeds: The number of seeds, from the study's on.

    Raises:
        StudyError: If the protocol's changes are refused, or make no study that could run; the message names the protocol.
    """
    return _runs(_made(study, protocol, specs, seeds), protocol, specs)


def _made(study: Study, protocol: TrainingProtocol, specs: Sequence[ModelSpec], seeds: int) -> Study:
    """The ablation of `calibration_study`, of which it is not known yet whether it could run."""
    data = _plain(study)
    metric = study.ablation.metric if study.ablation else "val_loss"
    names = [f"architecture {number}" for number in range(1, len(specs) + 1)]
    changes = [{one.path: one.new for one in diff(study.base, spec)} for spec in specs]
    variants = [{"name": name, "set": values} for name, values in zip(names, changes, strict=True)]
    # With a value per path, in place of mappings and of single stages, the changes of a variant do not depend on their order.
    data["model"]["set"] = _values(study.base)
    data |= {
        "name": f"{study.name}-calibration-{protocol.folder}",
        "question": f"Calibration of {study.name}: {protocol.name}",
        "ablation": {"seeds": seeds, "metric": metric, "design": "table", "baseline": names[0], "variants": variants},
    }
    data["budget"] |= {"mode": "none", "grace_rungs": 0, "brackets": 1}
    data["evaluation"]["samples"] = None
    if metric == "val_loss":
        data["evaluation"]["fid"] = None
    _apply(data, protocol)
    return _parsed(study, data, protocol)


REFERENCE = TrainingProtocol("reference")
"""The study's own protocol with a longer budget."""

REFERENCE_SEEDS = 1000
"""The first seed of a reference, counted from the study's: beyond all seeds that a calibration may take.

With a seed in common, its luck would count as agreement.
"""


def reference_study(study: Study, specs: Sequence[ModelSpec], seeds: int, budget: str) -> Study:
    """The ablation that trains the architectures of a calibration to a longer budget, as the study would.

    Args:
        study: The study to calibrate.
        specs: The architectures.
        seeds: The number of seeds, from `REFERENCE_SEEDS` after the study's on.
        budget: The compute of a training, or its steps where the study's budget is in steps.

    Raises:
        StudyError: If the budget is not above the study's, or is refused.
    """
    key = "max" if study.budget.max is not None else "steps"
    changes = (f"budget.{key}={budget}", "budget.rungs=1", f"training.seed={study.training.seed + REFERENCE_SEEDS}")
    made = _made(study, TrainingProtocol(REFERENCE.name, changes), specs, seeds)
    if made.budget.full <= study.budget.full:
        raise StudyError(
            f"--reference {budget} is not above the study's budget, which is to be compared with it; take a longer one"
        )
    return _runs(made, REFERENCE, specs)


def recommended(study: Study, protocol: TrainingProtocol, rung: int) -> dict[str, Any]:
    """What a study writes to train and score by a protocol up to a rung (from 1): `training`, and other sections where they change.

    `finish` is None where a decay ends every trial's training, which leaves no finish.

    Raises:
        StudyError: If a study with it would be refused.
    """
    data = _plain(study)
    _apply(data, protocol)
    changed = parse(BudgetSettings, data["budget"])
    if rung < changed.rungs:
        key = "max" if changed.max is not None else "steps"
        judged = rung - 1
        fits = study.budget.grace_rungs + study.budget.brackets <= judged
        data["budget"] |= {key: changed.milestones[rung - 1], "rungs": rung, "decay": 0.0}
        data["budget"] |= {} if fits else {"grace_rungs": 0, "brackets": 1}
    whole = study.model_dump(mode="json", exclude={"training", "budget", "evaluation"}) | data
    finish = bool(study.finish) and bool(data["budget"]["decay"])
    if finish:
        whole["finish"] = None
    made = _parsed(study, whole, protocol)
    found: dict[str, Any] = {"training": made.training.model_dump(mode="json", exclude={"seed"}, exclude_defaults=True)}
    if made.budget != study.budget:
        found["budget"] = made.budget.model_dump(mode="json", exclude_defaults=True)
    if made.evaluation.val_loss != study.evaluation.val_loss:
        found["evaluation"] = {"val_loss": made.evaluation.val_loss.model_dump(mode="json")}
    return found | ({"finish": None} if finish else {})


def protocol_digest(study: Study, rung: int | None = None) -> str:
    """Twelve hexadecimal digits that identify how a study trains and scores up to a rung (from 1), the last by default.

    They come from the data, `training` without its seed, the images of the validation loss, and the budget up to the rung; not from
    the architectures, the sampler, or the rungs before.
    """
    budget = study.budget
    rung = budget.rungs if rung is None else rung
    facts = {
        "data": [study.header.checksum, study.header.codec, study.data.held_out, study.data.flip],
        "training": study.training.model_dump(mode="json", exclude={"seed"}),
        "val_loss": study.evaluation.val_loss.model_dump(mode="json"),
        # A decay reaches back to no rung but the last.
        "budget": [budget.max is None, budget.milestones[rung - 1], budget.decay if rung == budget.rungs else 0.0],
    }
    return _digest(facts)


def space_digest(study: Study) -> str:
    """Twelve hexadecimal digits that identify the architectures of a study: its model and space, or the rows of an ablation."""
    search = study.search
    space = search.model_dump(mode="json", include={"space", "constraints"}) if search else [r.spec.digest for r in study.rows]
    return _digest([study.base.digest, space])


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]


def _plain(study: Study) -> dict[str, Any]:
    """The sections of a study that say how it trains, as plain data."""
    return study.model_dump(mode="json", exclude={"search", "ablation", "finish"})


def _values(spec: ModelSpec) -> dict[str, Any]:
    """All values of a spec by dotted path, but for those that the data decide."""
    return {path: spec.value_at(path) for path in spec_paths() if path not in FIXED_BY_DATA}


def _apply(data: dict[str, Any], protocol: TrainingProtocol) -> None:
    for change in protocol.changes:
        try:
            apply_override(data, change)
        except StudyError as error:
            raise StudyError(f"protocol '{protocol.name}': {str(error).removeprefix('--set ')}") from None


def _runs(made: Study, protocol: TrainingProtocol, specs: Sequence[ModelSpec]) -> Study:
    """The ablation, if it could run and trains these architectures; raises StudyError otherwise."""
    try:
        made.check_runs()
    except ToolkitError as error:
        raise StudyError(f"protocol '{protocol.name}': {error}") from None
    if [row.spec.digest for row in made.rows] != [spec.digest for spec in specs]:
        raise StudyError(
            f"protocol '{protocol.name}' changes the architectures themselves, so nothing can be compared; leave that out"
        )
    return made


def _parsed(study: Study, data: dict[str, Any], protocol: TrainingProtocol) -> Study:
    try:
        return parse(Study, data, context={"header": study.header})
    except ToolkitError as error:
        raise StudyError(f"protocol '{protocol.name}': {error}") from None


def _within(key: str, keys: Sequence[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)
