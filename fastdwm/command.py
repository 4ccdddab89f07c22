"""Shared by the commands: parsing `TASK [--preset NAME] [flags]`, exit codes, progress, torch's threads and device."""

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

# on_progress(stage, done, total): `done` of at most `total` units of the stage are finished.
Progress = Callable[[str, int, int], None]
# on_progress(done, total) of one stage.
StageProgress = Callable[[int, int], None]

TASK = (
    "TASK",
    "a name such as hopper-medium, a Minari id such as mujoco/ant/expert-v0, the folder of a bundle, or a name of your "
    "own beside --env",
)
"""name and help text of the first argument of most commands"""
PLAIN_PERIOD_S = 60.0
"""seconds between the progress lines of a stage in a log"""
# Errors for a full disk, an exhausted quota, and a limit on the size of files.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# own(task, parsed configuration) -> the first preset's configuration for this task; none: the same as for all tasks.
Own = Callable[[str, Any], Any]


def run(
    main: Callable[[str, Any], None],
    presets: Callable[[], Mapping[str, Any]],
    prog: str,
    own: Own = lambda task, config: None,
    *,
    resumes: bool = False,
) -> NoReturn:
    """Parse the command line, call main(task, config) and leave the process.

    presets: builds the named configurations, of one dataclass; the first is the default.   prog: the name in --help.
    resumes: as in `finish`.
    Exit code 0 on success, 2 for wrong input (one line on stderr), 130 on Ctrl-C, 1 for a full disk or a RunError (one
    line). Any other error keeps its traceback and has exit code 1.
    """
    finish(lambda: main(*parse(presets(), prog, main.__doc__ or "", sys.argv[1:], own)), resumes=resumes)


def finish(action: Callable[[], None], *, resumes: bool = False) -> NoReturn:
    """Call `action` and leave the process with the exit codes of `run`.

    resumes: the same command goes on after Ctrl-C, and the message says so.
    """
    # Print a question mark for characters, such as ±, that the terminal cannot show.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        action()
        print(end="", flush=True)
    except (InputError, RunError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except BrokenPipeError:
        # The broken pipe may also be one to a child process.
        if not _reader_is_gone():
            raise
        # The reader of our output, such as `head`, has closed it.
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
        print("interrupted" + "; the same command goes on from what is saved" * resumes, file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe whose reader has closed it."""
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
    """Task name and configuration from `argv`: the preset's values, overridden by flags.

    The first preset may depend on the task and on flags (`own`); `argv` is then parsed again with that preset.

    Raises InputError for invalid values and unknown flags, SystemExit(0) after --help.
    """
    import tyro

    # The preset is read first, because its values are the defaults that tyro shows and the flags override.
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
    """The positional arguments, then the flags, then the configuration in `argv`; raises as `parse`.

    words: positional arguments by name, each (name in --help, help text), such as TASK, then its type if it is not
    text, and its default if it has one.   flags: (type, default) by name.   markers: of tyro, for the configuration.
    config: the default configuration, or a dataclass without defaults for all fields.
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
        # tyro prints errors in a frame; here they become one line.
        with contextlib.redirect_stderr(errors):
            parsed = tyro.cli(arguments, prog=prog, description=description, args=argv)
            return tuple(getattr(parsed, name) for name, *_ in fields)
    except SystemExit as stop:
        for cause in _causes(stop):
            if isinstance(cause, InputError):
                raise cause from None
        if stop.code == 2:
            raise InputError(_replaced(argv) or _unboxed(errors.getvalue())) from None
        raise


def _replaced(argv: list[str]) -> str:
    """Message about the first flag that only earlier versions had; empty if there is none."""
    from fastdwm.config import REPLACED

    for flag in argv:
        name = flag.partition("=")[0].removeprefix("--itpo.").replace("-", "_")
        if flag.startswith("--itpo.") and name in REPLACED:
            return f"{flag.partition('=')[0]} is a setting of an earlier version: {REPLACED[name]}"
    return ""


def _unboxed(message: str) -> str:
    """The text between the title and the help texts of tyro's framed message, in one line."""
    lines = [line.strip("╭╮╰╯│─ ") for line in message.splitlines()]
    body = [line for line in lines if line][1:]
    return " ".join(takewhile(lambda line: not line.startswith(("Argument helptext", "For full helptext")), body))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The errors that were being handled when `error` was raised, newest first."""
    while (error := error.__cause__ or error.__context__) is not None:
        yield error


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Yield an `on_progress` that shows each stage on stderr with elapsed and remaining time.

    A terminal shows a live bar per stage; a log gets a line per stage every PLAIN_PERIOD_S seconds.
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
    """A StageProgress that does nothing."""


def _plain_progress() -> Progress:
    """An `on_progress` for log files, which prints lines at intervals."""
    # Units that were done before a stage resumed do not count for its speed.
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
    """Set torch's CPU threads and check that `device` works; raises InputError if it does not."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        torch.zeros(1, device=device)
    # The error for a missing device depends on the backend and on torch's build.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device: cannot use {device!r}: {str(error).splitlines()[0]}") from None
