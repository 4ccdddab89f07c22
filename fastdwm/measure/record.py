"""What a command leaves behind: how and where it was made, and numbers as they stand in a table."""

import os
import platform
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastdwm.files import prepare_folder
from fastdwm.versions import package_versions


def prepare_output(folder: Path, task: str) -> Path:
    """OUT/TASK-TIME, without a suffix; creates the folder, raises InputError unless files can be written."""
    prepare_folder(folder)
    # The process id keeps apart what a script starts at once.
    return folder / f"{task}-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"


def circumstances(device: str) -> dict[str, Any]:
    """When, by which command, with which packages and on which machine a result was made."""
    return {**origin(), "machine": machine(device)}


def origin() -> dict[str, Any]:
    """When, by which command and with which packages; torch is not imported."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "versions": {"python": platform.python_version(), **package_versions()},
    }


def machine(device: str) -> dict[str, Any]:
    """What the latencies were measured on."""
    import torch

    accelerator = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    cpu = {"cpu": platform.processor() or platform.machine(), "cpu_count": os.cpu_count()}
    return {**cpu, "threads": torch.get_num_threads(), "accelerator": accelerator, "system": platform.system()}


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


def markdown_text(text: str) -> str:
    """The text as Markdown shows it, whoever wrote parts of it: no HTML, no link and no border of a table."""
    for character, escaped in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("](", "]\\(")):
        text = text.replace(character, escaped)
    return text


def markdown_row(texts: Iterable[str]) -> str:
    """One row of a Markdown table."""
    return f"| {' | '.join(map(markdown_text, texts))} |"
