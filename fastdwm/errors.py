"""The exceptions that a command tells in one line: the input cannot be used, or the run has failed."""


class InputError(ValueError):
    """Wrong input, told in one line: what was expected and what came. Commands print it and exit with code 2."""


class RunError(RuntimeError):
    """A run that failed through no fault of the input, told in one line. Commands print it and exit with code 1."""


def first_line(error: Exception) -> str:
    """Type and first line of an error's message, for a message of one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
