"""Images of the `datasets` library, given by a name on its hub or by a local folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.data.images import centre_crop
from nas.data.labels import classes_of
from space.errors import DataError
from space.files import first_line

PLAIN = re.compile("u?int|string|large_string")
"""Types of plain values that may be labels."""


class HubImages:
    """One split of a data set with a column of images and, unless all are of one class, a column of labels.

    Images are centre-cropped as in ADM. Without names for the columns, the only column of images is taken, and the only one of
    class labels or the plain one called `label`; where that leaves a choice, it is the user's. Classes without samples are left
    out.

    A local folder is one that `save_to_disk` wrote, or any that `load_dataset` accepts.

    Raises:
        DataError: The package is not installed, or the data set cannot be loaded, has no images, lacks labels or leaves a choice.
    """

    def __init__(self, name: str, split: str, size: int, columns: Columns | None = None) -> None:
        try:
            import datasets
        except ImportError:
            raise DataError("reading a data set of the hub needs the package datasets; pip install 'udit-nas[datasets]'") from None
        try:
            local = Path(name)
            dataset: Any
            if (local / "dataset_info.json").exists() or (local / "dataset_dict.json").exists():
                dataset = datasets.load_from_disk(name)
                dataset = dataset[split] if isinstance(dataset, datasets.DatasetDict) else dataset
            else:
                dataset = datasets.load_dataset(name, split=split)
        except Exception as error:  # the library's own errors have no common base
            raise DataError(f"the data set {name}, split {split}, cannot be loaded: {first_line(error)}") from None
        self._dataset, self.size = dataset, size
        columns, where = columns or Columns(), f"the data set {name}, split {split},"
        self._image = columns.of_images(dataset.features, where)
        label = columns.of_labels(dataset.features, where)
        declared = tuple(dataset.features[label].names) if label and _kind(dataset.features[label]) == "ClassLabel" else ()
        values = list(dataset[label]) if label else ["all"] * len(dataset)
        self.labels, self.class_names = classes_of(values, where + (f" column {label}" if label else ""), declared)
        self.without_samples = tuple(name for name in declared if name not in self.class_names)
        """Classes that the data set declares and has no samples of."""
        # The library's own fingerprint differs between two loads of one folder.
        self.digest = hashlib.sha256(f"{name}/{split}/{len(dataset)}/{self.labels.tobytes().hex()}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, first: int, end: int) -> NDArray[np.uint8]:
        """Images first … end - 1, (n, 3, size, size)."""
        pictures = self._dataset[first:end][self._image]
        if None in pictures:
            raise DataError(f"sample {first + pictures.index(None)} of the data set has no image; remove it from the data set")
        return np.stack([np.asarray(centre_crop(picture, self.size)).transpose(2, 0, 1) for picture in pictures])


@dataclass(frozen=True)
class Columns:
    """The columns that are read; None leaves one to what the data set has. With `one_class` labels are not read."""

    image: str | None = None
    label: str | None = None
    one_class: bool = False

    def of_images(self, features: Mapping[str, Any], where: str) -> str:
        """The column of images."""
        found = [name for name, feature in features.items() if _kind(feature) == "Image"]
        if not found:
            raise DataError(f"{where} has no column of images; it has {', '.join(features)}")
        if self.image is not None and self.image not in found:
            raise DataError(f"{where} has no column of images '{self.image}'; name {' or '.join(found)} with --image-column")
        if self.image is None and len(found) > 1:
            raise DataError(f"{where} has {len(found)} columns of images ({', '.join(found)}); name one with --image-column")
        return self.image or found[0]

    def of_labels(self, features: Mapping[str, Any], where: str) -> str | None:
        """The column of labels, None when all samples are of one class."""
        if self.one_class:
            if self.label is not None:
                raise DataError("--one-class reads no labels, so it does not go with --label-column; leave one of them out")
            return None
        classes = [name for name, feature in features.items() if _kind(feature) == "ClassLabel"]
        plain = [name for name, feature in features.items() if PLAIN.match(_kind(feature))]
        if self.label is not None:
            if self.label not in classes + plain:
                held = f"holds {_kind(features[self.label])}" if self.label in features else "does not exist"
                choice = f"name {' or '.join(classes + plain)}" if classes + plain else "use --one-class"
                raise DataError(f"{where} column {self.label} {held}, not class labels, whole numbers or text; {choice}")
            return self.label
        if not classes and "label" in plain:
            return "label"
        if len(classes) > 1 or (plain and not classes):
            choice = ", ".join(classes or plain)
            raise DataError(
                f"{where} may have its labels in {choice}; name one with --label-column, or ignore them with --one-class"
            )
        return classes[0] if classes else None


def _kind(feature: Any) -> str:
    """The name of a feature's class, for plain values that of their type."""
    kind = type(feature).__name__
    return str(feature.dtype) if kind == "Value" else kind
