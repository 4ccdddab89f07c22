"""The errors that commands print in one line: wrong input, or a failed run."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Wrong input; the message says in one line what was expected and what was given. Exit code 2."""


class RunError(RuntimeError):
    """A run that failed although its input was right; the message is one line. Exit code 1."""


MAX_LINE = 2000
"""longest message in characters: a file may hold names of megabytes"""


def one_line(text: str) -> str:
    """The text in one line of at most MAX_LINE printable characters; others are escaped.

    A name in a file that somebody else wrote must not send commands to the terminal.
    """
    words = " ".join(text.split())[: MAX_LINE + 1]
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)
    return escaped if len(escaped) <= MAX_LINE else f"{escaped[:MAX_LINE]}..."


def first_line(error: Exception) -> str:
    """Type and first line of an error, for a message of one line."""
    return one_line(f"{type(error).__name__}: {error}".splitlines()[0])


@contextmanager
def one_line_errors(source: str, expected: str) -> Iterator[None]:
    """Turn any error that a library raises for a broken file into an InputError, and hide its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except Exception as error:  # a flipped bit can cause any type, such as MemoryError and RecursionError
        raise InputError(f"{source}: cannot be read as {expected}: {first_line(error)}") from error


_shown: set[str] = set()


@contextmanager
def warned_once() -> Iterator[None]:
    """Show each warning from within once per process, since Gymnasium repeats them for every simulator."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        text = str(warning.message)
        if text not in _shown:
            _shown.add(text)
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
