"""What the settings and the user's other input are held to: one line of InputError for whatever cannot be used."""

from dataclasses import fields
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin

from fastdwm.errors import InputError


def require(condition: bool, message: str) -> None:
    """Raise InputError(message) unless `condition` holds."""
    if not condition:
        raise InputError(message)


def require_positive(config: Any, *names: str) -> None:
    """Raise InputError unless each of these fields is positive or none."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value > 0, f"{name}: expected a positive number, got {value}")


def require_widths(hidden: tuple[int, ...]) -> None:
    """Raise InputError unless there is at least one hidden layer and every width is positive."""
    require(len(hidden) > 0 and min(hidden) > 0, f"hidden: expected positive widths, got {hidden}")


def require_choices(config: Any) -> None:
    """Raise InputError where a field declared as Literal, or as Literal | None, has another value, as one read from
    JSON or written in Python may."""
    for item in fields(config):
        value, options = getattr(config, item.name), choices(item.type)
        fits = not options or any(value == option for option in options)
        require(fits, f"{item.name}: expected one of {', '.join(map(str, options))}, got {value!r}")


def choices(kind: Any) -> tuple:
    """Values that a type lists; none for a type that lists none."""
    if get_origin(kind) is Union:
        listed = [choices(part) for part in get_args(kind) if part is not NoneType]
        return (*sum(listed, ()), None) if any(listed) else ()
    return get_args(kind) if get_origin(kind) is Literal else ()
