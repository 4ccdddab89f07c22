"""Paths of a command's output, and a record of when, how and on which machine it was made."""

import glob
import os
import platform
import shlex
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastdwm.files import prepare_folder
from fastdwm.machine import machine, package_versions
from fastdwm.shipped import is_bundle
from fastdwm.tasks import name_of

LEFTOVER_S = 3600.0
"""age in seconds from which a temporary file cannot be one that is being written"""


def prepare_output(folder: Path, task: str) -> Path:
    """Path OUT/TASK-TIME-PID without a suffix; creates the folder, and raises InputError unless it is writable.

    Removes what a command that was killed while it wrote has left: such names are never used again.
    """
    prepare_folder(folder)
    for path in folder.glob(f".{glob.escape(task)}-*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_S:
                path.unlink()
    # The process id distinguishes commands that a script starts at the same time.
    return folder / f"{task}-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"


def output_name(typed: str, folder: Path) -> str:
    """The name of a task for paths: of the folder of a bundle, `train`'s name of the run or the folder's own."""
    if not is_bundle(typed):
        return name_of(typed)
    path = folder.resolve()
    return path.parent.name if path.name == "bundle" else path.name


def circumstances(device: str) -> dict[str, Any]:
    """When, by which command, with which packages and on which machine a result was made."""
    import torch

    accelerator = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {**origin(), "machine": machine(torch.get_num_threads(), accelerator)}


def origin() -> dict[str, Any]:
    """When, by which command and with which packages; torch is not imported."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "versions": {"python": platform.python_version(), **package_versions()},
    }
