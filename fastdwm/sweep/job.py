"""Run one job of a sweep in a process of an engine: its commands in turn, then its file."""

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
from fastdwm.sweep.stages import Command, Folders, SweepJob

PR_SET_PDEATHSIG = 1
INTERRUPTED = 130
"""exit code of our commands after Ctrl-C"""


class JobFailed(RuntimeError):
    """A command of the job has failed; the log says why."""


class JobKilled(JobFailed):
    """A command of the job was killed from outside, so the job counts as not run rather than failed."""


@dataclass(frozen=True)
class JobContext:
    """A job, and everything that its process needs to run it."""

    job: SweepJob
    config: SweepConfig
    folders: Folders
    bundle: Path
    commands: list[Command]
    identity: dict[str, Any]
    cwd: Path
    """working directory of the commands, whose paths may be relative"""

    @property
    def path(self) -> Path:
        return (self.cwd / self.folders.out / "cells" / self.job.name).with_suffix(".json")

    @property
    def log(self) -> Path:
        return (self.cwd / self.folders.out / "logs" / self.job.name).with_suffix(".log")


def run_job(context: JobContext) -> Record:
    """Run the job's commands, write its file and return the record in it. Raises JobFailed.

    An engine may start a job twice, if it lost contact with the first machine. The second run waits for the commands of
    the first, and runs nothing if the first has finished.
    """
    with context.log.open("ab") as log:
        # The commands inherit the lock, so those of an earlier attempt never run at the same time.
        with suppress(OSError):
            fcntl.flock(log, fcntl.LOCK_EX)
        if not context.path.exists():
            write_json(context.path, _record(context, log))
    return files.read_job(context.path)


def _record(context: JobContext, log: IO[bytes]) -> Record:
    start, here = time.perf_counter(), files.physics()
    if here != context.identity["versions"]:
        raise JobFailed(f"expected {context.identity['versions']}, {files.host()['host']} has {here}")
    os.chdir(context.cwd)
    if context.job.stage == "eval":
        # Files of a killed attempt could be mistaken for results.
        shutil.rmtree(context.folders.evaluations(context.job), ignore_errors=True)
    peak_mb = max((_run(command, log) for command in _commands(context)), default=0.0)
    result = _result(context)
    ran = result.pop("machine", {})
    machine = files.host() | {name: ran[name] for name in ("threads", "accelerator") if name in ran}
    weights = {"weights_sha256": result["weights_sha256"]} if "weights_sha256" in result else {}
    return {
        "format": files.FORMAT,
        "task": context.job.task,
        "seed": context.job.seed,
        "stage": context.job.stage,
        "identity": context.identity | weights,
        "machine": machine,
        **{name: value for name, value in origin().items() if name != "command"},
        "commands": [shlex.join(command) for command in context.commands],
        "wall_s": time.perf_counter() - start,
        "peak_memory_mb": peak_mb,
        "result": result,
    }


def _commands(context: JobContext) -> list[Command]:
    """The commands to run; none if the dataset to collect exists already."""
    exists = context.job.stage == "collect" and outcomes.is_there(context.config.dataset_of(context.job.task))
    return [] if exists else context.commands


def _result(context: JobContext) -> dict[str, Any]:
    if context.job.stage == "collect":
        return outcomes.collected(context.config.dataset_of(context.job.task))
    if context.job.stage == "eval":
        folder = context.folders.evaluations(context.job)
        return outcomes.evaluated({variant: folder / variant for variant in context.config.variants})
    return (outcomes.bundled if context.job.stage == "train" else outcomes.tuned)(context.bundle)


def _run(command: Command, log: IO[bytes]) -> float:
    """Run one command and return its peak memory in MB. Raises JobFailed for an exit code other than 0."""
    log.write(f"$ {shlex.join(command)}\n".encode())
    log.flush()
    argv = [sys.executable, *command[1:]] if command[0] == "python" else command
    out = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
    process = subprocess.Popen(argv, env=_environment(), preexec_fn=_dying_with(os.getpid()), **out)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    code = process.returncode
    if code < 0 or code == INTERRUPTED:
        raise JobKilled(f"ended by signal {-code if code < 0 else signal.SIGINT:d}: {shlex.join(command)}")
    if code:
        raise JobFailed(f"exit code {code}: {shlex.join(command)}")
    return usage.ru_maxrss / 1024


def _environment() -> dict[str, str]:
    """Environment of the commands: one thread, and the same fastdwm as the sweep."""
    root = str(Path(fastdwm.__file__).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def _dying_with(parent: int) -> Any:
    """A function for the new process that asks the kernel to kill it when the thread that started it ends."""
    libc = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return ask
