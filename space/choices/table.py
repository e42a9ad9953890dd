"""Tables with one entry for every value of a choice, and sums over them for one spec or for many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, TypeVar, get_args

from space.choices.inputs import Choice, Number

K = TypeVar("K")
V = TypeVar("V")


def covering(literal: Any, table: Mapping[K, V]) -> Mapping[K, V]:
    """The table, after a check that it has an entry for every value of a Literal and no others.

    Raises:
        TypeError: When a value has no entry, or an entry is of no value.
    """
    differing = set(get_args(literal)) ^ set(table)
    if differing:
        raise TypeError(f"a choice needs one name and one entry in each of its tables; without one: {sorted(map(str, differing))}")
    return table


def rules_of(choice: Choice, rules: Mapping[Any, V | None]) -> Iterator[tuple[V, Number]]:
    """Each distinct rule of a table, with 1 where the choice follows it and 0 where it does not.

    Args:
        choice: The choice at one stage.
        rules: The rule of each value; None for a value that needs none.
    """
    for rule in dict.fromkeys(rules.values()):
        if rule is not None:
            followed = choice(partial(_follows, rules, rule))
            # A rule that no spec follows is left out.
            if not isinstance(followed, int) or followed:
                yield rule, followed


def _follows(rules: Mapping[Any, Any], rule: Any, value: Any) -> int:
    return int(rules[value] is rule)
