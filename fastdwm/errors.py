"""The one exception that means: what the user gave cannot be used."""


class InputError(ValueError):
    """Wrong input, told in one line: what was expected and what came. Commands print it and exit with code 2."""
