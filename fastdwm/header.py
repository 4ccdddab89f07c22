"""bundle.json: the description of a bundle, which anyone may have written, so that nothing in it is taken on trust."""

from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

from fastdwm.agent_settings import Settings, read_settings
from fastdwm.checks import conforms, from_json, require
from fastdwm.config import ReBRACConfig, RewardConfig
from fastdwm.errors import InputError
from fastdwm.files import parse_json, read_bytes
from fastdwm.models.table import WORLD_MODELS
from fastdwm.tasks import Task, read_task

FORMAT = 2
MAX_BYTES = 4 * 2**20

KEYS = {
    "format": int,
    "task": dict,
    "dataset": dict,
    "rebrac": dict,
    "reward": dict,
    "worlds": dict,
    "report": dict,
    "versions": dict,
    "max_deviation": float,
    "tuning": dict,
    "weights_sha256": str,
}
"""types of all values, of which OPTIONAL may be missing"""
OPTIONAL = ("max_deviation", "tuning", "weights_sha256")

# What the commands read of the parts that are free otherwise.
FACTS = {
    "dataset": {"id": str, "transitions": int, "episodes": int},
    "report": {"seed": int, "holdout": float},
}


@dataclass(frozen=True)
class Header:
    """What a bundle.json says, checked."""

    task: Task
    rebrac: ReBRACConfig
    reward: RewardConfig
    worlds: dict[str, Any]
    """settings of the world models that the bundle holds, by name"""
    rest: dict[str, Any]
    """dataset, report, versions, and max_deviation and tuning, none where there is none"""
    settings: Settings
    """how its agents decide unless they are told otherwise"""
    weights_sha256: str | None
    """none: not stated"""


def read_header(path: Path, trust_env: bool, tuned: bool = True) -> Header:
    """Read and check a bundle.json; InputError, in one line, for anything that is not as a bundle is saved.

    tuned: without, what the bundle was tuned to is left out, whatever it is.
    """
    return parse_header(read_bytes(path, MAX_BYTES), path, trust_env, tuned)


def parse_header(content: bytes, path: Path, trust_env: bool, tuned: bool = True) -> Header:
    """Check the content of a bundle.json; arguments and errors, which name `path`, as of `read_header`."""
    require(len(content) <= MAX_BYTES, f"{path}: expected at most {MAX_BYTES} bytes, got {len(content)}")
    values = parse_json(content, path)
    came = values.get("format") if isinstance(values, dict) else type(values).__name__
    old = type(came) is int and came == 1
    require(not old, f"{path}: format 1, of fastdwm 0.1.0, is no longer read: train it anew, or load it with 0.1.0")
    known = type(came) is int and came == FORMAT
    require(known, f"{path}: expected bundle format {FORMAT}, got {shorten(came)}")
    try:
        _check_keys(values)
        _check_facts(values)
        task = _named("task", lambda: read_task(values["task"], trust_env))
        rebrac = _read_config("rebrac", ReBRACConfig, values["rebrac"]).for_task(task)
        reward = _read_config("reward", RewardConfig, values["reward"])
        worlds = _read_worlds(values["worlds"])
        tuning = values.get("tuning") if tuned else None
        settings = _named("tuning", lambda: _read_tuning(tuning, worlds))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    rest = {name: values.get(name) for name in ("dataset", "report", "versions", "max_deviation")} | {"tuning": tuning}
    return Header(task, rebrac, reward, worlds, rest, settings, values.get("weights_sha256"))


def _check_keys(values: dict[str, Any]) -> None:
    for name in sorted(values.keys() | KEYS.keys()):
        require(name in KEYS, f"not a bundle description: {shorten(name)} is unknown")
        require(name in values or name in OPTIONAL, f"not a bundle description: {name} is missing")
        right = name not in values or conforms(values[name], KEYS[name])
        require(right, f"{name}: expected {KEYS[name].__name__}, got {shorten(values.get(name))}")


def _check_facts(values: dict[str, Any]) -> None:
    """Raise InputError for numbers that the commands could not use."""
    for part, kinds in FACTS.items():
        for name, kind in kinds.items():
            value = values[part].get(name, kind())
            right = conforms(value, kind) and (kind is str or 0 <= value < 2**63)
            require(right, f"{part}: {name}: expected {kind.__name__}, not negative, got {shorten(value)}")
    holdout = values["report"].get("holdout", 0.5)
    require(0 < holdout < 1, f"report: holdout: expected a share in (0, 1), got {shorten(holdout)}")
    bound = values.get("max_deviation", 1.0)
    # Actions lie in [-1, 1].
    require(0 < bound <= 2, f"max_deviation: expected a number in (0, 2], got {shorten(bound)}")
    named = all(isinstance(version, str) for version in values["versions"].values())
    require(named, f"versions: expected text, got {shorten(values['versions'])}")


def _read_worlds(values: dict[str, Any]) -> dict[str, Any]:
    """Settings by world model, in the order of the table."""
    require(bool(values), f"worlds: expected at least one of {', '.join(WORLD_MODELS)}")
    for name, settings in values.items():
        require(name in WORLD_MODELS, f"worlds: expected some of {', '.join(WORLD_MODELS)}, got {shorten(name)}")
        require(isinstance(settings, dict), f"{name}: expected dict, got {shorten(settings)}")
    models = {name: model for name, model in WORLD_MODELS.items() if name in values}
    return {name: _read_config(name, model.config, values[name]) for name, model in models.items()}


def _read_tuning(values: dict[str, Any] | None, worlds: dict[str, Any]) -> Settings:
    """The settings that the bundle was tuned to; the defaults for one that was not."""
    if values is None:
        return Settings()
    for name, kind in {"settings": dict, "weights_sha256": str}.items():
        came = values.get(name)
        require(isinstance(came, kind), f"{name}: expected {kind.__name__}, got {shorten(came)}")
    settings = read_settings(values["settings"])
    held = settings.world is None or settings.world in worlds
    require(held, f"world: the bundle holds {', '.join(worlds)}, got {shorten(settings.world)}")
    return settings


def _read_config(name: str, kind: type, values: dict[str, Any]) -> Any:
    return _named(name, lambda: from_json(kind, values))


def _named(name: str, read: Any) -> Any:
    """What read() returns; its InputError names the part."""
    try:
        return read()
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
