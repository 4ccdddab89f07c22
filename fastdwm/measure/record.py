"""What a command leaves behind: JSON files with their circumstances, and numbers as they stand in a table."""

import json
import math
import os
import platform
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastdwm.errors import InputError
from fastdwm.files import write_atomically


def prepare_output(folder: Path, task: str) -> Path:
    """OUT/TASK-TIME, without a suffix; creates the folder, raises InputError unless files can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"out: cannot write to {folder}: {error.strerror}") from None
    # The process id keeps apart what a script starts at once.
    return folder / f"{task}-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"


def circumstances(device: str) -> dict[str, Any]:
    """When, by which command, with which packages and on which machine a result was made."""
    from fastdwm.bundle import package_versions

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "versions": {"python": platform.python_version(), **package_versions()},
        "machine": machine(device),
    }


def machine(device: str) -> dict[str, Any]:
    """What the latencies were measured on."""
    import torch

    accelerator = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    cpu = {"cpu": platform.processor() or platform.machine(), "cpu_count": os.cpu_count()}
    return {**cpu, "threads": torch.get_num_threads(), "accelerator": accelerator, "system": platform.system()}


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write `record` with one line per key; the file appears complete or not at all. NaN and infinity become null."""
    lines = [f"{json.dumps(key)}: {json.dumps(strict(value), allow_nan=False)}" for key, value in record.items()]
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def strict(value: Any) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def spread(summary: dict[str, Any]) -> str:
    """Mean ± standard deviation; the mean alone for one episode."""
    return f"{summary['mean']:.1f}" + ("" if summary["std"] is None else f" ± {summary['std']:.1f}")


def latency(p50_ms: float, p99_ms: float | None) -> str:
    """Median / 99th percentile; - where the calls were too few to tell it."""
    return f"{p50_ms:.2f} / " + ("-" if p99_ms is None else f"{p99_ms:.2f}")


def interval(estimate: dict[str, Any], sign: str = "-") -> str:
    """Value [low, high]; the value alone for one episode. sign: '+' shows the value's sign also if positive."""
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    return f"{value:{sign}z.1f}" + ("" if low is None else f" [{low:z.1f}, {high:z.1f}]")
