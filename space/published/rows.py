"""Published tables: rows of printed numbers, each with the training and scoring of its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

from space.document import nearest
from space.errors import ToolkitError


@dataclass(frozen=True)
class Protocol:
    """The training and scoring of a model; None where a value is not stated, or where the rows of a table differ."""

    data: str | None
    """The data of training and of the reference scores, such as `ImageNet 256×256`."""
    batch_size: int | None
    train_steps: int | None
    samples: int | None
    """Images drawn for the scores."""
    sampling_steps: int | None
    guidance: float | None
    """Scale of classifier-free guidance; 1 is none."""

    def differences(self, other: Protocol) -> tuple[str, ...]:
        """The names of the fields that both state and state differently, in the order above.

        >>> paper = Protocol("ImageNet 256×256", 256, 400_000, 50_000, 250, 1.0)
        >>> paper.differences(Protocol("ImageNet 256×256", 256, 100_000, 50_000, None, 1.0))
        ('train_steps',)
        """
        both = ((field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return tuple(name for name, mine, theirs in both if None not in (mine, theirs) and mine != theirs)


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table: numbers as printed, an empty text where the table prints none.

    It is one training run with one seed: neither paper prints error bars.
    """

    label: str
    """Names the row in its table: as printed or, where several rows are printed alike, followed by what sets them apart."""
    printed: str
    """The name as printed."""
    gflops: str
    """Inference, multiply-accumulates / 1e9, batch 1."""
    params_m: str
    """Parameters in millions."""
    scores: Mapping[str, str]
    """Of fid, sfid, is, precision and recall (both in 0 to 1) those that are printed."""
    train_steps_k: str
    """Thousands of training steps; empty where nothing was trained."""
    cfg: str
    """Scale of classifier-free guidance; 1.0, which is none, where the table says nothing."""
    resolution: int
    """Height and width of the images, in pixels."""
    steps_per_s: str
    """Training steps of 256 images per second, on the hardware that `note` names."""
    block: str
    """The conditioning of DiT's block, such as `adaLN-Zero`, in DiT's tables."""
    note: str
    """Other statements of the table about the row."""
    source: str
    digitised: bool
    """Whether GFLOPs and FID are measured off a figure (about ±0.3 FID) and not printed."""

    @property
    def protocol(self) -> Protocol:
        """The training and scoring of the row's model. Both papers use batches of 256, 50,000 samples of 250 DDPM steps."""
        # SiT samples by a stochastic differential equation, and its table does not state the number of steps.
        sampling_steps = None if self.printed.startswith("SiT") else 250
        train_steps = 1000 * int(self.train_steps_k) if self.train_steps_k else None
        return Protocol(f"ImageNet {self.resolution}×{self.resolution}", 256, train_steps, 50_000, sampling_steps, float(self.cfg))


@dataclass(frozen=True)
class PublishedTable:
    """A published table, or a figure whose points are rows."""

    name: str
    """As in `published_table(name)`, such as `udit_table9`."""
    title: str
    """As the paper has it, such as `U-DiT Table 9`."""
    rows: tuple[PublishedRow, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the rows, top to bottom."""
        return tuple(self._by_label)

    @cached_property
    def protocol(self) -> Protocol:
        """The values that the protocols of all rows share; None where rows differ."""
        common = {}
        for field in fields(Protocol):
            values = {getattr(row.protocol, field.name) for row in self.rows}
            common[field.name] = values.pop() if len(values) == 1 else None
        return Protocol(**common)

    def row(self, label: str) -> PublishedRow:
        """The row with exactly this label; raises ToolkitError, naming the nearest, when there is none."""
        if label in self._by_label:
            return self._by_label[label]
        alike = [row.label for row in self.rows if row.printed == label]
        if alike:
            raise ToolkitError(
                f"{self.title} prints '{label}' in {len(alike)} rows; name one of them: {', '.join(map(repr, alike))}"
            )
        raise ToolkitError(f"{self.title} ({self.name}) has no row '{label}'{nearest(label, self.labels)}")

    @cached_property
    def _by_label(self) -> dict[str, PublishedRow]:
        return {row.label: row for row in self.rows}
