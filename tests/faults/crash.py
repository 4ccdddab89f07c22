"""Run a command and its processes in a fork of this process, and kill it at a given write."""

import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path
from subprocess import DEVNULL
from types import SimpleNamespace
from typing import Any

import fastdwm.agent
import fastdwm.engines.processes as processes
from fastdwm.sweep import job

PATHS = {"os.rename": 2, "os.link": 2, "os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.truncate": 1, "os.fsync": 1}
"""events that change a folder, and the number of their path arguments; os.replace is a rename, os.unlink a remove"""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Crash:
    """Audit hook that counts a command's writes to a folder and kills the writing process (kill -9) at write `number`.

    together: kill all processes of the command.   half: do half of the write first: an opened file is empty, a
    synchronised one is cut in its middle.   kinds: file descriptor for lines with event and suffix of every write.
    """

    def __init__(self, folder: Path, number: int | None, half: bool, together: bool, kinds: int):
        self.folder, self.number, self.half, self.together, self.kinds = str(folder), number, half, together, kinds
        self.count, self.busy = multiprocessing.Value("i", 0), False

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.busy or not (path := self._changed(event, arguments)):
            return
        self.busy = True
        os.write(self.kinds, f"{event} {''.join(Path(path).suffixes)}\n".encode())
        with self.count.get_lock():
            self.count.value += 1
            dies = self.count.value == self.number
        if dies:
            # Unnamed files are opened with the name of their folder.
            if self.half and event == "open" and not os.path.isdir(path):
                os.open(path, arguments[2])
            if self.half and event == "os.fsync" and os.path.isfile(path):
                os.truncate(path, os.path.getsize(path) // 2)
            os.kill(0 if self.together else os.getpid(), signal.SIGKILL)
        self.busy = False

    def fsync(self, file: Any) -> None:
        """Replace os.fsync, which raises no audit event."""
        self("os.fsync", (os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}"), -1))
        FSYNC(file)

    def _changed(self, event: str, arguments: tuple) -> str | None:
        """Path in the folder that the event changes; none if there is none."""
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & WRITING
            paths = arguments[:1] if writes else ()
        else:
            # The last argument is the open folder to which a path may be relative.
            paths = [_absolute(path, arguments[-1]) for path in arguments[: PATHS.get(event, 0)]]
        paths = [os.fspath(path) for path in paths if isinstance(path, str | Path)]
        return next((path for path in paths if path.startswith(self.folder)), None)


FSYNC = os.fsync


def _absolute(path: Any, folder: Any) -> Any:
    open_folder = isinstance(folder, int) and folder >= 0 and isinstance(path, str)
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path) if open_folder else path


class Forked:
    """Stand-in for a `Popen` of `python -m MODULE ARGUMENTS` that needs no time for imports."""

    def __init__(self, argv: list[str], env: dict, preexec_fn: Any, stdin: int, stdout: Any, stderr: Any):
        self.returncode, self.pid = None, os.fork()
        if self.pid == 0:
            preexec_fn()
            os.dup2(stdout.fileno(), 1), os.dup2(stderr.fileno(), 2)
            _run(argv[2:])


def _run(argv: list[str]) -> None:
    """Run a module as a command, and leave the process."""
    code, sys.argv = 1, argv
    try:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def run(request: dict) -> dict:
    """Run a command until all its processes have ended; returns exit code, kinds of writes and the end of its output.

    request: `argv` from the module on, `environment`, and the arguments of `Crash`; `number` none: do not kill.
    """
    kinds, said = os.pipe(), Path(request["said"])
    child = os.fork()
    if child == 0:
        # `together` kills this process group.
        os.setsid()
        os.environ.update(request["environment"])
        with said.open("wb") as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        crash = Crash(request["folder"], request["number"], request["half"], request["together"], kinds[1])
        sys.addaudithook(crash)
        os.fsync = crash.fsync
        processes.get_context = lambda method: multiprocessing.get_context("fork")
        job.subprocess = SimpleNamespace(Popen=Forked, DEVNULL=DEVNULL)
        # Compiled kernels would take seconds to load in each process.
        fastdwm.agent.obstacles = lambda *parts: ["kills need none"]
        _run(request["argv"])
    os.close(kinds[1])
    with os.fdopen(kinds[0]) as pipe:
        # The pipe ends when every process has ended.
        lines = pipe.read().splitlines()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"outcome": "ran", "code": code, "kinds": lines, "said": said.read_text(errors="replace")[-2000:]}
