"""Images of the `datasets` library, given by a name on its hub or by a local folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from nas.data.decode import upright_rgb
from nas.data.labels import classes_of
from nas.data.pictures import Pictures
from space.errors import DataError
from space.files import first_line

PLAIN = re.compile("u?int|string|large_string")
"""Types of plain values that may be labels."""


class HubImages(Pictures):
    """One split of a data set with a column of images and, unless all are of one class, a column of labels.

    Images are centre-cropped as in ADM. Without names for the columns, the only column of images is taken, and the only one of
    class labels or the plain one called `label`; where that leaves a choice, it is the user's. Classes without samples are left
    out.

    A local folder is one that `save_to_disk` wrote, or any that `load_dataset` accepts.

    Raises:
        DataError: The package is not installed, or the data set cannot be loaded, has no images, lacks labels or leaves a choice.
    """

    def __init__(self, name: str, split: str, size: int, columns: Columns | None = None, skip_damaged: bool = False) -> None:
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
        dataset = dataset.with_format(None)
        columns, where = columns or Columns(), f"the data set {name}, split {split},"
        image = columns.of_images(dataset.features, where)
        label = columns.of_labels(dataset.features, where)
        declared = tuple(dataset.features[label].names) if label and _kind(dataset.features[label]) == "ClassLabel" else ()
        values = list(dataset[label]) if label else ["all"] * len(dataset)
        labels, self.class_names = classes_of(values, where + (f" column {label}" if label else ""), declared)
        self.without_samples = tuple(name for name in declared if name not in self.class_names)
        """Classes that the data set declares and has no samples of."""
        super().__init__(f"{name}, split {split}", labels, size, skip_damaged)
        # Not decoded by the library, which would stop at the first damaged one and does not say which that is.
        self._pictures = dataset.select_columns(image).cast_column(image, datasets.Image(decode=False))
        self._column, self._mode = image, dataset.features[image].mode
        self._all_labels = labels

    def _name(self, number: int) -> str:
        return f"sample {number}"

    def _raw(self, number: int) -> bytes | None:
        from datasets.utils.file_utils import xopen  # opens addresses too

        picture = self._pictures[number][self._column]
        if picture is None or picture["bytes"] is not None or picture["path"] is None:
            return None if picture is None else picture["bytes"]
        with xopen(picture["path"], "rb") as file:
            content: bytes = file.read()
        return content

    def _opened(self, raw: bytes) -> Image.Image:
        """In the mode that the data set declares for its images, when it declares one."""
        image = upright_rgb(super()._opened(raw))
        return image.convert(self._mode) if self._mode else image

    def _fact(self, number: int) -> bytes:
        """The label; the library's own fingerprint differs between two loads of one folder."""
        return f"{self._all_labels[number]},".encode()


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
