"""The bundle that a command measures."""

from pathlib import Path

from fastdwm.bundle import Bundle
from fastdwm.checks import require


def load_for(task_name: str, folder: Path, trust_env: bool = False, tuned: bool = True) -> Bundle:
    """The bundle in the folder; InputError for one of another task.   trust_env, tuned: as in `Bundle.load`."""
    bundle = Bundle.load(folder, trust_env, tuned=tuned)
    other = bundle.task.name
    require(other == task_name, f"bundle: expected one for {task_name}, {folder} is for {other}")
    return bundle
