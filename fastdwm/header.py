"""bundle.json: the description of a bundle, which anyone may have written, so that nothing in it is taken on trust."""

from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

from fastdwm.checks import conforms, from_json, require
from fastdwm.config import DeterministicConfig, DiffusionConfig, MeanFlowConfig, ReBRACConfig, RewardConfig
from fastdwm.envs import EnvSpec, read_spec
from fastdwm.errors import InputError
from fastdwm.files import read_json
from fastdwm.tasks import Task, get_task

FORMAT = 1
MAX_BYTES = 4 * 2**20
MAX_SCALE = 1e6
"""of rewards, either way"""

CONFIGS = {
    "rebrac": ReBRACConfig,
    "dynamics": DiffusionConfig,
    "reward": RewardConfig,
    "meanflow": MeanFlowConfig,
    "deterministic": DeterministicConfig,
}
OPTIONAL = ("meanflow", "deterministic", "weights_sha256")
KEYS = dict.fromkeys(CONFIGS, dict) | {
    "format": int,
    "task": str,
    "env": dict,
    "dataset": dict,
    "reward_scale": float,
    "obs_dim": int,
    "action_dim": int,
    "report": dict,
    "versions": dict,
    "weights_sha256": str,
}
"""types of all values, of which OPTIONAL may be missing"""

# What the commands read of the parts that are free otherwise.
FACTS = {
    "dataset": {"id": str, "transitions": int, "episodes": int},
    "report": {"seed": int, "holdout": float},
}


@dataclass(frozen=True)
class Header:
    """What a bundle.json says, checked."""

    task: Task
    env: EnvSpec
    configs: dict[str, Any]
    """those of CONFIGS that the bundle has"""
    rest: dict[str, Any]
    """dataset, reward_scale, report, versions"""
    weights_sha256: str | None
    """none: a bundle of an early version"""


def read_header(path: Path, trust_env: bool) -> Header:
    """Read and check a bundle.json; InputError, in one line, for anything that is not as a bundle is saved."""
    values = read_json(path, MAX_BYTES)
    came = values.get("format") if isinstance(values, dict) else type(values).__name__
    known = isinstance(values, dict) and type(came) is int and came == FORMAT
    require(known, f"{path}: expected bundle format {FORMAT}, got {shorten(came)}")
    try:
        _check_keys(values)
        task = get_task(values["task"])
        _check_facts(values, task)
        configs = {name: _read_config(name, values[name]) for name in CONFIGS if name in values}
        configs["rebrac"] = configs["rebrac"].for_task(task)
        env = read_spec(values["env"], task, trust_env)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    rest = {name: values[name] for name in ("dataset", "reward_scale", "report", "versions")}
    return Header(task, env, configs, rest, values.get("weights_sha256"))


def _check_keys(values: dict[str, Any]) -> None:
    for name in sorted(values.keys() | KEYS.keys()):
        require(name in KEYS, f"not a bundle description: {shorten(name)} is unknown")
        require(name in values or name in OPTIONAL, f"not a bundle description: {name} is missing")
        right = name not in values or conforms(values[name], KEYS[name])
        require(right, f"{name}: expected {KEYS[name].__name__}, got {shorten(values.get(name))}")


def _check_facts(values: dict[str, Any], task: Task) -> None:
    """Raise InputError for sizes that are not the task's, and for numbers that the commands could not use."""
    for name, expected in (("obs_dim", task.env.obs_dim), ("action_dim", task.env.action_dim)):
        require(values[name] == expected, f"{name}: task {task.name} has {expected}, got {shorten(values[name])}")
    scale = values["reward_scale"]
    fits = 1 / MAX_SCALE <= scale <= MAX_SCALE
    require(fits, f"reward_scale: expected {1 / MAX_SCALE:g} to {MAX_SCALE:g}, got {shorten(scale)}")
    for part, kinds in FACTS.items():
        for name, kind in kinds.items():
            value = values[part].get(name, kind())
            right = conforms(value, kind) and (kind is str or 0 <= value < 2**63)
            require(right, f"{part}: {name}: expected {kind.__name__}, not negative, got {shorten(value)}")
    holdout = values["report"].get("holdout", 0.5)
    require(0 < holdout < 1, f"report: holdout: expected a share in (0, 1), got {shorten(holdout)}")
    named = all(isinstance(version, str) for version in values["versions"].values())
    require(named, f"versions: expected text, got {shorten(values['versions'])}")


def _read_config(name: str, values: dict[str, Any]) -> Any:
    try:
        return from_json(CONFIGS[name], values)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
