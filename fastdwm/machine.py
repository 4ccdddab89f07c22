"""Describe package versions and the machine for records of results. The packages are not imported."""

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("fastdwm", "torch", "numpy", "gymnasium", "mujoco", "minari")


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of the installed ones of the packages."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def machine(threads: int, accelerator: str | None = None) -> dict[str, Any]:
    """Description of the machine, on which latencies depend."""
    cpu = {"cpu": cpu_model(), "cpu_count": os.cpu_count()}
    return {**cpu, "threads": threads, "accelerator": accelerator, "system": platform.system()}


def cpu_model() -> str:
    """Name of the CPU's model, as far as the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
