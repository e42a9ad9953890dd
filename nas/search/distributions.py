"""Converts the domains of a space to Optuna's distributions."""

from __future__ import annotations

import json
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from space.domains.domain import Domain


def distribution(domain: Domain) -> BaseDistribution:
    """The Optuna distribution of a domain."""
    if domain.choice is not None:
        return CategoricalDistribution([encoded(value) for value in domain.choice])
    if domain.int_ is not None:
        low, high = domain.int_
        # Optuna expects the upper bound to be a value that the steps reach.
        return IntDistribution(low, high - (high - low) % domain.step, log=domain.log, step=domain.step)
    assert domain.float_ is not None, "`each` is resolved to one domain a stage"
    return FloatDistribution(*domain.float_, log=domain.log)


def encoded(value: Any) -> str | int | float | bool:
    """A value as Optuna can store it; lists become JSON text."""
    return value if isinstance(value, (str, int, float, bool)) else json.dumps(value)
