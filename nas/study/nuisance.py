"""Nuisance settings: the training settings that are tuned beside an architecture and are no part of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator, ValidationError

from nas.study.settings import TrainingSettings
from space.document import reason
from space.domains.domain import Domain
from space.errors import Location, Mistakes, StudyError
from space.spec import ModelSpec

SECTION = "training."

NUISANCE = tuple(SECTION + name for name in ("learning_rate", "weight_decay", "ema", "batch_size"))
"""The paths that can be tuned, in the order in which they are told."""


class Trained(Protocol):
    """What has training settings of its own: a candidate, a plan or a trial."""

    @property
    def training(self) -> Mapping[str, Any]:
        """Values by dotted path, of the settings in which it differs from its study."""


def is_setting(path: str) -> bool:
    """Whether a path of a space or of an enqueued candidate is of `training`, not of a spec."""
    return path.startswith(SECTION)


def plain_setting(path: str, value: Any) -> float:
    """The value of a setting as a number; raises StudyError for a path that cannot be tuned, or a value that it cannot have."""
    if path not in NUISANCE:
        raise StudyError(f"{path} cannot be tuned; of training, these can: {', '.join(NUISANCE)}")
    if isinstance(value, (bool, list, tuple)):
        raise StudyError(f"{path} is one number where it is tuned, not {value!r}")
    name = path.removeprefix(SECTION)
    try:
        checked = getattr(TrainingSettings.model_validate({name: value}), name)
    except ValidationError as error:
        raise StudyError(f"{path} cannot be {value!r}: {reason(error, value)}") from None
    number: float = checked[0] if name == "ema" else checked
    return number


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    return {path: plain_setting(path, value) for path, value in values.items()}


OwnTraining = Annotated[dict[str, Any], AfterValidator(_checked)]
"""The training settings in which a trial differs from its study: numbers by dotted path."""


def checked_domain(path: str, domain: Domain) -> Domain:
    """The domain of a setting, its values as the setting holds them.

    Raises:
        StudyError: For a path that cannot be tuned, or a domain with values that the setting cannot have.
    """
    if domain.each is not None:
        raise StudyError(f"'{path}' has one value for all stages, so 'each' does not apply")
    if domain.choice is not None:
        values = tuple(plain_setting(path, value) for value in domain.choice)
        if len(set(values)) < len(values):
            raise StudyError(f"the choice {list(domain.choice)} of '{path}' holds a value twice")
        return domain.model_copy(update={"choice": values})
    for value in domain.int_ or domain.float_ or ():
        plain_setting(path, value)
    if domain.float_ is not None and path == SECTION + "batch_size":
        raise StudyError(f"'{path}' is a whole number; write int or choice")
    return domain


def checked_domains(space: Mapping[str, Domain]) -> dict[str, Domain]:
    """The settings among the paths of a space, each with its checked domain; raises Mistakes for those that cannot be tuned."""
    found: dict[str, Domain] = {}
    mistakes: list[tuple[Location, str]] = []
    for path, domain in space.items():
        try:
            if is_setting(path):
                found[path] = checked_domain(path, domain)
        except StudyError as error:
            mistakes.append((("space", path), str(error)))
    if mistakes:
        raise Mistakes(mistakes)
    return found


def sizes_of(domains: Mapping[str, Domain]) -> tuple[int, ...]:
    """The batch sizes of the settings' domains, or the smallest and the largest of a range; none where it is not tuned."""
    domain = domains.get(SECTION + "batch_size")
    return () if domain is None else domain.choice or domain.int_ or ()


def settings_of(training: TrainingSettings) -> dict[str, Any]:
    """The values of all settings that can be tuned, by dotted path; several averages of the weights are a list of decays."""
    ema = list(training.ema)
    values = [training.learning_rate, training.weight_decay, ema if len(ema) > 1 else ema[0], training.batch_size]
    return dict(zip(NUISANCE, values, strict=True))


def tuned(training: TrainingSettings, paths: Collection[str]) -> dict[str, Any]:
    """The values of some of the settings that can be tuned, by dotted path, in the order of `NUISANCE`."""
    return {path: value for path, value in settings_of(training).items() if path in paths}


def own_training(training: TrainingSettings, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that differ from a study's training; raises StudyError for a path or a value that cannot be tuned."""
    common, given = settings_of(training), _checked(dict(values))
    return {path: given[path] for path in NUISANCE if path in given and given[path] != common[path]}


def trained_with(training: TrainingSettings, own: Mapping[str, Any]) -> TrainingSettings:
    """A study's training with the own values of a trial."""
    if not own:
        return training
    changed = {path.removeprefix(SECTION): value for path, value in own.items()}
    checked = TrainingSettings.model_validate(changed)
    return training.model_copy(update={name: getattr(checked, name) for name in changed})


def candidate_key(digest: str, training: Mapping[str, Any]) -> str:
    """What a candidate is known by: the digest of its architecture, and of its own training settings where it has some."""
    if not training:
        return digest
    text = json.dumps(dict(training), sort_keys=True)
    return f"{digest}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def in_words(values: Mapping[str, Any]) -> str:
    """Settings as text, such as `learning_rate 0.003, batch_size 32`."""
    return ", ".join(f"{path.removeprefix(SECTION)} {_number(value)}" for path, value in values.items())


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Candidate:
    """What a search trains: an architecture, and the training settings in which it differs from the study."""

    spec: ModelSpec
    training: Mapping[str, Any]

    @property
    def key(self) -> str:
        """See `candidate_key`."""
        return candidate_key(self.spec.digest, self.training)
