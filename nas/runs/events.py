"""The events of a ledger: one frozen class per kind, and the table by which lines become events.

The ledger is the whole record of a run. `nas.runs.run` applies its events to the run, `nas.search.state` to the state of the
search.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, get_args

from pydantic import AliasChoices, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from nas.data.header import Header
from nas.runs.records import Confirmation, Rejected, Report, State
from nas.study.nuisance import OwnTraining
from nas.study.settings import RENAMED
from nas.study.study import Study
from space.document import sentence_of
from space.errors import RunError
from space.frozen import Frozen
from space.spec import ModelSpec, current_words

SCHEMA: Literal[3] = 3
"""The schema of new ledgers. Ledgers of schema 2 are read too; their renamed keys are translated (`_in_todays_words`)."""


class LedgerEvent(Frozen):
    """The base of all events: their kind, and the time in UTC at which they were written (ISO 8601), empty before that.

    Values are not converted between types: a text is not read as a number.
    """

    model_config = ConfigDict(strict=True)

    event: str
    time: str = ""

    def plain(self) -> dict[str, Any]:
        """The event as plain JSON data: its kind first, its time last, without optional keys that hold their default."""
        fields = type(self).model_fields
        data = self.model_dump(mode="json", exclude={"event", "time"})
        kept = {
            name: value
            for name, value in data.items()
            if (field := fields.get(name)) is None or field.is_required() or value != field.get_default(call_default_factory=True)
        }
        return {"event": self.event, **kept, "time": self.time}


class RunBegan(LedgerEvent):
    """The first event: the study, and the header of the data that it began with."""

    event: Literal["run"] = "run"
    schema_version: Annotated[
        Literal[2, 3], Field(validation_alias=AliasChoices("schema", "schema_version"), serialization_alias="schema")
    ]
    study: Study
    data: Header


class StudyChanged(LedgerEvent):
    """The run is resumed with a study that differs in keys that may change."""

    event: Literal["study"] = "study"
    study: Study


class TrialBegan(LedgerEvent):
    """A new trial: one architecture with one seed.

    `variant` is the architecture's number, which its replicates share; `params` the values of the space's parameters, None for an
    architecture from outside the space; `rungs` the rungs of the budget; `rejected` the proposals that were refused on the way to
    this one; `attrs` the sampler's notes; `training` the training settings in which it differs from the study, by dotted path.
    """

    event: Literal["trial"] = "trial"
    trial: int
    variant: int
    params: dict[str, Any] | None
    spec: ModelSpec
    digest: str
    seed: int
    rungs: int
    rejected: tuple[Rejected, ...]
    attrs: dict[str, Any] = Field(default_factory=dict)
    training: OwnTraining = Field(default_factory=dict)


class Reported(Report, LedgerEvent):
    """A trial's report at a milestone; `reused` names the run whose report it is, if it was reused."""

    event: Literal["report"] = "report"
    reused: str | None = None

    @property
    def report(self) -> Report:
        """The report alone."""
        return Report.model_construct(**{name: getattr(self, name) for name in Report.model_fields})


class Promoted(LedgerEvent):
    """A variant that waited at a rung (counted from 1) may train on."""

    event: Literal["promote"] = "promote"
    variant: int
    rung: int


class TrialEnded(LedgerEvent):
    """A trial ended; a FAILED one says why."""

    event: Literal["end"] = "end"
    trial: int
    state: State
    reason: str = ""
    trace: str = ""


class HandedOutAgain(LedgerEvent):
    """A trial whose worker was lost, or that ran out of memory, is trained again from its last checkpoint."""

    event: Literal["again"] = "again"
    trial: int
    reason: str
    alone: bool
    """Whether the trial gets a whole GPU for itself."""
    lost: bool
    """Whether its worker died."""


class FinishFailed(LedgerEvent):
    """The finish of a trial cannot be resumed; the trial itself stays COMPLETE."""

    event: Literal["finish-failed"] = "finish-failed"
    trial: int
    reason: str
    trace: str = ""


class Exported(LedgerEvent):
    """A trial was exported to `folder` (relative to the run directory) after training `macs` multiply-accumulates.

    `samples` and `fid` are the settings with which the model was sampled and scored; `without_samples` says why it was not.
    """

    event: Literal["export"] = "export"
    trial: int
    folder: str
    macs: int
    samples: dict[str, Any] | None = None
    fid: dict[str, Any] | None = None
    without_samples: str | None = None


class CandidatesChosen(LedgerEvent):
    """The candidates of a confirmation, by the trials that represent them, best first; written before any fresh seed is drawn."""

    event: Literal["candidates"] = "candidates"
    trials: Annotated[tuple[int, ...], Field(strict=False, min_length=1)]


class Confirmed(LedgerEvent):
    """What the fresh seeds say of the candidates; `chosen` is the trial that is finished and exported."""

    event: Literal["confirmed"] = "confirmed"
    chosen: int
    result: Confirmation


class SpaceSpent(LedgerEvent):
    """No new architecture is left in the space."""

    event: Literal["spent"] = "spent"


Event = (
    RunBegan
    | StudyChanged
    | TrialBegan
    | Reported
    | Promoted
    | TrialEnded
    | HandedOutAgain
    | FinishFailed
    | Exported
    | SpaceSpent
    | CandidatesChosen
    | Confirmed
)

KINDS: dict[str, type[Event]] = {kind.model_fields["event"].default: kind for kind in get_args(Event)}
"""The event class of every kind."""


def parse_event(line: bytes, where: str, header: Header | None) -> Event:
    """The event that a line of a ledger holds.

    Args:
        line: One JSON object.
        where: `file:line`, for the message.
        header: The header of the run's data, which a study is checked against; None in the first line, which brings it.

    Raises:
        RunError: When the line is not JSON or of an unknown kind or schema, or when a key is missing or has an invalid value.
    """
    try:
        raw = from_json(line)
        kind = KINDS[raw["event"]]
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{where} is damaged; restore the file from a copy, or move the directory away to start anew") from None
    if kind is RunBegan and raw.get("schema") not in (2, SCHEMA):
        file = where.rpartition(":")[0]
        raise RunError(
            f"{file} has schema {raw.get('schema')}, but this version reads {SCHEMA} and 2; use the version that wrote it"
        )
    current = _in_todays_words(raw)
    try:
        if kind is RunBegan and isinstance(raw.get("data"), dict):
            header = Header.model_validate(raw["data"])
        return kind.model_validate_json(line if current is raw else json.dumps(current), context={"header": header})
    except ValidationError as error:
        problem = sentence_of(error, kind, current)
    if kind in (RunBegan, StudyChanged):
        raise RunError(f"{where}: the run's study is not valid here ({problem}); use the version that made the run")
    raise RunError(f"{where}: {problem}; restore the file from a copy, or move the directory away to start anew")


def _in_todays_words(raw: dict[str, Any]) -> dict[str, Any]:
    """An event of an older ledger under today's keys; an event without renamed keys is returned as it is."""
    current = current_words(raw) if not raw.keys().isdisjoint({"study", "spec"}) else raw
    study = current.get("study")
    if isinstance(study, dict):
        for section, names in RENAMED.items():
            if isinstance(study.get(section), dict):
                study[section] = {names.get(key, key): value for key, value in study[section].items()}
    return raw if current == raw else current
