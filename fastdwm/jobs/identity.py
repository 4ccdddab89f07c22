"""Identity of a job or a run: everything that its result depends on, as JSON values."""

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
    """Describe each setting that differs; a setting that only one identity has counts as None in the other."""
    result = []
    for name in saved | now:
        old, new = saved.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            result += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            result.append(f"{prefix}{name}: {old}, now {new}")
    return result


def refuse_other(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path, what: str) -> None:
    """Raise InputError, which names the differences, unless the jobs in the folder have the identity `now`."""
    if changes := differences(saved, now):
        ways = "give the same settings again, another --out, or move it away"
        raise InputError(f"out: {folder} holds another {what} ({'; '.join(changes)}); {ways}")


def read_identity(path: Path, what: str) -> dict[str, Any]:
    """Read the identity of a folder from its file; InputError for a file that holds none."""
    try:
        saved = read_json(path, MAX_BYTES)
        require(isinstance(saved, dict), f"{path.name} does not describe a {what}")
    except InputError as error:
        raise InputError(f"out: cannot use the folder {path.parent}: {error}; move it away") from None
    return saved


def digest(identity: Mapping[str, Any]) -> str:
    """SHA-256 of an identity in hexadecimal; it names the files in a folder with jobs of many identities."""
    return sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
