"""Labelled pictures, decoded by several threads: those that cannot be read are all told at once, or left out and recorded."""

from __future__ import annotations

import hashlib
import io
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from nas.data.decode import centre_crop, upright_rgb
from nas.data.header import printable
from space.errors import DataError
from space.files import first_line

TOLD = 1000
"""At most this many unreadable pictures are named in one message."""

CHUNK = 4096
"""Pictures that are handed to the threads together when all are looked through."""

_LOG = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]


class Fault(NamedTuple):
    """Why a picture cannot be read, and whether it is the picture that is damaged rather than a disk, a network or a permission."""

    reason: str
    damaged: bool


class Pictures(ABC):
    """Labelled pictures, centre-cropped to (3, size, size), by number.

    With `skip_damaged`, damaged pictures are left out as they are met: the later ones move up, and `left_out` names them.

    Args:
        where: The name of the data set, for messages.
        labels: (N,) integers.
        size: Height and width of the cropped pictures.
        skip_damaged: Leave damaged pictures out rather than refuse them.
    """

    class_names: tuple[str, ...]

    def __init__(self, where: str, labels: NDArray[np.int64], size: int, skip_damaged: bool = False) -> None:
        self.where, self.labels, self.size, self.skip_damaged = printable(where), labels, size, skip_damaged
        self.left_out: tuple[str, ...] = ()
        """Names of the pictures that were left out."""
        self._numbers = np.arange(len(labels))
        self._reading = Lock()
        self._digest, self._digested = hashlib.sha256(), 0

    @abstractmethod
    def _name(self, number: int) -> str:
        """The name of a picture, by its number before any was left out."""

    @abstractmethod
    def _raw(self, number: int) -> bytes | None:
        """The bytes of a picture's file, or None when there is none; raises when they cannot be had."""

    @abstractmethod
    def _fact(self, number: int) -> bytes:
        """What tells a picture from another one at its place without reading it."""

    def _opened(self, raw: bytes) -> Image.Image:
        """The picture in the bytes of a file, as Pillow opens it."""
        return Image.open(io.BytesIO(raw))

    def __len__(self) -> int:
        return len(self._numbers)

    def made_of(self, end: int) -> str:
        """SHA-256, in hexadecimal, of the facts of the first `end` pictures; raises DataError when a file is missing."""
        if end < self._digested:
            self._digest, self._digested = hashlib.sha256(), 0
        for number in self._numbers[self._digested : end]:
            self._digest.update(self._fact(int(number)))
            self._digested += 1
        return self._digest.hexdigest()

    def leave_out(self, names: Sequence[str]) -> None:
        """Leave out the pictures of these names, which an earlier run of the same preparation found damaged.

        Raises:
            DataError: They are not to be left out now.
        """
        if not names:
            return
        if not self.skip_damaged:
            raise DataError(
                f"what is written of {self.where} leaves out {len(names)} damaged images, {names[0]} being the first; "
                "repeat the command with --skip-damaged, or begin anew with another --out"
            )
        wanted = set(names)
        self._drop([int(number) for number in self._numbers if printable(self._name(int(number))) in wanted])

    def read(self, start: int, stop: int) -> Pixels:
        """Pictures with the bounds of a slice, uint8 (n, 3, size, size).

        Raises:
            DataError: A picture cannot be read; the message names all such pictures from `start` on, each with its reason.
        """
        decoded: dict[int, Pixels] = {}
        # One at a time: another call must not move the pictures meanwhile. Pillow decodes without the interpreter's lock.
        with self._reading, ThreadPoolExecutor() as pool:
            while True:
                wanted = [int(number) for number in self._numbers[start:stop]]
                missing = [number for number in wanted if number not in decoded]
                if not missing:
                    break
                faults: dict[int, Fault] = {}
                for number, found in zip(missing, pool.map(self._cropped, missing), strict=True):
                    if isinstance(found, Fault):
                        faults[number] = found
                    else:
                        decoded[number] = found
                if faults and not (self.skip_damaged and all(fault.damaged for fault in faults.values())):
                    self._refuse(start, pool)
                self._drop(list(faults))
        pixels = np.empty((len(wanted), 3, self.size, self.size), dtype=np.uint8)
        for row, number in enumerate(wanted):
            pixels[row] = decoded[number]
        return pixels

    def _cropped(self, number: int) -> Pixels | Fault:
        found = self._decoded(number, self.size)
        return found if isinstance(found, Fault) else np.asarray(found).transpose(2, 0, 1)

    def _fault(self, number: int) -> Fault | None:
        found = self._decoded(number, None)
        return found if isinstance(found, Fault) else None

    def _decoded(self, number: int, size: int | None) -> Image.Image | Fault:
        """The picture, cropped to `size` when that is given, or why it cannot be read."""
        try:
            raw = self._raw(number)
        except Exception as error:  # of a file system, or of a library that fetches the file
            return Fault(getattr(error, "strerror", None) or first_line(error), damaged=False)
        if raw is None:
            return Fault("there is no image", damaged=True)
        try:
            with self._opened(raw) as image:
                return upright_rgb(image) if size is None else centre_crop(image, size)
        except MemoryError as error:
            return Fault(first_line(error), damaged=False)
        except UnidentifiedImageError:
            return Fault("not an image, or cut off at its beginning" if raw else "an empty file", damaged=True)
        except Exception as error:  # the decoders of damaged files raise almost anything
            return Fault(first_line(error), damaged=True)

    def _refuse(self, start: int, pool: ThreadPoolExecutor) -> NoReturn:
        """Raise DataError with all pictures from `start` on that cannot be read, so that they are mended in one go."""
        rest = [int(number) for number in self._numbers[start:]]
        _LOG.warning("%s: an image cannot be read; the %d that follow are read through for more", self.where, len(rest) - 1)
        faults: dict[int, Fault] = {}
        for first in range(0, len(rest), CHUNK):
            part = rest[first : first + CHUNK]
            faults |= {number: fault for number, fault in zip(part, pool.map(self._fault, part), strict=True) if fault}
        told = [f"{printable(self._name(number))} ({fault.reason})" for number, fault in list(faults.items())[:TOLD]]
        more = f" and {len(faults) - TOLD} more" if len(faults) > TOLD else ""
        advice = "restore or remove them, or leave them out with --skip-damaged"
        if not all(fault.damaged for fault in faults.values()):
            advice = "restore or remove them; --skip-damaged leaves out damaged images alone, not those that cannot be reached"
        raise DataError(f"{self.where}: {len(faults)} of {len(self)} images cannot be read: {', '.join(told)}{more}; {advice}")

    def _drop(self, numbers: list[int]) -> None:
        if not numbers:
            return
        out = np.isin(self._numbers, numbers)
        emptied = sorted(set(self.labels[out].tolist()) - set(self.labels[~out].tolist()))
        if emptied:
            raise DataError(
                f"{self.where}: no image of the class {printable(self.class_names[emptied[0]])} can be read; "
                "restore its images, or remove the class"
            )
        self.left_out += tuple(printable(self._name(number)) for number in numbers)
        self._numbers, self.labels = self._numbers[~out], self.labels[~out]
