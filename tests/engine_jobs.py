"""Jobs for the tests of the engines: of a module of their own, for other processes to import."""

import os
import signal
import time
from pathlib import Path

from fastdwm.errors import InputError


def write(path: Path, seconds: float = 0.0) -> int:
    """Append a line to the file after a while; returns the process."""
    time.sleep(seconds)
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return os.getpid()


def refuse(path: Path) -> None:
    """Count the attempt, and fail."""
    write(path)
    raise InputError("expected another job")


def fill_disk() -> None:
    raise OSError(28, "No space left on device", "cell.json")


class Stubborn(Exception):
    """Cannot be unpickled from its message alone."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def fail_stubbornly() -> None:
    raise Stubborn("this", "that")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(path: Path) -> int:
    """Killed at the first attempt, as by a machine that is short of memory."""
    if not path.exists():
        write(path)
        die()
    return write(path)
