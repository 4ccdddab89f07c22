"""Jobs for the tests of the engines, in a module that other processes can import."""

import os
import signal
import time
from pathlib import Path

from fastdwm.errors import InputError


def write(path: Path, seconds: float = 0.0) -> int:
    """Append the process id to the file after some seconds; returns the id."""
    time.sleep(seconds)
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return os.getpid()


def refuse(path: Path) -> None:
    """Append a line to the file, and fail."""
    write(path)
    raise InputError("expected another job")


def fill_disk() -> None:
    raise OSError(28, "No space left on device", "cell.json")


class Stubborn(Exception):
    """Error that cannot be unpickled from its message alone."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def fail_stubbornly() -> None:
    raise Stubborn("this", "that")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(path: Path) -> int:
    """Die at the first attempt, as on a machine that is short of memory."""
    if not path.exists():
        write(path)
        die()
    return write(path)
