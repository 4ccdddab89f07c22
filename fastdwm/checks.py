"""What the settings and the user's other input are held to: one line of InputError for whatever cannot be used."""

from dataclasses import fields
from reprlib import repr as shorten
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from fastdwm.errors import InputError

MAX_LAYERS, MAX_WIDTH = 16, 8192


def require(condition: bool, message: str) -> None:
    """Raise InputError(message) unless `condition` holds."""
    if not condition:
        raise InputError(message)


def require_positive(config: Any, *names: str) -> None:
    """Raise InputError unless each of these fields is positive or none."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value > 0, f"{name}: expected a positive number, got {value}")


def require_at_most(config: Any, most: float, *names: str) -> None:
    """Raise InputError unless each of these fields is a number up to `most`, or none."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value <= most, f"{name}: expected at most {most:g}, got {shorten(value)}")


def require_widths(hidden: tuple[int, ...]) -> None:
    """Raise InputError unless there are 1 to MAX_LAYERS hidden layers, all of 1 to MAX_WIDTH units."""
    require(len(hidden) > 0 and min(hidden) > 0, f"hidden: expected positive widths, got {shorten(hidden)}")
    fits = len(hidden) <= MAX_LAYERS and max(hidden) <= MAX_WIDTH
    require(fits, f"hidden: expected at most {MAX_LAYERS} widths up to {MAX_WIDTH}, got {shorten(hidden)}")


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


def from_json(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass of plain settings from JSON, where lists stand for tuples; InputError for a setting that is missing,
    unknown or of another type: true is no number, and a number in quotes is none either."""
    expected = {item.name: item.type for item in fields(kind)}
    for name in sorted(values.keys() | expected.keys()):
        require(name in expected, f"{shorten(name)} is not a setting that this version knows")
        require(name in values, f"{name} is missing")
        require_type(name, values[name], expected[name])
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def require_type(name: str, value: Any, kind: Any) -> None:
    """Raise InputError unless the JSON value is of the type, as `conforms` has it."""
    words = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
    require(conforms(value, kind), f"{name}: expected {words}, got {shorten(value)}")


def conforms(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of the type, to the letter; an integer is a float as well."""
    options = get_args(kind)
    if get_origin(kind) is Literal:
        return any(type(value) is type(option) and value == option for option in options)
    if get_origin(kind) in (tuple, list):
        return isinstance(value, list) and all(conforms(item, options[0]) for item in value)
    if get_origin(kind) in (Union, UnionType):
        return any(conforms(value, option) for option in options)
    return type(value) in ((int, float) if kind is float else (kind,))
