"""Files that somebody else wrote, read with distrust; files and folders of our own, written whole or not at all."""

import fcntl
import hashlib
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
        content = read_bytes(path, most)
        value = json.loads(content, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
        _check_nesting(value)
    except InputError:
        raise
    # RecursionError: nested so deeply that not even the parser follows.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON ({error})") from None
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"expected finite numbers, got {constant[:40]}")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _whole(text: str) -> int:
    """The integer, unless a float could not hold it: then no setting can use it."""
    _finite(text)
    return int(text)


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
    with replacing(path, path.with_name(f".{path.name}.tmp")) as scratch, scratch.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path, scratch: Path) -> Iterator[Path]:
    """What is written to `scratch`, a file beside `path`, takes the place of `path` at the end, or is gone."""
    try:
        yield scratch
        os.replace(scratch, path)
    except BaseException as error:
        with suppress(OSError):
            scratch.unlink()
        if isinstance(error, OSError):
            raise _naming(error, path) from None
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object with one line per key, atomically. NaN and infinity become null, other types text."""
    lines = [f"{json.dumps(key)}: {json.dumps(strict(item), allow_nan=False)}" for key, item in value.items()]
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def strict(value: Any) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def prepare_folder(folder: Path) -> None:
    """Create the folder of a command's output; InputError unless files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"out: cannot write to {folder}: {error.strerror}") from None


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Nobody else works in the folder meanwhile; InputError if somebody does. Ends with the process at the latest."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        taken = _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB) is False
        require(not taken, f"out: {folder} is in use by a command that runs; wait for it, or give another --out")
        yield
    finally:
        os.close(handle)


def sha256_of(*paths: Path) -> str:
    """SHA-256 of the files' contents, one after another, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


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


def _lock(handle: int, kind: int) -> bool | None:
    """Whether the lock was granted; none on a file system without locks."""
    try:
        fcntl.flock(handle, kind)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
