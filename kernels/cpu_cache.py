"""numba's cache of compiled functions, made safe against a full disk, a read-only folder and damaged files."""

import pickle
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

OPTIONS = dict(nogil=True, error_model="numpy")
CONTRACTED = OPTIONS | {"fastmath": {"contract"}}
DIGEST_BYTES = 32

caching = True
"""False once writing the cache has failed: the kernels are then compiled in every run"""


class CheckedFiles(IndexDataCacheFile):
    """The cache files of one function; a SHA-256 guards the machine code, which numba would run even if damaged."""

    def _load_index(self) -> dict:
        try:
            return super()._load_index()
        except OSError:
            raise
        # Unpickling a damaged file can raise anything.
        except Exception:
            self._discard(self._index_path)
            return {}

    def _save_data(self, name: str, data: Any) -> None:
        content = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(sha256(content).digest() + content)

    def _load_data(self, name: str) -> Any:
        """The saved data, or None if the file is damaged: numba then compiles anew and saves again."""
        path = self._data_path(name)
        content = Path(path).read_bytes()
        digest, content = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        return pickle.loads(content) if sha256(content).digest() == digest else self._discard(path)

    def _discard(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)
        warnings.warn(f"damaged, so that a CPU kernel is compiled anew: {path}", RuntimeWarning, stacklevel=2)


class CheckedCache(FunctionCache):
    """numba's cache of one function, with `CheckedFiles`."""

    def __init__(self, function: Callable) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = CheckedFiles(self._cache_path, self._impl.filename_base, stamp)


def compiled(signature: types.Type, function: Callable) -> Any:
    """A function for calls from Python with these argument types only, from the cache if possible."""

    def build(cache: bool) -> Any:
        built = njit(**CONTRACTED)(function)
        if cache:
            built._cache = CheckedCache(function)
        built.compile(signature)
        built.disable_compile()
        return built

    return _cached(build)


def compiled_callback(signature: types.Type, function: Callable) -> Any:
    """A function for calls from machine code by its address, from the cache if possible."""

    def build(cache: bool) -> Any:
        built = CFunc(function, normalize_signature(signature), locals={}, options=CONTRACTED)
        if cache:
            built._cache = CheckedCache(function)
        built.compile()
        return built

    return _cached(build)


def _cached(build: Callable[[bool], Any]) -> Any:
    """build(True), or build(False) once the cache has failed."""
    global caching
    try:
        return build(caching)
    # The disk is full, or neither this folder nor the user's cache folder can be written.
    except (RuntimeError, OSError) as error:
        if not caching:
            raise
        caching = False
        warnings.warn(f"the CPU kernels are compiled in every run: no cache ({error})", RuntimeWarning, stacklevel=5)
        return build(False)
