"""Amounts of compute and of parameters as people write them: `1.5 TFLOPs`, `30 MFLOPs ± 5 %`, `33 M`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from space.errors import StudyError

PREFIXES = {"M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
"""Factors of the prefixes that amounts are written with, in rising order."""

# More than six digits before the point are taken for a typing error.
_NUMBER = r"([0-9]{1,6}(?:\.[0-9]+)?)"
_COMPUTE = re.compile(rf"\s*{_NUMBER}\s*([MGTPE])FLOPs?\s*")
_SPREAD = re.compile(rf"(.*?)\s*(?:±|\+/?-)\s*{_NUMBER}\s*%\s*")

_EXAMPLES = {"gflops": "28.5 MFLOPs", "train_gflops": "90 MFLOPs", "params_m": "33 M"}


def macs(value: Any) -> Any:
    """An amount such as `1.5 TFLOPs` in multiply-accumulates; anything but text as it is; raises StudyError for other text."""
    if not isinstance(value, str):
        return value
    match = _COMPUTE.fullmatch(value)
    if not match:
        raise StudyError(f"'{value}' is not an amount of compute such as '1.5 TFLOPs'")
    return round(float(match[1]) * PREFIXES[match[2]])


def macs_per_second(rate: str) -> float:
    """A speed such as `40 TFLOP/s` in multiply-accumulates a second; raises StudyError for other text."""
    match = re.fullmatch(rf"\s*{_NUMBER}\s*([MGTPE])FLOPs?\s*/\s*s\s*", rate)
    if not match or not float(match[1]):
        raise StudyError(f"'{rate}' is not a speed above 0 such as '40 TFLOP/s' (multiply-accumulates)")
    return float(match[1]) * PREFIXES[match[2]]


def cost_range(metric: str, given: Any) -> Any:
    """The range of a cost in the metric's own unit (GFLOPs, million parameters).

    Args:
        metric: The cost; amounts of an unknown one are left as they are.
        given: A mapping of `min` and `max`, each a number or an amount such as `28.5 MFLOPs` or `33 M`; or an amount with a spread,
            such as `30 MFLOPs ± 5 %`.

    Raises:
        StudyError: For text that is no such amount.
    """
    if metric not in _EXAMPLES:
        return given
    if isinstance(given, Mapping):
        return {key: _amount(metric, value) if key in ("min", "max") else value for key, value in given.items()}
    if not isinstance(given, str):
        return given
    spread = _SPREAD.fullmatch(given)
    if not spread:
        example = _EXAMPLES[metric]
        raise StudyError(f"'{given}' is no range; write '{example} ± 5 %', or {{min: {example}}}, {{max: {example}}} or both")
    middle, share = _amount(metric, spread[1]), float(spread[2]) / 100
    if not isinstance(middle, int | float):
        raise StudyError(f"'{given}' is no range; write '{_EXAMPLES[metric]} ± 5 %'")
    return {"min": middle * (1 - share), "max": middle * (1 + share)}


def _amount(metric: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if plain := re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*", value):
        return float(plain[1])
    if metric == "params_m":
        match = re.fullmatch(rf"\s*{_NUMBER}\s*([MG])(?:\s*params?)?\s*", value)
        if match:
            return float(match[1]) * (1 if match[2] == "M" else 1000)
    elif _COMPUTE.fullmatch(value):
        return macs(value) / 1e9
    raise StudyError(f"'{value}' is no amount of {metric}; write a number, or '{_EXAMPLES[metric]}'")
