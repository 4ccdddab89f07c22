"""Build simulators, and decide which of those named in files are built without --trust-env.

Gymnasium imports the module before the colon of an id, and reads any path given as `xml_file`. A bundle or dataset
could thus run code, or change physics and reward unnoticed. Files may therefore name only simulators of a few families
with the settings below; anything else needs --trust-env. gymnasium is imported where it is used.
"""

import io
import math
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

from fastdwm.checks import from_json, require
from fastdwm.errors import InputError, first_line, warned_once

MAX_EPISODE_STEPS = 100_000
MAX_MAZE_CELLS = 50
"""most rows of a maze, and most cells in a row"""
ROBOTICS = "1.4.2"
"""version of gymnasium-robotics that the scores of AntMaze were made with"""

WATCHING = ("RecordEpisodeStatistics", "RecordVideo", "HumanRendering", "RenderCollection")
WATCHING += ("PassiveEnvChecker", "OrderEnforcing", "ClipAction")
"""Gymnasium's wrappers that change neither observations, nor rewards, nor actions in [-1, 1]"""


@dataclass(frozen=True)
class EnvSpec:
    """How to build a simulator. Every field is plain JSON: `EnvSpec(**json.loads(json.dumps(asdict(spec))))`."""

    id: str
    """id in Gymnasium's registry; `module:id` if importing the module registers it"""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """arguments of the constructor"""
    max_episode_steps: int | None = None
    """limit on the steps of an episode; none: the limit registered for `id`"""

    @property
    def family(self) -> str:
        """The id without its version, such as Hopper or AntMaze_UMaze."""
        return self.id.rsplit("-", 1)[0]

    def make(self, render_mode: str | None = None) -> Any:
        """Make a gymnasium.Env with flat observations; a goal dict becomes (achieved_goal, observation).

        Raises InputError if the simulator or a package that it needs is not installed, or if it refuses its arguments.
        """
        import gymnasium

        # Not every simulator has this argument.
        kwargs = self.kwargs if render_mode is None else {**self.kwargs, "render_mode": render_mode}
        is_maze = self.id.startswith("AntMaze")
        if is_maze:
            _register_mazes()
        try:
            with warned_once():
                warnings.filterwarnings("ignore", message=".*is out of date")  # the version is the dataset's choice
                env = gymnasium.make(self.id, self.max_episode_steps, **kwargs)
        except Exception as error:  # a constructor may raise any error
            raise InputError(f"cannot build the simulator {self.id}: {first_line(error)}") from error
        if is_maze:
            # Each simulator leaves the file that describes its maze.
            Path(env.unwrapped.tmp_xml_file_path).unlink(missing_ok=True)
        if isinstance(env.observation_space, gymnasium.spaces.Dict):
            env = gymnasium.wrappers.FilterObservation(env, ["achieved_goal", "observation"])
            env = gymnasium.wrappers.FlattenObservation(env)
        return env


def _register_mazes() -> None:
    """Register Gymnasium-Robotics' mazes; InputError unless the version ROBOTICS can be imported."""
    try:
        version = metadata.version("gymnasium-robotics")
    except metadata.PackageNotFoundError:
        version = "none"
    expected = f"AntMaze: expected gymnasium-robotics {ROBOTICS}, with which its scores were made"
    require(version == ROBOTICS, f"{expected}, {version} is installed; pip install 'fastdwm[antmaze]'")
    try:
        # The package prints news about its other environments.
        with redirect_stderr(io.StringIO()):
            import gymnasium_robotics
    except ImportError as error:
        raise InputError(f"AntMaze: gymnasium-robotics cannot be imported: {first_line(error)}") from None
    import gymnasium

    gymnasium.register_envs(gymnasium_robotics)


@dataclass(frozen=True)
class Setting:
    """An argument of a simulator that files may set."""

    default: Any
    """the simulator's own value if the argument is missing"""
    allowed: Callable[[Any], bool]


def _one_of(*values: Any) -> Setting:
    """An argument that may have exactly these values; the first is the default."""
    return Setting(values[0], lambda value: any(type(value) is type(other) and value == other for other in values))


def _number(default: float, low: float, high: float) -> Setting:
    """A number from `low` >= 0 to `high`, but not -0.0, which some checks of numpy treat as negative."""
    signed = math.copysign
    return Setting(default, lambda value: type(value) in (int, float) and low <= value <= high and signed(1, value) > 0)


def _is_maze(value: Any) -> bool:
    """Whether the value is a rectangular maze map of Gymnasium-Robotics, with the cells 0, 1, r, g and c."""
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        return False
    sizes = {len(value), *(len(row) for row in value)}
    cells = [cell for row in value for cell in row]
    valid = all(type(cell) in (int, str) and cell in (0, 1, "r", "g", "c") for cell in cells)
    return valid and 0 < min(sizes) and max(sizes) <= MAX_MAZE_CELLS and len({len(row) for row in value}) == 1


_LOCOMOTION = {
    "forward_reward_weight": _number(1.0, 1.0, 1.0),
    "exclude_current_positions_from_observation": _one_of(True),
}
_STANDING = _LOCOMOTION | {
    "ctrl_cost_weight": _number(1e-3, 1e-3, 1e-3),
    "healthy_reward": _number(1.0, 1.0, 1.0),
    "terminate_when_unhealthy": _one_of(True, False),
    "reset_noise_scale": _number(5e-3, 0.0, 1.0),
}

_HALF_CHEETAH = {"ctrl_cost_weight": _number(0.1, 0.1, 0.1), "reset_noise_scale": _number(0.1, 0.0, 1.0)}
_MAZE = {
    "maze_map": Setting(None, _is_maze),
    "continuing_task": _one_of(True, False),
    "reset_target": _one_of(False),
    "reward_type": _one_of("sparse"),
}


@dataclass(frozen=True)
class Family:
    """Simulators that are built without --trust-env."""

    sizes: tuple[int, int]
    """sizes of observation and action (S, A)"""
    settings: dict[str, Setting]
    """arguments that files may set"""
    suffixes: tuple[str, ...] = ("-v4", "-v5")
    """endings of the ids after the family's name"""
    groups: dict[str, slice] = field(default_factory=dict)
    """coordinates of the observation by name and unit, where their errors are worth telling apart"""


# An ant in a maze: the maze's part of the observation, the position in the plane, comes first.
_ANT_GROUPS = {
    "position in m": slice(0, 3),
    "orientation, a unit quaternion": slice(3, 7),
    "joints in rad": slice(7, 15),
    "velocities in m/s and rad/s": slice(15, 29),
}

# The robots are files that ship with Gymnasium. The parts of the reward are fixed; otherwise scores could not be
# compared.
FAMILIES = {
    "Hopper": Family((11, 3), _STANDING | {"xml_file": _one_of("hopper.xml")}),
    "Walker2d": Family((17, 6), _STANDING | {"xml_file": _one_of("walker2d_v5.xml", "walker2d.xml")}),
    "HalfCheetah": Family((17, 6), _LOCOMOTION | _HALF_CHEETAH | {"xml_file": _one_of("half_cheetah.xml")}),
    **dict.fromkeys(
        ("AntMaze_UMaze", "AntMaze_Medium", "AntMaze_Large"),
        # Not the mazes with several goals, and not v5, which also observes contact forces.
        Family((29, 8), _MAZE, ("-v4",), _ANT_GROUPS),
    ),
}


def known_ids(family: str) -> list[str]:
    """Ids of the simulators in one of FAMILIES."""
    return [family + suffix for suffix in FAMILIES[family].suffixes]


def family_of(spec: EnvSpec) -> str | None:
    """The simulator's family in FAMILIES, or none."""
    return next((family for family in FAMILIES if spec.id in known_ids(family)), None)


def coordinate_groups(spec: EnvSpec) -> dict[str, slice]:
    """Coordinates of the simulator's observation by name and unit; empty where none are told apart."""
    family = family_of(spec)
    return FAMILIES[family].groups if family else {}


def read_spec(values: Any, trust_env: bool = False, own: EnvSpec | None = None) -> EnvSpec:
    """Read the simulator that a file names from JSON values; raises InputError as `vet`."""
    return vet(from_json(EnvSpec, values, "env"), trust_env, own)


def vet(spec: EnvSpec, trust_env: bool = False, own: EnvSpec | None = None) -> EnvSpec:
    """Check the simulator that a file names, and drop its render mode.

    own: the simulator must be of the same family; none: of any of FAMILIES.   trust_env: accept any simulator.
    Raises InputError for simulators and arguments that are not listed above.
    """
    steps = spec.max_episode_steps
    valid = steps is None or 1 <= steps <= MAX_EPISODE_STEPS
    require(valid, f"env: max_episode_steps: expected 1 to {MAX_EPISODE_STEPS} or none, got {shorten(steps)}")
    spec = replace(spec, kwargs={name: value for name, value in spec.kwargs.items() if name != "render_mode"})
    if trust_env:
        return spec
    way_out = "--trust-env builds it all the same, and may run code that came with the file"
    ids = [id for family in ([own.family] if own and own.family in FAMILIES else FAMILIES) for id in known_ids(family)]
    require(spec.id in ids, f"env: expected one of {', '.join(ids)}, got {shorten(spec.id)}; {way_out}")
    settings = FAMILIES[family_of(spec)].settings
    for name, value in spec.kwargs.items():
        allowed = name in settings and settings[name].allowed(value)
        require(allowed, f"env: {spec.id} with {shorten(name)} = {shorten(value)} is not known; {way_out}")
    return spec


def without_wrappers(spec: EnvSpec, wrappers: Any, source: str) -> EnvSpec:
    """The simulator of a file that lists Gymnasium's `additional_wrappers`, if it does the same without them.

    wrappers: JSON values.   source: name of the file for messages.   Wrappers are never built. Raises InputError, even
    for trusted simulators, for an unknown wrapper, and for one that changes observations, actions or rewards.
    """
    for wrapper in wrappers or ():
        name, kwargs = wrapper["name"], wrapper["kwargs"] or {}
        limit = name == "TimeLimit" and kwargs.get("max_episode_steps")
        limits = type(limit) is int and 1 <= limit <= MAX_EPISODE_STEPS
        if limits:
            spec = replace(spec, max_episode_steps=min(limit, spec.max_episode_steps or limit))
        # The simulators of FAMILIES take actions in [-1, 1] themselves.
        unscaled = name == "RescaleAction" and kwargs == {"min_action": -1, "max_action": 1} and family_of(spec)
        place, _, kind = str(wrapper["entry_point"]).partition(":")
        own = place.startswith("gymnasium.wrappers.") and kind == name
        harmless = own and (name in WATCHING or unscaled or limits)
        way_out = "undo it in the data and take it out of their env_spec, or record without it"
        require(
            bool(harmless), f"{source}: env: the wrapper {shorten(name)} of the recording is not rebuilt; {way_out}"
        )
    return spec


def departures(spec: EnvSpec, own: EnvSpec, *same: EnvSpec) -> list[str]:
    """List in words how a simulator differs from the task's `own`; empty if scores are comparable.

    same: simulators that count as equal to `own`.
    """
    family = family_of(own)
    related = family is not None and family_of(spec) == family
    defaults = {name: setting.default for name, setting in FAMILIES[family].settings.items()} if related else {}
    expected, has = defaults | own.kwargs, defaults | spec.kwargs
    result = [] if spec.id in {other.id for other in (own, *same)} else [f"id {shorten(spec.id)}"]
    for name in sorted(expected.keys() | has.keys()):
        if name not in has or name not in expected or expected[name] != has[name]:
            result.append(f"{name} = {shorten(has.get(name))}")
    if (spec.max_episode_steps or math.inf) < (own.max_episode_steps or math.inf):
        result.append(f"max_episode_steps = {spec.max_episode_steps}")
    return result
