"""One job of a sweep, in a process of an engine: its commands in turn, and in the end its file."""

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
    """A command of the job did not end well; its log tells why."""


class JobKilled(JobFailed):
    """A command of the job was ended from outside, which says nothing of the job."""


@dataclass(frozen=True)
class JobContext:
    """A job, and all that its process has to know."""

    job: SweepJob
    config: SweepConfig
    folders: Folders
    bundle: Path
    commands: list[Command]
    identity: dict[str, Any]
    cwd: Path
    """where the commands run, because paths in them may be relative"""

    @property
    def path(self) -> Path:
        return (self.cwd / self.folders.out / "cells" / self.job.name).with_suffix(".json")

    @property
    def log(self) -> Path:
        return (self.cwd / self.folders.out / "logs" / self.job.name).with_suffix(".log")


def run_job(context: JobContext) -> Record:
    """Run the commands; returns what then stands in the job's file. Raises JobFailed.

    Where an engine starts it a second time, because the machine of the first seemed lost, the second waits for what is
    left of the first, and runs nothing if that has finished.
    """
    with context.log.open("ab") as log:
        # The commands hold the lock too, so that none of an earlier attempt runs beside those of this one.
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
        # What a killed attempt has left could be taken for a result.
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
    """The commands; none for data that are there, which stay as they are."""
    there = context.job.stage == "collect" and outcomes.is_there(context.config.dataset_of(context.job.task))
    return [] if there else context.commands


def _result(context: JobContext) -> dict[str, Any]:
    if context.job.stage == "collect":
        return outcomes.collected(context.config.dataset_of(context.job.task))
    if context.job.stage == "eval":
        folder = context.folders.evaluations(context.job)
        return outcomes.evaluated({variant: folder / variant for variant in context.config.variants})
    return (outcomes.bundled if context.job.stage == "train" else outcomes.tuned)(context.bundle)


def _run(command: Command, log: IO[bytes]) -> float:
    """Run one command to its end; returns its peak memory in MB. Raises JobFailed for any exit code but 0."""
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
