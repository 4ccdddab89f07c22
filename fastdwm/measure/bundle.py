"""The bundle that a command measures, and its description in the command's record."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastdwm.bundle import Bundle
from fastdwm.checks import require
from fastdwm.measure.record import circumstances


def load_for(task_name: str, folder: Path, trust_env: bool = False, tuned: bool = True) -> Bundle:
    """Load the bundle in the folder; InputError if it is for another task.   trust_env, tuned: as in `Bundle.load`."""
    bundle = Bundle.load(folder, trust_env, tuned=tuned)
    other = bundle.task.name
    require(other == task_name, f"bundle: expected one for {task_name}, {folder} is for {other}")
    return bundle


def measured(bundle: Bundle, folder: Path, device: str, *fields: str) -> dict[str, Any]:
    """JSON values for a command's record: task, circumstances, simulator, and the bundle with these fields."""
    task = bundle.task
    provenance = {"folder": folder, "weights_sha256": bundle.fingerprint, "reward_scale": task.reward_scale}
    return {
        "task": task.name,
        **circumstances(device),
        "env": asdict(task.env),
        "env_departures": task.departures(),
        "bundle": provenance | {name: getattr(bundle, name) for name in fields},
    }
