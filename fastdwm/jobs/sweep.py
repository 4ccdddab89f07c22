"""The file of a finished cell of a sweep: its format, and which cells may stand in one table.

Two identities are told apart. That of an outcome, a score or a weight: commands, seeds, weights and the physics,
wherever it was computed. That of a latency: the machine and its threads.
"""

import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from fastdwm.checks import require
from fastdwm.jobs.results import Record, read
from fastdwm.machine import machine, package_versions

# Increase when the meaning of a cell's file changes.
FORMAT = 1
KINDS = {
    "format": Literal[FORMAT],
    "task": str,
    "seed": int,
    "stage": str,
    "identity": dict,
    "machine": dict,
    "wall_s": float,
    "result": dict,
    "peak_memory_mb": float | None,
}
"""types of the values in a cell's file"""
PHYSICS = ("mujoco", "gymnasium")
VARIANTS = ("default", "tuned", "meanflow", "critic", "drift")
"""settings and controls that an evaluation compares with the base policy"""


def physics() -> dict[str, str]:
    """Versions of the packages that the outcome of an episode depends on."""
    return package_versions(PHYSICS)


def host() -> dict[str, Any]:
    """What latencies depend on, of this machine, for a process with one thread; torch is not imported."""
    return {"host": platform.node(), **machine(threads=1)}


def read_cell(path: Path) -> Record:
    """The file of a finished cell; InputError for any other."""
    return read(path, "sweep", KINDS)


def read_cells(out: Path, pattern: str = "*.json") -> dict[str, Record]:
    """The finished cells below the folder of a sweep by name, all of one physics; InputError for anything else."""
    records = {path.stem: read_cell(path) for path in sorted((out / "cells").glob(pattern))}
    require_one_physics(records)
    return records


def require_one_physics(records: Mapping[str, Record]) -> None:
    """Raise InputError unless all outcomes come from the same versions of the simulator."""
    versions = {name: record["identity"].get("versions") for name, record in records.items()}
    first = next(iter(versions), None)
    for name, other in versions.items():
        known = f"{first} has {versions[first]}, {name} {other}"
        require(other == versions[first], f"out: cells of different physics: {known}; keep them apart")


def one_machine(records: Iterable[Record]) -> bool:
    """Whether the latencies of the cells may stand in one table: same machine, same threads."""
    machines = [record["machine"] for record in records]
    return all(machine == machines[0] for machine in machines)
