"""One cell of a sweep, in a process of an engine: its commands in turn, and in the end its file."""

import ctypes
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fastdwm
from fastdwm.files import write_json
from fastdwm.jobs import sweep as files
from fastdwm.jobs.results import Record
from fastdwm.measure.record import origin
from fastdwm.sweep import outcomes
from fastdwm.sweep.config import SweepConfig
from fastdwm.sweep.stages import Cell, Command, Folders

PR_SET_PDEATHSIG = 1
INTERRUPTED = 130
"""exit code of our commands after Ctrl-C"""


class CellFailed(RuntimeError):
    """A command of the cell did not end well; its log tells why."""


class CellKilled(CellFailed):
    """A command of the cell was ended from outside, which says nothing of the cell."""


@dataclass(frozen=True)
class Work:
    """A cell, and all that its process has to know."""

    cell: Cell
    config: SweepConfig
    folders: Folders
    bundle: Path
    commands: list[Command]
    identity: dict[str, Any]
    cwd: Path
    """where the commands run, because paths in them may be relative"""

    @property
    def path(self) -> Path:
        return (self.cwd / self.folders.out / "cells" / self.cell.name).with_suffix(".json")

    @property
    def log(self) -> Path:
        return (self.cwd / self.folders.out / "logs" / self.cell.name).with_suffix(".log")


def run_cell(work: Work) -> Record:
    """Run the commands; returns what then stands in the cell's file. Raises CellFailed.

    Where an engine starts it a second time, because the machine of the first seemed lost, the second waits for what is
    left of the first, and runs nothing if that has finished.
    """
    with work.log.open("ab") as log:
        # The commands hold the lock too, so that none of an earlier attempt runs beside those of this one.
        with suppress(OSError):
            fcntl.flock(log, fcntl.LOCK_EX)
        if not work.path.exists():
            write_json(work.path, _record(work, log))
    return files.read_cell(work.path)


def _record(work: Work, log: IO[bytes]) -> Record:
    start, here = time.perf_counter(), files.physics()
    if here != work.identity["versions"]:
        raise CellFailed(f"expected {work.identity['versions']}, {files.host()['host']} has {here}")
    os.chdir(work.cwd)
    if work.cell.stage == "eval":
        # What a killed attempt has left could be taken for a result.
        shutil.rmtree(work.folders.evaluations(work.cell), ignore_errors=True)
    peak_mb = max((_run(command, log) for command in _commands(work)), default=0.0)
    result = _result(work)
    ran = result.pop("machine", {})
    machine = files.host() | {name: ran[name] for name in ("threads", "accelerator") if name in ran}
    weights = {"weights_sha256": result["weights_sha256"]} if "weights_sha256" in result else {}
    return {
        "format": files.FORMAT,
        "task": work.cell.task,
        "seed": work.cell.seed,
        "stage": work.cell.stage,
        "identity": work.identity | weights,
        "machine": machine,
        **{name: value for name, value in origin().items() if name != "command"},
        "commands": [shlex.join(command) for command in work.commands],
        "wall_s": time.perf_counter() - start,
        "peak_memory_mb": peak_mb,
        "result": result,
    }


def _commands(work: Work) -> list[Command]:
    """The commands; none for data that are there, which stay as they are."""
    there = work.cell.stage == "collect" and outcomes.is_there(work.config.dataset_of(work.cell.task))
    return [] if there else work.commands


def _result(work: Work) -> dict[str, Any]:
    if work.cell.stage == "collect":
        return outcomes.collected(work.config.dataset_of(work.cell.task))
    if work.cell.stage == "eval":
        folder = work.folders.evaluations(work.cell)
        return outcomes.evaluated({variant: folder / variant for variant in work.config.variants})
    return (outcomes.bundled if work.cell.stage == "train" else outcomes.tuned)(work.bundle)


def _run(command: Command, log: IO[bytes]) -> float:
    """Run one command to its end; returns its peak memory in MB. Raises CellFailed for any exit code but 0."""
    log.write(f"$ {shlex.join(command)}\n".encode())
    log.flush()
    argv = [sys.executable, *command[1:]] if command[0] == "python" else command
    out = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
    process = subprocess.Popen(argv, env=_environment(), preexec_fn=_dying_with(os.getpid()), **out)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    code = process.returncode
    if code < 0 or code == INTERRUPTED:
        raise CellKilled(f"ended by signal {-code if code < 0 else signal.SIGINT:d}: {shlex.join(command)}")
    if code:
        raise CellFailed(f"exit code {code}: {shlex.join(command)}")
    return usage.ru_maxrss / 1024


def _environment() -> dict[str, str]:
    """One thread, and the fastdwm that runs the sweep, wherever the process was started."""
    root = str(Path(fastdwm.__file__).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def _dying_with(parent: int) -> Any:
    """What the new process does first: it asks the kernel to be killed when the thread that started it ends."""
    libc = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return ask
