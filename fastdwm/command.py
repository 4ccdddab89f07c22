"""What the commands share: parsing `TASK [--preset NAME] [flags]`, exit codes, progress, torch's threads and device."""

import argparse
import contextlib
import dataclasses
import errno
import io
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile
from typing import Annotated, Any, Literal, NoReturn

from fastdwm.errors import InputError, RunError, one_line

# on_progress(stage, done, total): `done` of at most `total` units of the named stage are finished
Progress = Callable[[str, int, int], None]
# the same of one stage: on_progress(done, total)
StageProgress = Callable[[int, int], None]

TASK = "TASK", "task, for example hopper-medium"
"""the first word of most commands, in --help"""
PLAIN_PERIOD_S = 5.0
# What it is called on a disk, in a quota, and under a limit on the size of files.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# own(task, configuration of the first preset) -> where that preset starts for this task; none: where it does for all
Own = Callable[[str, Any], Any]


def run(
    main: Callable[[str, Any], None],
    presets: Callable[[], Mapping[str, Any]],
    prog: str,
    own: Own = lambda task, config: None,
) -> NoReturn:
    """Parse the command line, call main(task, config) and leave the process.

    presets: builds the named configurations, of one dataclass; the first is the default.   prog: the name in --help.
    Exit code 0 on success, 2 for wrong input (one line on stderr), 130 on Ctrl-C, 1 for a full disk or a RunError (one
    line too); anything else is a failed run and keeps its traceback and exit code 1.
    """
    finish(lambda: main(*parse(presets(), prog, main.__doc__ or "", sys.argv[1:], own)))


def finish(action: Callable[[], None]) -> NoReturn:
    """Call `action` and leave the process with the exit codes of `run`."""
    # A terminal that cannot print a character, such as ±, shows a question mark.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        action()
        print(end="", flush=True)
    except (InputError, RunError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except BrokenPipeError:
        # The pipe may also be one to a process of ours.
        if not _reader_is_gone():
            raise
        # The reader of our output, such as `head`, has seen enough.
        os._exit(0)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        what = one_line(f"cannot write {error.filename or 'a file'}: {error.strerror}")
        print(
            f"error: {what}; make room and give the same command again, what was saved before is kept", file=sys.stderr
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    if sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def parse(
    presets: Mapping[str, Any],
    prog: str,
    description: str,
    argv: list[str],
    own: Own = lambda task, config: None,
) -> tuple[str, Any]:
    """Task name and configuration given by `argv`: the preset's values, overridden by flags.

    The first preset may depend on the task, and on what the flags say of where to look: then it is read again.

    Raises InputError for values that the configuration refuses, SystemExit(2) for unknown flags and values that do not
    parse (told on stderr), SystemExit(0) after --help.
    """
    import tyro

    # The preset is read first because its values are the defaults that tyro shows and that the flags override.
    early = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    default = next(iter(presets))
    early.add_argument("--preset", default=default)
    name = early.parse_known_args(argv)[0].preset
    config = presets.get(name, presets[default])
    preset_help = "the settings that the other flags start from"
    preset = Annotated[Literal[tuple(presets)], tyro.conf.arg(help=preset_help)], default
    task, preset, config = read(config, prog, description, argv, flags={"preset": preset}, task=TASK)
    start = own(task, config) if preset == default else None
    if start is not None:
        return parse({**presets, default: start}, prog, description, argv)
    return task, config


def read(
    config: Any,
    prog: str,
    description: str | None,
    argv: list[str],
    *markers: Any,
    flags: Mapping[str, tuple] | None = None,
    **words: tuple,
) -> tuple:
    """The words that `argv` has, then the flags, then the configuration; raises as `parse`.

    words: by name, each as --help shows and explains it, such as TASK; then its type, unless it is text, and its
    default, if it has one.   flags: by name, type and default.   markers: of tyro, for the configuration.
    config: where it starts from; a type: it has no defaults.
    """
    import tyro

    def positional(metavar: str, text: str, kind: Any = str, *default: Any) -> tuple:
        return Annotated[kind, tyro.conf.Positional, tyro.conf.arg(metavar=metavar, help=text)], *default

    kind, *start = (config,) if isinstance(config, type) else (type(config), config)
    fields = [(name, *positional(*word)) for name, word in words.items()]
    fields += [(name, *flag) for name, flag in (flags or {}).items()]
    fields.append(("config", Annotated[kind, tyro.conf.arg(name=""), *markers], *start))
    arguments = dataclasses.make_dataclass("Arguments", fields, frozen=True)
    errors = io.StringIO()
    try:
        # tyro frames whatever it says about an error; what a configuration refuses is told in one line instead.
        with contextlib.redirect_stderr(errors):
            parsed = tyro.cli(arguments, prog=prog, description=description, args=argv)
            return tuple(getattr(parsed, name) for name, *_ in fields)
    except SystemExit as stop:
        for refused in _causes(stop):
            if isinstance(refused, InputError):
                raise refused from None
        if stop.code == 2:
            raise InputError(_replaced(argv) or _unboxed(errors.getvalue())) from None
        raise


def _replaced(argv: list[str]) -> str:
    """What serves in the place of the first flag that an earlier version had; empty if there is none."""
    from fastdwm.config import REPLACED

    for flag in argv:
        name = flag.partition("=")[0].removeprefix("--itpo.").replace("-", "_")
        if flag.startswith("--itpo.") and name in REPLACED:
            return f"{flag.partition('=')[0]} is a setting of an earlier version: {REPLACED[name]}"
    return ""


def _unboxed(message: str) -> str:
    """What tyro's framed message says between its title and its help texts, in one line."""
    lines = [line.strip("╭╮╰╯│─ ") for line in message.splitlines()]
    said = [line for line in lines if line][1:]
    return " ".join(takewhile(lambda line: not line.startswith(("Argument helptext", "For full helptext")), said))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The errors that were being handled when `error` was raised, newest first."""
    while (error := error.__cause__ or error.__context__) is not None:
        yield error


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Yields an `on_progress` that shows each stage on stderr with elapsed and remaining time.

    A terminal gets one live bar per stage, anything else a plain line per stage every PLAIN_PERIOD_S seconds.
    """
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_progress()
        return
    left = (rich.TimeElapsedColumn(), rich.TextColumn("left"), rich.TimeRemainingColumn())
    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn(), *left)
    with rich.Progress(*columns, console=console) as bars:
        stages: dict[str, Any] = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage)
            bars.update(stages[stage], completed=done, total=total)

        yield on_progress


def unwatched(done: int, total: int) -> None:
    """The StageProgress that nobody watches."""


def _plain_progress() -> Progress:
    """An `on_progress` for log files: lines, not too many of them."""
    # A resumed stage starts with much of it done: only what happened since tells how fast it goes.
    started: dict[str, tuple[float, int]] = {}
    shown: dict[str, float] = {}

    def on_progress(stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        start, done_before = started.setdefault(stage, (now, done))
        if done < total and now - shown.setdefault(stage, start) < PLAIN_PERIOD_S:
            return
        shown[stage] = now
        elapsed = now - start
        left = elapsed * (total - done) / max(done - done_before, 1)
        print(f"{stage}: {done}/{total}, {_clock(elapsed)} elapsed, {_clock(left)} left", file=sys.stderr, flush=True)

    return on_progress


def _clock(seconds: float) -> str:
    """Minutes and seconds, such as 3:07."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def set_up_torch(threads: int | None, device: str) -> None:
    """Fix torch's CPU threads and check that `device` works; raises InputError if it does not."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        torch.zeros(1, device=device)
    # What torch raises for a missing device depends on the backend and on how torch was built.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device: cannot use {device!r}: {str(error).splitlines()[0]}") from None
