"""Gymnasium's wrappers through which a dataset was recorded: they pass, are rebuilt, or are refused."""

from dataclasses import replace
from reprlib import repr as shorten
from typing import Any

from fastdwm.checks import require
from fastdwm.envs import MAX_EPISODE_STEPS, EnvSpec

WATCHING = ("RecordEpisodeStatistics", "RecordVideo", "HumanRendering", "RenderCollection")
WATCHING += ("PassiveEnvChecker", "OrderEnforcing", "ClipAction", "FlattenObservation")
"""wrappers that change neither rewards, nor actions in their box, nor observations, which are always flattened"""
REBUILT = {"RescaleObservation": ("min_obs", "max_obs")}
"""wrappers with fixed numbers that `EnvSpec.build` makes again, and the names of the numbers"""
MAX_BOUND = 1e6

Box = tuple[float, float]
"""lowest and highest value of each coordinate of a recorded action"""


def without_wrappers(spec: EnvSpec, wrappers: Any, source: str) -> tuple[EnvSpec, Box | None]:
    """The simulator of a file that lists Gymnasium's `additional_wrappers`, and the box of its actions.

    wrappers: JSON values, innermost first.   source: name of the file for messages.
    The box is that of the last RescaleAction; none: the simulator's own. Raises InputError, even for trusted
    simulators, for an unknown wrapper, and for one that cannot be rebuilt.
    """
    box = None
    for wrapper in wrappers or ():
        name, kwargs = wrapper["name"], wrapper["kwargs"] or {}
        limit = name == "TimeLimit" and kwargs.get("max_episode_steps")
        limits = type(limit) is int and 1 <= limit <= MAX_EPISODE_STEPS
        place, _, kind = str(wrapper["entry_point"]).partition(":")
        gymnasiums = place.startswith("gymnasium.wrappers.") and kind == name
        scales = _numbers(kwargs, ("min_action", "max_action")) if name == "RescaleAction" else None
        rebuilt = _numbers(kwargs, REBUILT[name]) if isinstance(name, str) and name in REBUILT else None
        harmless = gymnasiums and (name in WATCHING or limits or scales or rebuilt)
        way_out = "undo it in the data and take it out of their env_spec, or record without it"
        refusal = f"{source}: env: the wrapper {shorten(name)} of the recording is not rebuilt; {way_out}"
        require(bool(harmless), refusal)
        if limits:
            spec = replace(spec, max_episode_steps=min(limit, spec.max_episode_steps or limit))
        box = scales or box
        if rebuilt:
            spec = replace(spec, wrappers=(*spec.wrappers, {"name": name, "kwargs": kwargs}))
    return spec, box


def check_wrappers(spec: EnvSpec) -> None:
    """Raise InputError unless the wrappers that a file asks for are those that `without_wrappers` leaves."""
    for wrapper in spec.wrappers:
        name = wrapper.get("name")
        known = isinstance(name, str) and name in REBUILT and wrapper.keys() == {"name", "kwargs"}
        valid = known and isinstance(wrapper["kwargs"], dict) and _numbers(wrapper["kwargs"], REBUILT[name])
        require(bool(valid), f"env: wrappers: expected {', '.join(REBUILT)} with fixed numbers, got {shorten(wrapper)}")


def _numbers(kwargs: dict[str, Any], names: tuple[str, str]) -> Box | None:
    """The two numbers of these names, low < high, if they are all arguments."""
    low, high = (kwargs.get(name) for name in names)
    plain = len(kwargs) == 2 and all(type(x) in (int, float) and abs(x) <= MAX_BOUND for x in (low, high))
    return (float(low), float(high)) if plain and low < high else None
