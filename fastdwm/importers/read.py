"""Read `--policy KIND:FILE`."""

from collections.abc import Callable
from pathlib import Path

from fastdwm.checks import require
from fastdwm.errors import InputError
from fastdwm.importers.cleanrl import read_cleanrl
from fastdwm.importers.corl import read_corl
from fastdwm.importers.d3rlpy import read_d3rlpy
from fastdwm.importers.imported import Imported
from fastdwm.importers.onnx_policy import read_onnx_policy
from fastdwm.importers.sb3 import read_sb3

KINDS: dict[str, Callable[[Path, bool], Imported]] = {
    "sb3": read_sb3,
    "d3rlpy": read_d3rlpy,
    "corl": read_corl,
    "cleanrl": read_cleanrl,
    "onnx": read_onnx_policy,
}


def split(text: str) -> tuple[str, Path]:
    """Kind and path of KIND:FILE; raises InputError for an unknown kind."""
    kind, colon, name = text.partition(":")
    known = bool(colon) and kind in KINDS
    require(known, f"policy: expected KIND:FILE with one of the kinds {', '.join(KINDS)}, got {text[:120]!r}")
    return kind, Path(name)


def read_policy(text: str, with_critics: bool = True) -> Imported:
    """The policy in KIND:FILE, and its critics if it has any.

    with_critics: False leaves the file's critics unread.
    Raises InputError, in one line, for an unknown kind, for a file of another kind, and for a network that a bundle
    cannot hold.
    """
    kind, path = split(text)
    try:
        result = KINDS[kind](path, with_critics)
        result.check_values()
        return result
    except MemoryError:
        raise InputError(f"policy: {path}: its networks do not fit into memory") from None
    except InputError as error:
        message = str(error).removeprefix("policy: ")
        message = message if message.startswith(str(path)) else f"{path}: {message}"
        raise InputError(f"policy: {message}") from None
