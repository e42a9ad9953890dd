"""The feature extractors by name."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch

from nas.evaluation.extractor import Extractor, usable
from nas.study.choices import ExtractorName
from space.document import nearest
from space.errors import DataError


def extractor_named(name: str, weights: Path | None = None, device: str | torch.device = "cpu") -> Extractor:
    """The feature extractor of a name.

    Args:
        name: `clothes` or `inception`.
        weights: A file in place of the extractor's own weights, which for `inception` are downloaded.
        device: The device to run on.

    Raises:
        DataError: The name is unknown, the device cannot be used, an optional package is missing, or the weights are missing,
            damaged or of other shapes.
    """
    # Imported on demand: `inception` needs a large optional package.
    if name == "clothes":
        from nas.evaluation.clothes import Clothes

        return Clothes(weights, usable(device))
    if name == "inception":
        from nas.evaluation.inception import Inception

        return Inception(weights, usable(device))
    raise DataError(f"no feature extractor '{name}'{nearest(name, get_args(ExtractorName))}")
