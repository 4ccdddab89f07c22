"""The exceptions that a command tells in one line: the input cannot be used, or the run has failed."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Wrong input, told in one line: what was expected and what came. Commands print it and exit with code 2."""


class RunError(RuntimeError):
    """A run that failed through no fault of the input, told in one line. Commands print it and exit with code 1."""


MAX_LINE = 2000
"""of a message: a file may hold names of megabytes"""


def one_line(text: str) -> str:
    """The text in one line of at most MAX_LINE printable characters, all others escaped.

    A name in a file that somebody else wrote must not command the terminal.
    """
    words = " ".join(text.split())[: MAX_LINE + 1]
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)
    return escaped if len(escaped) <= MAX_LINE else f"{escaped[:MAX_LINE]}..."


def first_line(error: Exception) -> str:
    """Type and first line of an error's message, for a message of one line."""
    return one_line(f"{type(error).__name__}: {error}".splitlines()[0])


@contextmanager
def one_line_errors(source: str, expected: str) -> Iterator[None]:
    """Whatever the libraries raise for a broken file becomes one InputError; their warnings are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except Exception as error:  # a flipped bit can surface as any type, MemoryError and RecursionError among them
        raise InputError(f"{source}: cannot be read as {expected}: {first_line(error)}") from error
