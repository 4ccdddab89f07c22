"""Build simulators, and decide which of those named in files are built without the user's word.

Gymnasium imports the module before the colon of an id, and reads any path given as `xml_file`. A bundle or dataset
could thus run code, or change physics and reward unnoticed. For the tasks that have names, files may therefore name
only simulators of a few families with the settings below; for other tasks, those that Gymnasium and Gymnasium-Robotics
ship, with plain arguments. Anything else must be typed (--env) or needs --trust-env. gymnasium is imported where it is
used.
"""

import contextlib
import io
import json
import math
import shlex
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from reprlib import repr as shorten
from typing import Any, ClassVar

from fastdwm import spaces
from fastdwm.checks import from_json, require
from fastdwm.errors import InputError, first_line, warned_once

MAX_EPISODE_STEPS = 100_000
MAX_MAZE_CELLS = 50
"""most rows of a maze, and most cells in a row"""
ROBOTICS = "1.4.2"
"""version of gymnasium-robotics that the scores of AntMaze were made with"""

SHIPPED = ("gymnasium.envs.", "gymnasium_robotics.")
"""modules of the simulators that come with Gymnasium and Gymnasium-Robotics"""
MAX_ARGUMENT = 1e4
"""largest absolute value of a number that files may give a simulator"""
MAX_LIST = 100
"""most numbers in a list that files may give a simulator"""


@dataclass(frozen=True)
class EnvSpec:
    """How to build a simulator. Every field is plain JSON: `EnvSpec(**json.loads(json.dumps(asdict(spec))))`."""

    id: str
    """id in Gymnasium's registry; `module:id` if importing the module registers it"""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """arguments of the constructor"""
    max_episode_steps: int | None = None
    """limit on the steps of an episode; none: the limit registered for `id`"""
    wrappers: tuple[dict[str, Any], ...] = ()
    """wrappers of Gymnasium that change observations, innermost first, each {"name": ..., "kwargs": ...}; names:
    `recorded.REBUILT`"""

    OPTIONAL: ClassVar[tuple[str, ...]] = ("wrappers",)

    def record(self) -> dict[str, Any]:
        """The simulator as JSON values for `from_json`; defaults that earlier versions do not know are left out."""
        values = asdict(self)
        wrappers = list(values.pop("wrappers"))
        return values | ({"wrappers": wrappers} if wrappers else {})

    @property
    def family(self) -> str:
        """The id without its version, such as Hopper or AntMaze_UMaze."""
        return self.id.rsplit("-", 1)[0]

    def make(self, render_mode: str | None = None) -> Any:
        """Make a gymnasium.Env with flat observations and actions in [-1, 1], see `spaces`.

        Raises InputError if the simulator or a package that it needs is not installed, or if it refuses its arguments;
        also for actions that are no box, and for pixels.
        """
        return spaces.adapt(self.build(render_mode))

    def build(self, render_mode: str | None = None) -> Any:
        """Make a gymnasium.Env with its own spaces; the mazes' goal dict keeps (achieved_goal, observation)."""
        import gymnasium

        # Not every simulator has this argument.
        kwargs = self.kwargs if render_mode is None else {**self.kwargs, "render_mode": render_mode}
        is_maze = self.id.startswith("AntMaze")
        if is_maze:
            _register_mazes()
        try:
            _register(self.id)
            with warned_once():
                warnings.filterwarnings("ignore", message=".*is out of date")  # the version is the dataset's choice
                env = gymnasium.make(self.id, self.max_episode_steps, **kwargs)
            for wrapper in self.wrappers:
                env = getattr(gymnasium.wrappers, wrapper["name"])(env, **wrapper["kwargs"])
        except Exception as error:  # a constructor may raise any error
            raise InputError(f"cannot build the simulator {self.id}: {first_line(error)}") from error
        if is_maze:
            # Each simulator leaves the file that describes its maze.
            Path(env.unwrapped.tmp_xml_file_path).unlink(missing_ok=True)
            env = gymnasium.wrappers.FilterObservation(env, ["achieved_goal", "observation"])
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
        with contextlib.redirect_stderr(io.StringIO()):
            import gymnasium_robotics
    except ImportError as error:
        raise InputError(f"AntMaze: gymnasium-robotics cannot be imported: {first_line(error)}") from None
    import gymnasium

    gymnasium.register_envs(gymnasium_robotics)


def _register(id: str) -> None:
    """Register the simulators of Gymnasium-Robotics, if it is installed and one of them may be meant."""
    import gymnasium

    if ":" not in id and id not in gymnasium.registry:
        # The package prints news about its simulators.
        with contextlib.suppress(ImportError), contextlib.redirect_stderr(io.StringIO()):
            import gymnasium_robotics

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


Trust = bool | EnvSpec
"""simulators that files may name: any (True), only known ones (False), or also this one, which the user typed"""


def read_spec(values: Any, trust: Trust = False, own: EnvSpec | None = None) -> EnvSpec:
    """Read the simulator that a file names from JSON values; raises InputError as `vet`."""
    return vet(from_json(EnvSpec, values, "env"), trust, own)


def vet(spec: EnvSpec, trust: Trust = False, own: EnvSpec | None = None) -> EnvSpec:
    """Check the simulator that a file names, and drop its render mode.

    own: the simulator of a task with a name; others must then be of its family.   trust: see `Trust`.
    Raises InputError for simulators and arguments that are not known, in one line that says what to type.
    """
    steps = spec.max_episode_steps
    valid = steps is None or 1 <= steps <= MAX_EPISODE_STEPS
    require(valid, f"env: max_episode_steps: expected 1 to {MAX_EPISODE_STEPS} or none, got {shorten(steps)}")
    spec = replace(spec, kwargs={name: value for name, value in spec.kwargs.items() if name != "render_mode"})
    if trust is True:
        return spec
    if isinstance(trust, EnvSpec):
        return _as_typed(spec, trust)
    if own is None and not _family_allows(spec):
        _require_shipped(spec)
    if own is None:
        return spec
    way_out = "--trust-env builds it all the same, and may run code that came with the file"
    ids = [id for family in ([own.family] if own.family in FAMILIES else FAMILIES) for id in known_ids(family)]
    require(spec.id in ids, f"env: expected one of {', '.join(ids)}, got {shorten(spec.id)}; {way_out}")
    for name, value in spec.kwargs.items():
        allowed = _family_allows(replace(spec, kwargs={name: value}))
        require(allowed, f"env: {spec.id} with {shorten(name)} = {shorten(value)} is not known; {way_out}")
    return spec


def _family_allows(spec: EnvSpec) -> bool:
    """Whether the simulator is in one of FAMILIES, with arguments that files may set."""
    family = family_of(spec)
    settings = FAMILIES[family].settings if family else {}
    return family is not None and all(
        name in settings and settings[name].allowed(value) for name, value in spec.kwargs.items()
    )


def _as_typed(spec: EnvSpec, typed: EnvSpec) -> EnvSpec:
    """The simulator of a file, with the module that the user typed; InputError if the user typed another one."""
    module, _, id = spec.id.rpartition(":")
    same = id == typed.id.rpartition(":")[2] and spec.id in (id, typed.id)
    require(same, f"env: the file names {shorten(spec.id)}, --env names {typed.id}; {_ask(spec)}")
    harmless = _plain(spec.kwargs) or _family_allows(spec)
    vouched = spec.kwargs == typed.kwargs or (not typed.kwargs and harmless)
    actual = shorten(json.dumps(spec.kwargs, default=str))
    require(vouched, f"env: the file builds {shorten(spec.id)} with {actual}, not as typed; {_ask(spec)}")
    return replace(spec, id=typed.id)


def _require_shipped(spec: EnvSpec) -> None:
    """Raise InputError unless Gymnasium or Gymnasium-Robotics ships the simulator, and its arguments are plain."""
    import gymnasium

    _register(spec.id)
    registered = gymnasium.registry.get(spec.id) if ":" not in spec.id else None
    place = registered.entry_point if registered else None
    shipped = isinstance(place, str) and place.startswith(SHIPPED) and _plain(spec.kwargs)
    require(
        shipped, f"env: the file names the simulator {shorten(spec.id)}, which may run code or read files: {_ask(spec)}"
    )


def _ask(spec: EnvSpec) -> str:
    kwargs = "" if _plain(spec.kwargs) else f" --env-kwargs {shlex.quote(json.dumps(spec.kwargs, default=str))}"
    return f"if you trust it, give --env {shlex.quote(spec.id)}{kwargs}"


def _plain(kwargs: dict[str, Any]) -> bool:
    """Whether the arguments are numbers, lists of them, mazes or kinds of reward: no paths, nothing that runs."""

    def plain(name: str, value: Any) -> bool:
        if (name == "maze_map" and _is_maze(value)) or (name == "reward_type" and value in ("sparse", "dense")):
            return True
        values = value if isinstance(value, list) and len(value) <= MAX_LIST else [value]
        numbers = all(isinstance(x, bool | int | float) and abs(x) <= MAX_ARGUMENT for x in values)
        return value is None or numbers

    return all(plain(name, value) for name, value in kwargs.items())


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
