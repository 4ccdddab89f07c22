"""The one exception that means: what the user gave cannot be used."""


class InputError(ValueError):
    """Wrong input, told in one line: what was expected and what came. Commands print it and exit with code 2."""


def first_line(error: Exception) -> str:
    """Type and first line of an error's message, for a message of one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
