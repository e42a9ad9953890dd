"""Images of the `datasets` library, given by a name on its hub or by a local folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.data.images import centre_crop
from space.errors import DataError
from space.files import first_line


class HubImages:
    """One split of a data set with an image column and an optional column of class labels; images are centre-cropped as in ADM.

    A local folder is one that `save_to_disk` wrote, or any that `load_dataset` accepts.

    Raises:
        DataError: The package is not installed, or the data set cannot be loaded, has no images or lacks labels.
    """

    def __init__(self, name: str, split: str, size: int) -> None:
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
        self._dataset, self._image, self.size = dataset, columns["Image"], size
        label = columns["ClassLabel"]
        self.class_names: tuple[str, ...] = tuple(dataset.features[label].names) if label else ("all",)
        self.labels: NDArray[np.int64] = np.array(dataset[label] if label else [0] * len(dataset), dtype=np.int64)
        if len(self.labels) and self.labels.min() < 0:
            raise DataError(
                f"the data set {name}, split {split}, has no labels; sample {int(np.argmin(self.labels))} has {self.labels.min()}"
            )
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


def _column(dataset: Any, kind: str) -> str | None:
    """The first column whose feature is of a class with this name, or None."""
    return next((name for name, feature in dataset.features.items() if type(feature).__name__ == kind), None)
