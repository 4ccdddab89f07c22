"""Files that somebody else wrote, read with distrust; files and folders of our own, written whole or not at all."""

import fcntl
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastdwm.checks import require
from fastdwm.errors import InputError

MAX_DEPTH = 32
"""of nested objects and lists in a JSON file"""


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes; InputError, before anything is read, for all else."""
    try:
        # A pipe without a writer would block, and a device never end.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            about = os.fstat(handle)
            require(stat.S_ISREG(about.st_mode), f"{path}: expected a regular file")
            require(about.st_size <= most, f"{path}: expected at most {most} bytes, got {about.st_size}")
            return file.read(most)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def read_json(path: Path, most: int) -> Any:
    """The value in a JSON file of at most `most` bytes: finite numbers, printable text, at most MAX_DEPTH levels.

    Raises InputError for anything else.
    """
    try:
        value = json.loads(read_bytes(path, most), parse_constant=_refuse, parse_float=_finite)
        _check_nesting(value)
    except InputError:
        raise
    # RecursionError: nested so deeply that not even the parser follows.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON ({error})") from None
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"expected finite numbers, got {constant}")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _check_nesting(value: Any, depth: int = 0) -> None:
    """Raise ValueError for text that a terminal could not show, or for too many levels."""
    if depth > MAX_DEPTH:
        raise ValueError(f"expected at most {MAX_DEPTH} levels")
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"expected printable text, got {ascii(value[:40])}")
    if isinstance(value, dict):
        _check_nesting(list(value), depth)
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_nesting(item, depth + 1)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file so that a reader, or the next run after a crash, sees the old content or the new, never a part.

    An OSError names the file; what was there before stays, and no part of the new takes up space.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink()
        raise _naming(error, path) from None


def replace_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replace a folder by one with these files; a reader sees the old folder or the new one, never a mixture.

    Also removes what processes that were killed while they did this have left beside it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            _cleaning(folder),
            tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch,
        ):
            new, old = Path(scratch, "new"), Path(scratch, "old")
            new.mkdir()
            for name, content in contents.items():
                (new / name).write_bytes(content)
            if folder.exists():
                os.rename(folder, old)
            os.rename(new, folder)
    except OSError as error:
        raise _naming(error, folder) from None


def _naming(error: OSError, path: Path) -> OSError:
    """The error of a write, which by itself does not say of what, or names a scratch file."""
    return OSError(error.errno, error.strerror, str(path)) if error.errno else error


@contextmanager
def _cleaning(folder: Path) -> Iterator[None]:
    """Afterwards remove the scratch folders that nobody uses.

    Everyone who writes shares a lock on the parent folder, which ends with its process: who gets it alone is alone.
    """
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        known = _lock(handle, fcntl.LOCK_SH)
        yield
        if known and _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
            ours = re.compile(re.escape(f".{folder.name}-") + "[a-z0-9_]{8}")
            for path in folder.parent.iterdir():
                if ours.fullmatch(path.name) and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(handle)


def _lock(handle: int, kind: int) -> bool:
    """Whether the lock was granted; not every file system has locks."""
    try:
        fcntl.flock(handle, kind)
    except OSError:
        return False
    return True
