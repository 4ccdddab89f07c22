"""Read the files of finished jobs, one JSON each, and check everything in them."""

from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

from fastdwm.checks import conforms, require
from fastdwm.files import read_json
from fastdwm.jobs.identity import refuse_other

MAX_BYTES = 64 * 2**20
MOST = 1e9
"""largest number allowed in a record, so that no sum overflows"""

Record = dict[str, Any]


def read(path: Path, what: str, kinds: Mapping[str, Any]) -> Record:
    """The record of a finished job of a `what`; InputError if a key is missing or has another type than in `kinds`."""
    record = read_json(path, MAX_BYTES)
    values = record if isinstance(record, dict) else {}
    wrong = next((name for name, kind in kinds.items() if not _fits(values.get(name), kind)), None)
    reason = f"{wrong}: {shorten(values.get(wrong))}"
    require(wrong is None, f"{path} is not a finished job of a {what} ({reason}); move it away")
    return record


def _fits(value: Any, kind: Any) -> bool:
    """Whether the value has the type and, if it is a number, lies in [0, MOST]."""
    return conforms(value, kind) and (not isinstance(value, int | float) or 0 <= value <= MOST)


def read_all(folder: Path, what: str, identity: Mapping[str, Any]) -> dict[str, Record]:
    """Records of the finished jobs in the folder by name; InputError for a file with another identity."""
    records = {path.stem: read(path, what, {"identity": dict}) for path in sorted(folder.glob("*.json"))}
    for record in records.values():
        refuse_other(record["identity"], identity, folder, what)
    return records
