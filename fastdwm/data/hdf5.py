"""Arrays from HDF5 files that nobody vouches for: what a file declares is checked before memory is taken.

Only what lies in the file itself is followed. A link can lead to a pipe that never answers or back to itself, and a
header of a kilobyte can declare a terabyte of zeros. h5py is imported where it is used.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastdwm.checks import require
from fastdwm.errors import InputError, one_line_errors

LIMIT_BYTES = 2 * 2**30  # of all arrays read from one file; D4RL's largest take 0.5 GB
SMALL_BYTES = 2**28  # of arrays are read from any file; beyond that at most MOST_DENSITY bytes for each of the file
MOST_DENSITY = 100  # recorded numbers hardly shrink; a bomb of zeros does by a thousand
MOST_COMPRESSION = 1032  # no gzip stream expands by more
NUMBERS = "biuf"  # numpy's kinds: bool, integer, unsigned, float


class Reader:
    """Numeric arrays of an open h5py.File by their path; together they never take more than `limit_bytes`."""

    def __init__(self, file: Any, source: str, size_bytes: int):
        """file: h5py.File open for reading.   source: its name in messages.   size_bytes: what it takes on disk."""
        self.file, self.source = file, source
        self.limit_bytes = min(LIMIT_BYTES, max(SMALL_BYTES, MOST_DENSITY * size_bytes))
        self.unread_bytes, self.free_bytes = size_bytes, self.limit_bytes

    def __contains__(self, path: str) -> bool:
        return self._find(path) is not None

    def is_group(self, path: str) -> bool:
        """Whether `path` is a group and not an array."""
        import h5py

        return isinstance(self._find(path), h5py.Group)

    def array(self, path: str, dtype: type | None = None) -> np.ndarray:
        """All of an array, as `dtype` if given; raises InputError if it is absent, or not stored in the file."""
        import h5py

        dataset = self._find(path)
        came = "nothing" if dataset is None else type(dataset).__name__.lower()
        require(isinstance(dataset, h5py.Dataset), f"{self.source}: expected an array {path}, got {came}")
        kind = dataset.dtype
        require(kind.kind in NUMBERS, f"{self.source}: expected numbers in {path}, got {kind}")
        require(bool(dataset.shape), f"{self.source}: expected rows in {path}, got shape {dataset.shape}")
        self._reserve(path, dataset, max(kind.itemsize, np.dtype(dtype or kind).itemsize))
        return (dataset if dtype is None else dataset.astype(dtype))[:]

    def column(self, path: str, dtype: type | None = None) -> np.ndarray:
        """(N,) numbers of an array shaped (N,) or (N, 1)."""
        values = self.array(path, dtype)
        column = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        require(column.ndim == 1, f"{self.source}: expected {path} with one number a row, got shape {values.shape}")
        return column

    def flags(self, path: str) -> np.ndarray:
        """(N,) bool from a column of zeros and ones of any type; D4RL's relabelling writes floats."""
        column = self.column(path)
        require_rows((column == 0) | (column == 1), f"{self.source}: expected {path} of zeros and ones, got others")
        return column.astype(bool)

    def _find(self, path: str) -> Any:
        """The object at `path`, none if there is none; raises InputError for a link out of the file's own tree."""
        import h5py

        node = self.file
        for name in path.split("/"):
            link = node.get(name, getlink=True) if isinstance(node, h5py.Group) else None
            if link is None:
                return None
            hard = isinstance(link, h5py.HardLink)
            require(hard, f"{self.source}: expected data in {path}, got a link; links are not followed")
            node = node[name]
        return node

    def _reserve(self, path: str, dataset: Any, itemsize: int) -> None:
        """Raise InputError unless the file can hold what the array declares, and memory what is read of it."""
        properties = dataset.id.get_create_plist()
        elsewhere = dataset.is_virtual or properties.get_external_count()
        require(not elsewhere, f"{self.source}: expected data in {path}, got a reference to other files")
        # h5py counts a shape's elements in machine integers, which a hostile shape overflows. A chunk is read whole.
        size, chunk = math.prod(dataset.shape), math.prod(dataset.chunks or ())
        stored, most = dataset.id.get_storage_size(), MOST_COMPRESSION if properties.get_nfilters() else 1
        # The same bytes under several names would be read several times.
        self.unread_bytes -= stored
        self.free_bytes -= size * itemsize
        held = size == 0 or max(size, chunk) * dataset.dtype.itemsize <= stored * most
        array = f"{path} shaped {dataset.shape}"
        require(held and self.unread_bytes >= 0, f"{self.source}: expected {array}, got a file too small for it")
        fits = self.free_bytes >= 0 and chunk * dataset.dtype.itemsize <= self.limit_bytes
        limit = f"at most {self.limit_bytes} bytes of arrays in a file of its size"
        require(fits, f"{self.source}: expected {limit}, got {array} of {dataset.dtype}")


@contextmanager
def open_hdf5(path: Path, source: str, expected: str) -> Iterator[Reader]:
    """A Reader of the file; whatever goes wrong while it is open is told as one InputError about `source`."""
    with one_line_errors(source, expected):
        import h5py

        with h5py.File(path, "r") as file:
            yield Reader(file, source, path.stat().st_size)


def require_rows(good: np.ndarray, message: str) -> None:
    """Raise InputError, naming the first bad row, unless all of `good` (N,) holds."""
    if not good.all():
        raise InputError(f"{message}, first in row {np.argmin(good)}")
