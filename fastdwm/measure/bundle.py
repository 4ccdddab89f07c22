"""The bundle that a command measures, and its description in the command's record."""

from pathlib import Path
from typing import Any

from fastdwm.bundle import Bundle
from fastdwm.checks import require
from fastdwm.envs import Trust
from fastdwm.measure.record import circumstances
from fastdwm.shipped import is_bundle
from fastdwm.tasks import name_of


def load_for(typed: str, folder: Path, trust: Trust = False, tuned: bool = True) -> Bundle:
    """Load the bundle in the folder; InputError if it is not for the task that the user calls `typed`.

    typed: the name of the task, a Minari id, or the folder of a bundle.   trust, tuned: as in `Bundle.load`.
    """
    bundle = Bundle.load(folder, trust, tuned=tuned)
    other = bundle.task.name
    same = is_bundle(typed) or other == name_of(typed)
    require(same, f"bundle: expected one for {typed}, {folder} is for {other}")
    return bundle


def measured(bundle: Bundle, folder: Path, device: str, *fields: str) -> dict[str, Any]:
    """JSON values for a command's record: task, circumstances, simulator, and the bundle with these fields."""
    task = bundle.task
    provenance = {"folder": folder, "weights_sha256": bundle.fingerprint, "reward_scale": task.reward_scale}
    return {
        "task": task.name,
        **circumstances(device),
        "env": task.env.record(),
        "env_departures": task.departures(),
        "bundle": provenance | {name: getattr(bundle, name) for name in fields},
    }
