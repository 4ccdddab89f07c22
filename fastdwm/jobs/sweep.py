"""The file of a finished job of a sweep: its format, and which jobs may stand in one table.

A score or a weight depends on commands, seeds, weights and versions of the simulator, on whichever machine it was
computed. A latency depends on the machine and its threads as well.
"""

import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from fastdwm.checks import require
from fastdwm.jobs.results import Record, read
from fastdwm.machine import machine, package_versions

# Increase when the meaning of a job's file changes.
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
"""types of the values in a job's file"""
PHYSICS = ("mujoco", "gymnasium")
VARIANTS = ("default", "tuned", "meanflow", "critic", "drift")
"""settings, and the control, that an evaluation compares with the base policy"""


def physics() -> dict[str, str]:
    """Versions of the packages that the return of an episode depends on."""
    return package_versions(PHYSICS)


def host() -> dict[str, Any]:
    """Description of this machine, as far as the latencies of one thread depend on it; torch is not imported."""
    return {"host": platform.node(), **machine(threads=1)}


def read_job(path: Path) -> Record:
    """The record in the file of a finished job; InputError for any other file."""
    return read(path, "sweep", KINDS)


def read_jobs(out: Path, pattern: str = "*.json") -> dict[str, Record]:
    """Records of a sweep's finished jobs by name; InputError for other files, and for several simulator versions."""
    records = {path.stem: read_job(path) for path in sorted((out / "cells").glob(pattern))}
    require_one_physics(records)
    return records


def require_one_physics(records: Mapping[str, Record]) -> None:
    """Raise InputError unless all results come from the same versions of the simulator."""
    versions = {name: record["identity"].get("versions") for name, record in records.items()}
    first = next(iter(versions), None)
    for name, other in versions.items():
        both = f"{first} has {versions[first]}, {name} {other}"
        require(other == versions[first], f"out: jobs of different simulator versions: {both}; keep them apart")


def one_machine(records: Iterable[Record]) -> bool:
    """Whether the latencies of the jobs may stand in one table: same machine, same threads."""
    machines = [record["machine"] for record in records]
    return all(machine == machines[0] for machine in machines)
