"""The choices of attention: the tokens that attend to each other, and the similarity of a query and a key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from space.choices.inputs import Number, StageInputs
from space.choices.table import covering

Tokens = Literal["all", "downsampled", "key-value"]
Similarity = Literal["dot", "cosine"]


@dataclass(frozen=True)
class TokensChoice:
    """One kind of attention; `space.model.attention.ATTENTION_MODULES` says how it is built."""

    downsamples: bool
    """Whether factor, downsampler and kernel have an effect."""
    encoded: Callable[[StageInputs], Number]
    """Queries and keys of one block that an encoding of positions acts on."""
    kept: Callable[[StageInputs], Number]
    """Elements per position that one block keeps for the backward pass, of queries, keys and values."""


@dataclass(frozen=True)
class SimilarityChoice:
    """One similarity; `space.model.attention.log_scale` builds the learned scale."""

    learned_scale: int
    """Whether it has one learned number per head."""
    normalises: int
    """Whether queries and keys are divided by their lengths."""


SIMILARITIES = covering(
    Similarity,
    {"dot": SimilarityChoice(learned_scale=0, normalises=0), "cosine": SimilarityChoice(learned_scale=1, normalises=1)},
)


def learned_scale(stage: StageInputs) -> Number:
    """Whether the similarity of a stage has one learned number per head."""
    return stage.similarity(lambda value: SIMILARITIES[value].learned_scale)


def _normalises(stage: StageInputs) -> Number:
    return stage.similarity(lambda value: SIMILARITIES[value].normalises)


def _as_many_keys(stage: StageInputs) -> Number:
    return 2 * stage.positions


def _fewer_keys(stage: StageInputs) -> Number:
    return stage.positions + stage.keys


def _kept_in_groups(stage: StageInputs) -> Number:
    """Queries, keys and values, and the length of each query and key."""
    return 3 * stage.width + 2 * stage.heads * _normalises(stage)


def _kept_of_coarse_keys(stage: StageInputs) -> Number:
    """More steps of the queries, and of the fewer keys and values."""
    unit = _normalises(stage)
    return (1 + 2 * unit) * stage.width + (2 + 2 * unit) * stage.width * stage.keys // stage.positions


TOKENS = covering(
    Tokens,
    {
        "all": TokensChoice(downsamples=False, encoded=_as_many_keys, kept=_kept_in_groups),
        "downsampled": TokensChoice(downsamples=True, encoded=_as_many_keys, kept=_kept_in_groups),
        "key-value": TokensChoice(downsamples=True, encoded=_fewer_keys, kept=_kept_of_coarse_keys),
    },
)
