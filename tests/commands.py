"""Run commands as a user does, in this process, which is faster, or in a new one."""

import io
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from fastdwm.errors import InputError

# The output of a command then depends on neither the number of CPUs nor the terminal.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
HANG_S = 600.0


def run(name: str | Path, *args: Any, env: dict[str, Any] | None = None) -> CompletedProcess:
    """Run `python -m fastdwm.NAME ARGS` in this process, and raise errors that the command does not report.

    name: of a command, or the path of a script.   env: further environment variables.
    """
    out, err = io.StringIO(), io.StringIO()
    with _undisturbed(), redirect_stdout(out), redirect_stderr(err):
        os.environ |= ENVIRONMENT | {key: str(value) for key, value in (env or {}).items()}
        sys.orig_argv = argv(name, *args)
        sys.argv = [str(name), *map(str, args)]
        # Tests import the command's modules too.
        warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
        try:
            if isinstance(name, Path):
                runpy.run_path(str(name), run_name="__main__")
            else:
                runpy.run_module(f"fastdwm.{name}", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as stop:
            code = stop.code
    return CompletedProcess(args, code, out.getvalue(), err.getvalue())


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Restore the state of the process that commands change."""
    import torch

    lines, variables, threads = (sys.argv, sys.orig_argv), dict(os.environ), torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        sys.argv, sys.orig_argv = lines
        os.environ.clear()
        os.environ |= variables
        torch.set_num_threads(threads)


def argv(name: str | Path, *args: Any) -> list[str]:
    """Command line of `python -m fastdwm.NAME ARGS`, or of a script."""
    command = [str(name)] if isinstance(name, Path) else ["-m", f"fastdwm.{name}"]
    return [sys.executable, *command, *map(str, args)]


def environment(**changes: Any) -> dict[str, str]:
    """Environment of a command in a new process."""
    return os.environ | ENVIRONMENT | {key: str(value) for key, value in changes.items()}


def spawn(name: str, *args: Any, env: dict[str, Any] | None = None, **how: Any) -> CompletedProcess:
    """Run the command in a new process, for tests of limits, signals and hash seeds.   how: for `subprocess.run`."""
    how = {"capture_output": True, "text": True, "timeout": HANG_S} | how
    return subprocess.run(argv(name, *args), env=environment(**(env or {})), **how)


@contextmanager
def input_error(message: str) -> Iterator[None]:
    """Check for an InputError of one line that matches the message."""
    with pytest.raises(InputError, match=message) as error:
        yield
    assert "\n" not in str(error.value)


def refused(done: CompletedProcess, *messages: str) -> None:
    """Check for one line on stderr that has the messages, exit code 2 and nothing on stdout."""
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done
    assert done.stderr.startswith("error: ") and all(message in done.stderr for message in messages), done.stderr
