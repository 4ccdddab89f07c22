"""Commands that are called in this process, which is faster than starting one."""

from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest

from fastdwm import command
from fastdwm.eval import __main__ as evaluation


def called(capsys: pytest.CaptureFixture, main: Callable, parse: Callable, *args: Any) -> CompletedProcess:
    """What a command leaves, that runs main(*parse(arguments))."""
    argv = list(map(str, args))
    with pytest.raises(SystemExit) as stop:
        command.finish(lambda: main(*parse(argv)))
    said = capsys.readouterr()
    return CompletedProcess(argv, stop.value.code, said.out, said.err)


def evaluate(capsys: pytest.CaptureFixture, *args: Any) -> CompletedProcess:
    """The same of python -m fastdwm.eval."""

    def parse(argv: list[str]) -> tuple[str, Any]:
        return command.parse(evaluation.presets(), "python -m fastdwm.eval", "", argv, evaluation.tuned)

    return called(capsys, evaluation.main, parse, *args)


def refused(done: CompletedProcess, *messages: str) -> None:
    """One line on stderr that has the messages, exit code 2, nothing on stdout."""
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done
    assert done.stderr.startswith("error: ") and all(message in done.stderr for message in messages), done.stderr
