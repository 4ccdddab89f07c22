"""Read files that others wrote, with checks, and write files of our own atomically."""

import fcntl
import json
import math
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from fastdwm.checks import require
from fastdwm.errors import InputError

MAX_DEPTH = 32
"""deepest nesting of objects and lists in a JSON file"""
MARK = ".fastdwm-"
"""prefix of the temporary files of `replace_pair`, which stay in the folder if it is killed"""
COPY = f"{MARK}copy"
PATIENCE_S = 10.0
"""how long to wait for another process that replaces the same files"""
REREADS = 500

T = TypeVar("T")


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes; InputError for others, before anything is read."""
    try:
        # Opening a pipe without a writer would block, and reading a device might never end.
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


def require_file(path: Path) -> None:
    """Raise InputError unless the path is a regular file: reading a pipe or a device may never end."""
    require(path.exists(), f"{path}: no such file")
    require(path.is_file(), f"{path}: expected a regular file")


def read_json(path: Path, most: int) -> Any:
    """The value in a JSON file of at most `most` bytes; raises InputError as `parse_json`."""
    return parse_json(read_bytes(path, most), path)


def parse_json(content: bytes, path: Path, printable: bool = True) -> Any:
    """The value in the content of a JSON file: finite numbers, printable text, at most MAX_DEPTH levels.

    printable: False allows any text, which then must not be shown as it is.
    Raises InputError, which names `path`, for anything else.
    """
    try:
        value = json.loads(content, parse_constant=_refuse, parse_float=_finite, parse_int=_integer)
        _check_nesting(value, printable)
    # RecursionError: the nesting is too deep for the parser.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON ({error})") from None
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"expected finite numbers, got {constant[:40]}")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _integer(text: str) -> int:
    """Parse an integer; ValueError if it is too large for a float."""
    _finite(text)
    return int(text)


def _check_nesting(value: Any, printable: bool, depth: int = 0) -> None:
    """Raise ValueError for text with unprintable characters, and for too many levels."""
    if depth > MAX_DEPTH:
        raise ValueError(f"expected at most {MAX_DEPTH} levels")
    if printable and isinstance(value, str) and not value.isprintable():
        raise ValueError(f"expected printable text, got {ascii(value[:40])}")
    if isinstance(value, dict):
        _check_nesting(list(value), printable, depth)
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_nesting(item, printable, depth + 1)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file so that readers, also after a crash, see either the old content or the new, never a part.

    An OSError names the file; the old content then stays, and nothing of the new one does.
    """
    with replacing(path, path.with_name(f".{path.name}.tmp")) as scratch:
        _write(scratch, content)


def _write(path: Path, content: bytes) -> None:
    """Write a file and flush it to the disk, so that it is complete before it replaces another."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path, scratch: Path) -> Iterator[Path]:
    """Yield `scratch`, a path beside `path`. The file written there then replaces `path`; on an error it is deleted."""
    try:
        yield scratch
        os.replace(scratch, path)
    except BaseException as error:
        with suppress(OSError):
            scratch.unlink()
        if isinstance(error, OSError) and error.errno:
            # The original error names no file, or the scratch file.
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object in the format of `json_lines`, atomically. NaN and infinity become null, other types text."""
    write_atomically(path, json_lines({key: strict(item) for key, item in value.items()}))


def json_lines(value: Mapping[str, Any]) -> bytes:
    """An object in JSON with one line per key; raises TypeError and ValueError as json.dumps."""
    lines = [f"{json.dumps(key)}: {json.dumps(item, allow_nan=False)}" for key, item in value.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def strict(value: Any) -> Any:
    """The value in JSON's types: NaN and infinity become null, unknown types text."""
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def prepare_folder(folder: Path, name: str = "out") -> None:
    """Create the folder of a command's output; InputError, which begins with `name`, unless it is writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{name}: cannot write to {folder}: {error.strerror}") from None


@contextmanager
def reserved(folder: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Lock the folder; InputError if another process still holds its lock after `patience_s` seconds.

    The lock ends with the process at the latest.
    """
    handle = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + patience_s
    try:
        while _is_locked(handle):
            waits = time.monotonic() < deadline
            require(waits, f"out: {folder} is in use by a command that runs; wait for it, or give another --out")
            time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def _is_locked(handle: int) -> bool:
    """Try to lock; returns whether another process holds the lock. False too on a file system without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def sha256_of(*paths: Path) -> str:
    """SHA-256 of the concatenated contents of the files, in hexadecimal."""
    digest = sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def replace_pair(folder: Path, data: tuple[str, bytes], label: tuple[str, bytes]) -> None:
    """Replace two files of a folder, each (name, content), so that readers see the old pair or the new one, whatever
    fails and whenever the process is killed. A pair is the label, and the data that `data_of` finds for its content.

    The old data are kept under a name made from the old label until the new label replaces the old one, which is a
    single step. Nothing else in the folder changes; a second process waits for the first.
    """
    data_path, label_path = (folder / name for name, _ in (data, label))
    with reserved(folder, PATIENCE_S):
        _tidy(data_path, label_path)
        try:
            with replacing(label_path, folder / f"{MARK}{label_path.name}") as new_label:
                _write(new_label, label[1])
                if _content(data_path) != data[1]:
                    with replacing(data_path, folder / f"{MARK}{data_path.name}") as new_data:
                        _write(new_data, data[1])
                        # If the label stays the same, the old data did not belong to it.
                        if _content(label_path) != label[1]:
                            _keep(data_path, _kept(data_path, _content(label_path)))
                    _sync(folder)
            _sync(folder)
        finally:
            with suppress(OSError):
                _tidy(data_path, label_path)


def data_of(path: Path, label: bytes) -> Path:
    """The data file that belongs to this label: the kept file if there is one, else `path`."""
    kept = _kept(path, label)
    return kept if kept.exists() else path


def reread(read: Callable[[Callable[[], bool]], T], *paths: Path) -> T:
    """Return read(unchanged); call it again if it raises InputError and the files were replaced meanwhile.

    unchanged() returns whether all paths are still the files that they were when this call of `read` began.
    """
    for _ in range(REREADS):
        with ExitStack() as handles:
            before = [_stamp(path, handles) for path in paths]

            def unchanged(before: list = before) -> bool:
                return before == [_stamp(path) for path in paths]

            try:
                return read(unchanged)
            except InputError:
                if unchanged():
                    raise
        time.sleep(0.01)
    raise InputError(f"{paths[0]}: cannot be read: it is replaced again and again")


def _kept(data: Path, label: bytes) -> Path:
    return data.with_name(f"{MARK}{data.name}-{sha256(label).hexdigest()}")


def _keep(path: Path, kept: Path) -> None:
    """Give an existing file a second name, by a link, or a copy on file systems without links."""
    if path.exists():
        try:
            os.link(path, kept)
        except OSError:
            with replacing(kept, path.with_name(COPY)) as copy:
                _write(copy, path.read_bytes())


def _tidy(data: Path, label: Path) -> None:
    """Rename the data that belong to the label back, and remove files that were kept for other labels."""
    for kept in chain(*map(data.parent.glob, (COPY, f"{MARK}{data.name}-{'[0-9a-f]' * 64}"))):
        if kept == _kept(data, _content(label)):
            os.replace(kept, data)
        # os.replace does nothing if both names are links to one file.
        kept.unlink(missing_ok=True)


def _content(path: Path) -> bytes:
    """The content of a regular file; empty for anything else."""
    return path.read_bytes() if path.is_file() else b""


def _sync(folder: Path) -> None:
    """Flush the names in a folder to the disk, if the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    with suppress(OSError):
        os.fsync(handle)
    os.close(handle)


def _stamp(path: Path, handles: ExitStack | None = None) -> tuple[int, ...] | None:
    """Identity of the file, none if it does not exist.

    handles: keeps the file open, so that no other file gets the same number until it closes.
    """
    try:
        if handles is None:
            about = os.stat(path)
        else:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            handles.callback(os.close, handle)
            about = os.fstat(handle)
    except OSError:
        return None
    return about.st_dev, about.st_ino, about.st_ctime_ns
