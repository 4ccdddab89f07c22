"""Identity of a job or a run: all that its result depends on, in JSON's own types. Other settings are refused."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastdwm.checks import require
from fastdwm.errors import InputError
from fastdwm.files import read_json

MAX_BYTES = 2**20


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ, in words; one that only one of the identities has is None in the other."""
    result = []
    for name in saved | now:
        old, new = saved.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            result += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            result.append(f"{prefix}{name}: {old}, now {new}")
    return result


def refuse_other(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path, what: str) -> None:
    """Raise InputError, naming the differences, unless the folder's jobs have the identity of those to be run."""
    if other := differences(saved, now):
        ways = "give the same settings again, another --out, or move it away"
        raise InputError(f"out: {folder} holds another {what} ({'; '.join(other)}); {ways}")


def read_identity(path: Path, what: str) -> dict[str, Any]:
    """The identity in a folder's file; InputError for a file that holds none."""
    try:
        saved = read_json(path, MAX_BYTES)
        require(isinstance(saved, dict), f"{path.name} does not describe a {what}")
    except InputError as error:
        raise InputError(f"out: cannot use the folder {path.parent}: {error}; move it away") from None
    return saved


def digest(identity: Mapping[str, Any]) -> str:
    """SHA-256 of an identity, in hexadecimal: the name of a file whose folder holds jobs of many identities."""
    return sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
