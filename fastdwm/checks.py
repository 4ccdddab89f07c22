"""Check settings and other input of the user; invalid values raise InputError with a message of one line."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from reprlib import repr as shorten
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fastdwm.errors import InputError

MAX_LAYERS, MAX_WIDTH = 16, 8192


def require(condition: bool, message: str) -> None:
    """Raise InputError(message) unless `condition` holds."""
    if not condition:
        raise InputError(message)


@dataclass(frozen=True)
class Bound:
    """A condition on the value of a field, in the field's annotation."""

    fits: Callable[[Any], bool]
    words: str
    """description for error messages"""


POSITIVE = Bound(lambda value: value > 0, "a positive number")
NOT_NEGATIVE = Bound(lambda value: value >= 0, "a number >= 0")
WIDTHS = Bound(
    lambda hidden: 0 < len(hidden) <= MAX_LAYERS and 0 < min(hidden) and max(hidden) <= MAX_WIDTH,
    f"at most {MAX_LAYERS} widths up to {MAX_WIDTH}, all positive",
)


def at_most(most: float) -> Bound:
    """A number up to `most`."""
    return Bound(lambda value: value <= most, f"at most {most:g}")


def multiple_of(factor: int) -> Bound:
    """A positive multiple of `factor`."""
    return Bound(lambda value: value > 0 and value % factor == 0, f"a positive multiple of {factor}")


def within(interval: str) -> Bound:
    """A number in the interval, such as "(0, 1]"."""
    low, high = map(float, interval[1:-1].split(","))
    ends = [low] * (interval[0] == "[") + [high] * (interval[-1] == "]")
    return Bound(lambda value: low < value < high or value in ends, f"a number in {interval}")


class Checked:
    """Base of dataclasses that check their fields: a value must be None, or fit the Literal and Bound of its field."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value, options = getattr(self, item.name), choices(item.type)
            fits = not options or any(value == option for option in options)
            require(fits, f"{item.name}: expected one of {', '.join(map(str, options))}, got {value!r}")
            for bound in getattr(item.type, "__metadata__", ()):
                fits = value is None or bound.fits(value)
                require(fits, f"{item.name}: expected {bound.words}, got {shorten(value)}")


def choices(kind: Any) -> tuple:
    """The values of a Literal, and of a union with one; empty for other types."""
    if get_origin(kind) is Union:
        listed = [choices(part) for part in get_args(kind) if part is not NoneType]
        return (*sum(listed, ()), None) if any(listed) else ()
    return get_args(kind) if get_origin(kind) is Literal else ()


def from_json(kind: Any, value: Any, where: str = "") -> Any:
    """Convert a JSON value to the type: objects become dataclasses, lists tuples.

    kind: a dataclass, tuple[X, ...], list[X], dict[str, X], Literal, a plain type or a union of these. Types are
    strict: neither true nor a number in quotes is a number; but an integer is a float as well.
    Raises InputError, which begins with `where`, for values of other types, and for fields of a dataclass that are
    missing, unknown or invalid.
    """
    kind = kind.__origin__ if get_origin(kind) is Annotated else kind
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for part in parts:
        origin, options = get_origin(part), get_args(part)
        if is_dataclass(part) and isinstance(value, dict):
            return _read_fields(part, value, f"{where}: " if where else "")
        if origin in (tuple, list) and isinstance(value, list):
            return origin(from_json(options[0], item, where) for item in value)
        if origin is dict and isinstance(value, dict):
            return {name: from_json(options[1], item, where) for name, item in value.items()}
        if origin is Literal and any(type(value) is type(option) and value == option for option in options):
            return value
        if part is Any or type(value) in ((int, float) if part is float else (part,)):
            return value
    raise InputError(f"{where}: expected {' | '.join(map(_name, parts))}, got {shorten(value)}")


def _read_fields(kind: type, values: dict[str, Any], prefix: str) -> Any:
    """Make a dataclass from a JSON object. Null stands for an infinite default, because JSON has no infinity.

    Fields in the class's OPTIONAL, which earlier versions did not have, may be missing.
    """
    expected, read = {item.name: item for item in fields(kind)}, {}
    optional = set(getattr(kind, "OPTIONAL", ())) - values.keys()
    for name in sorted((values.keys() | expected.keys()) - optional):
        require(name in expected, f"{prefix}{shorten(name)} is not a setting that this version knows")
        require(name in values, f"{prefix}{name} is missing")
        value, default = values[name], expected[name].default
        infinite = value is None and default in (math.inf, -math.inf)
        read[name] = default if infinite else from_json(expected[name].type, value, prefix + name)
    with prefixed(prefix):
        return kind(**read)


@contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Put the prefix in front of InputErrors from within."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{prefix}{error}") from None


def _name(kind: Any) -> str:
    """Name of a type for error messages."""
    if is_dataclass(kind) or kind is NoneType:
        return "None" if kind is NoneType else "dict"
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def conforms(value: Any, kind: Any) -> bool:
    """Whether `from_json` accepts the JSON value for the type."""
    try:
        from_json(kind, value)
    except InputError:
        return False
    return True
