"""Read arrays from untrusted HDF5 files: check what a file declares before allocating memory.

Links are not followed, for they can lead to a pipe that never answers or back to themselves. A header of a kilobyte can
declare a terabyte of zeros. h5py is imported where it is used.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastdwm.checks import require
from fastdwm.errors import InputError, one_line_errors

LIMIT_BYTES = 2 * 2**30  # limit of the arrays read from one file; D4RL's largest files have 0.5 GB
SMALL_BYTES = 2**28  # limit for a small file; a larger one may have up to MOST_DENSITY bytes of arrays per byte
MOST_DENSITY = 100  # recorded numbers hardly compress; a decompression bomb of zeros does, a thousandfold
MOST_COMPRESSION = 1032  # largest expansion of a gzip stream
NUMBERS = "biuf"  # numpy's kinds: bool, integer, unsigned, float


class Reader:
    """Read numeric arrays of an open h5py.File by their path, at most `limit_bytes` in total."""

    def __init__(self, file: Any, source: str, size_bytes: int):
        """file: h5py.File open for reading.   source: its name in messages.   size_bytes: its size on disk."""
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
        """Read a whole array, as `dtype` if given; raises InputError if it is absent, or not stored in the file."""
        import h5py

        dataset = self._find(path)
        actual = "nothing" if dataset is None else type(dataset).__name__.lower()
        require(isinstance(dataset, h5py.Dataset), f"{self.source}: expected an array {path}, got {actual}")
        kind = dataset.dtype
        require(kind.kind in NUMBERS, f"{self.source}: expected numbers in {path}, got {kind}")
        require(bool(dataset.shape), f"{self.source}: expected rows in {path}, got shape {dataset.shape}")
        self._reserve(path, dataset, max(kind.itemsize, np.dtype(dtype or kind).itemsize))
        return (dataset if dtype is None else dataset.astype(dtype))[:]

    def column(self, path: str, dtype: type | None = None) -> np.ndarray:
        """Read (N,) numbers from an array shaped (N,) or (N, 1)."""
        values = self.array(path, dtype)
        column = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        require(column.ndim == 1, f"{self.source}: expected {path} with one number a row, got shape {values.shape}")
        return column

    def flags(self, path: str) -> np.ndarray:
        """Read (N,) bool from a column of zeros and ones of any dtype; D4RL's relabelled files have floats."""
        column = self.column(path)
        require_rows((column == 0) | (column == 1), f"{self.source}: expected {path} of zeros and ones, got others")
        return column.astype(bool)

    def _find(self, path: str) -> Any:
        """The object at `path` or None; raises InputError for a soft or external link."""
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
        """Raise InputError if the file is too small for the array that it declares, or the array exceeds the limit."""
        properties = dataset.id.get_create_plist()
        elsewhere = dataset.is_virtual or properties.get_external_count()
        require(not elsewhere, f"{self.source}: expected data in {path}, got a reference to other files")
        # `math.prod`, for a hostile shape overflows the machine integers of h5py. Chunks are read as a whole.
        size, chunk = math.prod(dataset.shape), math.prod(dataset.chunks or ())
        stored, most = dataset.id.get_storage_size(), MOST_COMPRESSION if properties.get_nfilters() else 1
        # Counted down, for the same bytes may appear under several names.
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
    """Open a Reader of the file; any error while it is open becomes an InputError about `source`."""
    with one_line_errors(source, expected):
        import h5py

        with h5py.File(path, "r") as file:
            yield Reader(file, source, path.stat().st_size)


def require_rows(good: np.ndarray, message: str) -> None:
    """Raise InputError, which names the first bad row, unless all rows are `good` (N,)."""
    if not good.all():
        raise InputError(f"{message}, first in row {np.argmin(good)}")
