"""The cost of many specs at once, through the same formulas as the cost of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import numpy as np

from space.array import Array
from space.choices.attention import TOKENS, Tokens
from space.choices.feed_forward import FEED_FORWARDS
from space.choices.inputs import Choice, StageInputs
from space.choices.position import POSITIONS
from space.costs.formulas import CostInputs, part_counters
from space.costs.points import Points
from space.spec import PER_STAGE
from space.stage import stage_place

_SUMS = ("params", "params_training", "macs", "train_macs", "reparam_macs")


class CostTable:
    """The cost of every point, as arrays with one row per point.

    `buildable` marks the points that are valid architectures; the costs of the others mean nothing. Names and units are those of
    `space.costs.cost.Cost`.
    """

    def __init__(self, points: Points) -> None:
        self.points = points
        self.buildable: Array = np.zeros(points.count, dtype=bool)
        self.params, self.params_training, self.macs, self.train_macs, self.reparam_macs = np.zeros(
            (5, points.count), dtype=np.int64
        )
        counts = points.stage_counts()
        for stages in np.unique(counts):
            rows = np.flatnonzero(counts == stages)
            if stages % 2:
                self._fill(rows, points if len(rows) == points.count else points.take(rows), int(stages))

    def _fill(self, rows: Array, points: Points, stages: int) -> None:
        cost_inputs, self.buildable[rows] = _cost_inputs(points, stages)
        sums: dict[str, Any] = dict.fromkeys(_SUMS, 0)
        for counter in part_counters(cost_inputs):
            macs = counter.linear_macs + counter.convolution_macs + counter.attention_macs + counter.elementwise_macs
            parts = (counter.params, counter.params_training, macs, counter.train_macs, counter.reparam_macs)
            for name, value in zip(_SUMS, parts, strict=True):
                sums[name] = sums[name] + value
        for name, value in sums.items():
            getattr(self, name)[rows] = value

    def __len__(self) -> int:
        return self.points.count

    @property
    def gflops(self) -> Array:
        """Inference cost, folded form, batch 1, in 1e9 multiply-accumulates."""
        return self.macs / 1e9

    @property
    def train_gflops(self) -> Array:
        """Forward and backward of one training sample, in 1e9 multiply-accumulates."""
        return self.train_macs / 1e9

    @property
    def params_m(self) -> Array:
        """Parameters of the folded form, in millions."""
        return self.params / 1e6

    def step_macs(self, batch_size: int) -> Array:
        """Multiply-accumulates of one training step."""
        return self.train_macs * batch_size + 3 * self.reparam_macs


def _is(value: Any) -> Callable[[Any], int]:
    return lambda given: int(given == value)


def _cost_inputs(points: Points, stages: int) -> tuple[CostInputs, Any]:
    """The inputs of the cost formulas for points with an equal number of stages, and which of them can be built."""
    channels, patch, size = (points.number(path) for path in ("channels", "patch", "input_size"))
    outputs = points.base.in_channels * (1 + points.number("learned_variance"))
    cost_inputs = CostInputs(
        channels=channels,
        grid=size // patch,
        patch_inputs=points.base.in_channels * patch**2,
        patch_outputs=outputs * patch**2,
        label_rows=points.number("num_classes") + points.number("null_class"),
        conv_stem=points.number("stem", _is("conv")),
        add_skips=points.number("skip", _is("add")),
        level_modulation=points.number("modulation", _is("level")),
        stages=tuple(_stage(points, index, stages, channels, size // patch) for index in range(stages)),
    )
    conditions = [points.fits(path, stages) for path in PER_STAGE]
    if stages > 1:
        conditions.append(channels % 2 == 0)
    conditions.append((points.number("absolute_position", _is("sincos")) == 0) | (channels % 4 == 0))
    for index, stage in enumerate(cost_inputs.stages):
        conditions += _stage_conditions(points, index, stage, size, patch)
    return cost_inputs, _all(conditions)


def _stage(points: Points, index: int, stages: int, channels: Any, grid: Any) -> StageInputs:
    def chosen(path: str, effective: Any = 1) -> Choice:
        return lambda encode: points.at_stage(path, index, encode) * effective

    where = stage_place(index, stages)
    width, positions = channels << where.condition, (grid >> where.level) ** 2
    tokens, feed_forward = chosen("attention.tokens"), chosen("feed_forward.kind")
    reparam = feed_forward(lambda kind: int(FEED_FORWARDS[kind].reparam)) * points.number("feed_forward.reparam")
    return StageInputs(
        name=where.name,
        level=where.level,
        condition=where.condition,
        layers=points.number("block_layers") * points.at_stage("depths", index),
        width=width,
        positions=positions,
        heads=points.at_stage("heads", index),
        keys=positions // _factor(points, index) ** 2,
        tokens=tokens,
        downsampler=chosen("attention.downsampler", tokens(_downsamples)),
        kernel=points.number("attention.kernel"),
        similarity=chosen("attention.similarity"),
        position=chosen("attention.position"),
        feed_forward=feed_forward,
        hidden=np.asarray(width * points.number("feed_forward.ratio", float)).astype(np.int64),
        reparam=reparam,
        branches=reparam * points.number("feed_forward.branches"),
    )


def _downsamples(tokens: Tokens) -> int:
    return int(TOKENS[tokens].downsamples)


def _factor(points: Points, index: int) -> Any:
    downsampled = points.at_stage("attention.tokens", index, _downsamples)
    return np.where(downsampled, points.at_stage("attention.factor", index), 1)


def _stage_conditions(points: Points, index: int, stage: StageInputs, size: Any, patch: Any) -> Iterable[Any]:
    """The conditions that a stage must meet: the checks of ModelSpec, one by one."""
    yield size % ((_factor(points, index) << stage.level) * patch) == 0
    yield stage.width % stage.heads == 0
    yield stage.width // stage.heads % stage.position(lambda value: POSITIONS[value].head_unit) == 0
    yield stage.hidden >= 1
    yield (stage.reparam == 0) | (stage.hidden % 2 == 0)


def _all(conditions: list[Any]) -> Any:
    return reduce(np.logical_and, conditions)
