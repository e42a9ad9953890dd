"""The domains that a search space is written in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from space.errors import StudyError
from space.frozen import Frozen

Value = Any
"""A value of a spec: text, number or boolean."""


class Domain(Frozen):
    """The values that a parameter can take: exactly one of `choice`, `int`, `float` or `each`.

    In YAML a bare list is a choice. `int: [low, high]` and `float: [low, high]` include both ends; `step` (int) and `log` refine
    them. `each` gives every stage a parameter with this domain. `when` names values that other searched paths must have; otherwise
    the parameter is inactive and the spec keeps the base spec's value.
    """

    choice: tuple[Value, ...] | None = Field(default=None, min_length=1)
    int_: tuple[int, int] | None = Field(default=None, alias="int")
    float_: tuple[float, float] | None = Field(default=None, alias="float")
    each: Domain | None = None
    step: int = Field(default=1, ge=1, le=10**9)
    log: bool = False
    when: dict[str, Value] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _bare_list(cls, data: Any) -> Any:
        return {"choice": data} if isinstance(data, (list, tuple)) else data

    @model_validator(mode="after")
    def _is_one_domain(self) -> Domain:
        kinds = [name for name, value in self._kinds().items() if value is not None]
        if len(kinds) != 1:
            raise StudyError(f"a domain is exactly one of choice, int, float and each, not {' and '.join(kinds) or 'none of them'}")
        bounds = self.int_ or self.float_
        if bounds and bounds[0] > bounds[1]:
            raise StudyError(f"the range [{bounds[0]}, {bounds[1]}] is empty; write the smaller number first")
        if self.log and (not bounds or bounds[0] <= 0):
            raise StudyError("log needs an int or float range above 0")
        if self.step != 1 and (self.int_ is None or self.log):
            raise StudyError("step needs an int range without log")
        if self.each is not None and (self.each.each is not None or self.each.when):
            raise StudyError("each takes a plain domain; write its condition beside each")
        if self.choice is not None and any(value in ([], ()) for value in self.choice):
            raise StudyError(f"the choice {list(self.choice)} holds an empty list; a list has one value per stage")
        if self.choice is not None and len({repr(value) for value in self.choice}) < len(self.choice):
            raise StudyError(f"the choice {list(self.choice)} holds a value twice")
        return self

    def _kinds(self) -> dict[str, Any]:
        return {"choice": self.choice, "int": self.int_, "float": self.float_, "each": self.each}

    @property
    def values(self) -> int | None:
        """The number of values; None for a float range."""
        if self.choice is not None:
            return len(self.choice)
        if self.int_ is not None:
            return (self.int_[1] - self.int_[0]) // self.step + 1
        return None

    @property
    def first(self) -> Value:
        """One of the domain's values."""
        bounds = self.int_ or self.float_
        return self.choice[0] if self.choice is not None else bounds[0] if bounds else None

    def own(self, value: Value, plain: Callable[[Value], Value] = lambda value: value) -> Value | None:
        """The domain's value that equals a given one, in the type in which the domain holds it; None when it has none.

        `plain` brings values that are written differently, and are the same, to one form.
        """
        if self.choice is not None:
            wanted = plain(value)
            # True and 1 are equal in Python, but are different choices; 2 and 2.0 are the same.
            return next((k for k in self.choice if plain(k) == wanted and isinstance(k, bool) == isinstance(wanted, bool)), None)
        value = plain(value)
        if isinstance(value, (bool, str, list, tuple)) or value is None:
            return None
        if self.int_ is not None:
            low, high = self.int_
            return int(value) if value == int(value) and low <= value <= high and (value - low) % self.step == 0 else None
        assert self.float_ is not None, "`each` is resolved to one domain per stage"
        return float(value) if self.float_[0] <= value <= self.float_[1] else None

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[Any]:
        """Random values, uniform (in the logarithm with `log`); for a choice, their indices in it."""
        if self.choice is not None:
            return rng.integers(len(self.choice), size=count)
        bounds = self.int_ or self.float_
        assert bounds is not None, "`each` is resolved to one domain per stage"
        low, high = bounds
        if self.int_ is not None and not self.log:
            return int(low) + self.step * rng.integers((int(high) - int(low)) // self.step + 1, size=count)
        if self.int_ is not None:
            drawn = np.exp(rng.uniform(math.log(low - 0.5), math.log(high + 0.5), size=count))
            return np.clip(np.rint(drawn), low, high).astype(np.int64)
        if self.log:
            return np.exp(rng.uniform(math.log(low), math.log(high), size=count))
        return rng.uniform(low, high, size=count)


class Range(Frozen):
    """A closed interval, unbounded where a bound is left out."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _is_not_empty(self) -> Range:
        if self.min is None and self.max is None:
            raise StudyError("a constraint needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise StudyError(f"min {self.min:g} is above max {self.max:g}; exchange them")
        return self

    def violation(self, value: Any) -> Any:
        """The distance of a number, or of each in an array, from the interval, relative to the bound it breaks; 0 inside."""
        over = 0.0 if self.max is None else np.maximum(value - self.max, 0.0) / (abs(self.max) or 1.0)
        under = 0.0 if self.min is None else np.maximum(self.min - value, 0.0) / (abs(self.min) or 1.0)
        return over + under

    def __str__(self) -> str:
        if self.min is None:
            return f"at most {self.max:g}"
        return f"at least {self.min:g}" if self.max is None else f"{self.min:g} to {self.max:g}"
