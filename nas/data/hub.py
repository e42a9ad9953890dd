"""Images of the `datasets` library, given by a name on its hub or by a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nas.data.decode import upright_rgb
from nas.data.pictures import Pictures
from space.errors import DataError
from space.files import first_line


class HubImages(Pictures):
    """One split of a data set with an image column and an optional column of class labels; images are centre-cropped as in ADM.

    A local folder is one that `save_to_disk` wrote, or any that `load_dataset` accepts.

    Raises:
        DataError: The package is not installed, or the data set cannot be loaded, has no images or lacks labels.
    """

    def __init__(self, name: str, split: str, size: int, skip_damaged: bool = False) -> None:
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
        columns = {kind: _column(dataset, kind) for kind in ("Image", "ClassLabel")}
        if columns["Image"] is None:
            raise DataError(f"the data set {name} has no column of images; it has {', '.join(dataset.column_names)}")
        label = columns["ClassLabel"]
        self.class_names = tuple(dataset.features[label].names) if label else ("all",)
        labels: NDArray[np.int64] = np.array(dataset[label] if label else [0] * len(dataset), dtype=np.int64)
        if len(labels) and labels.min() < 0:
            raise DataError(
                f"the data set {name}, split {split}, has no labels; sample {int(np.argmin(labels))} has {labels.min()}"
            )
        super().__init__(f"{name}, split {split}", labels, size, skip_damaged)
        # Not decoded by the library, which would stop at the first damaged one and does not say which that is.
        feature, column = dataset.features[columns["Image"]], columns["Image"]
        self._pictures = dataset.with_format(None).select_columns(column).cast_column(column, datasets.Image(decode=False))
        self._column, self._mode = column, feature.mode
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


def _column(dataset: Any, kind: str) -> str | None:
    """The first column whose feature is of a class with this name, or None."""
    return next((name for name, feature in dataset.features.items() if type(feature).__name__ == kind), None)
