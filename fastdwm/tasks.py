"""The paper's 24 D4RL tasks: simulator, dataset ids, reference scores, ReBRAC settings, healthy region.

A bundle holds its own task, which need not be one of the 24; `data.task` makes tasks without a name.
Sources: scores, observation sizes and episode limits from D4RL's infos; ReBRAC settings from CORL's configs (those of
[ReBRAC] 2305.09836); healthy regions from Gymnasium's MuJoCo environments. Pure data: imports no numpy, no torch.
"""

import re
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from math import inf, isfinite
from reprlib import repr as shorten
from typing import Annotated, Any, ClassVar

from fastdwm import envs, spaces
from fastdwm.checks import POSITIVE, Bound, Checked, at_most, require, within
from fastdwm.envs import FAMILIES, EnvSpec, Trust, family_of
from fastdwm.errors import InputError
from fastdwm.recorded import check_wrappers

MAX_BOUND = 1e9
"""largest absolute value of reference scores and of the bounds of the healthy region"""


@dataclass(frozen=True)
class Limit:
    """One coordinate of the observation that must stay inside the open interval (low, high), in raw units."""

    index: int
    low: float = -inf
    high: float = inf


# A task's name becomes part of file names.
NAME = Bound(re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}").fullmatch, "letters, digits, '.', '_' and '-'")


@dataclass(frozen=True)
class Task(Checked):
    """A task: its simulator, its scores, and its settings for training. Raises InputError for invalid values."""

    name: Annotated[str, NAME]
    """name on the command line, without D4RL's version: letters, digits, `.`, `_` and `-`"""
    env: EnvSpec
    """the simulator; in a bundle, the one that recorded its data"""
    obs_dim: Annotated[int, POSITIVE, at_most(1e5)]
    """size of an observation (S)"""
    action_dim: Annotated[int, POSITIVE, at_most(1e5)]
    """size of an action (A), every coordinate in [-1, 1]; `env_action` maps it to the simulator's units"""
    ref_min_score: float = 0.0
    """return that scores 0 (a random policy). With 0 and 100, the defaults, scores are plain returns"""
    ref_max_score: float = 100.0
    """return that scores 100 (an expert)"""
    limits: tuple[Limit, ...] = ()
    """the healthy region; leaving it terminates the episode. Empty: no observation terminates an episode"""
    discount: Annotated[float, within("(0, 1)")] = 0.99
    """discount factor (gamma)"""
    reward_scale: Annotated[float, within("[1e-6, 1e6]")] = 1.0
    """factor on the rewards that the models are trained on"""
    ends_at_success: bool = False
    """whether an episode terminates at its first positive reward, even if its recording continues"""
    d4rl_env: EnvSpec | None = None
    """simulator with the physics and rewards of D4RL's own files; none: `env`"""
    d4rl_id: str | None = None
    """name of the D4RL dataset behind the paper's numbers"""
    minari_id: str | None = None
    """nearest dataset on the public Minari server; none if there is none"""
    actor_bc_coef: Annotated[float, at_most(1e9)] = 0.01
    """weight of the behaviour-cloning term in the actor loss (b1)"""
    critic_bc_coef: Annotated[float, at_most(1e9)] = 0.01
    """weight of the next-action penalty in the critic target (b2)"""
    actor_lr: Annotated[float, POSITIVE, at_most(1e9)] = 1e-3
    """Adam step size of the policy"""
    critic_lr: Annotated[float, POSITIVE, at_most(1e9)] = 1e-3
    """Adam step size of the critics"""
    batch_size: Annotated[int, POSITIVE, at_most(1e9)] = 1024
    """transitions per update"""
    action_low: tuple[float, ...] | None = None
    """lowest action in the simulator's units (A,), which is -1 for policies and models; none: -1"""
    action_high: tuple[float, ...] | None = None
    """highest action in the simulator's units (A,), which is 1 for policies and models; none: 1"""
    obs_parts: tuple[str, ...] = ()
    """entries of the simulator's dict observation in the order in which they are flattened, see `spaces`; empty for
    an array"""

    OPTIONAL: ClassVar[tuple[str, ...]] = ("action_low", "action_high", "obs_parts")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_box()
        low, high = self.ref_min_score, self.ref_max_score
        apart = -MAX_BOUND <= low < high <= MAX_BOUND
        require(apart, f"ref_max_score: expected more than ref_min_score, got {shorten(high)} and {shorten(low)}")
        require(len(self.limits) <= self.obs_dim, f"limits: expected at most {self.obs_dim}, got {len(self.limits)}")
        for limit in self.limits:
            valid = all(abs(bound) <= MAX_BOUND or abs(bound) == inf for bound in (limit.low, limit.high))
            valid = valid and 0 <= limit.index < self.obs_dim and limit.low < limit.high
            require(valid, f"limits: expected low < high of a coordinate below {self.obs_dim}, got {shorten(limit)}")

    def _check_box(self) -> None:
        low, high = self.action_low, self.action_high
        require((low is None) == (high is None), "action_low: expected action_high beside it, or neither")
        if low is not None:
            valid = len(low) == len(high) == self.action_dim and all(
                -MAX_BOUND <= a < b <= MAX_BOUND for a, b in zip(low, high, strict=True)
            )
            expected = f"expected {self.action_dim} numbers, each less than that of action_high"
            require(valid, f"action_low: {expected}, got {shorten(low)} and {shorten(high)}")

    @property
    def score_name(self) -> str:
        """`score` for returns on a scale of two reference scores, `return` for plain returns."""
        return "return" if (self.ref_min_score, self.ref_max_score) == (0.0, 100.0) else "score"

    @property
    def scale(self) -> str:
        """The scale of the scores, in words."""
        if self.score_name == "return":
            return "scores are returns, for there are no reference scores"
        return f"score: 0 is a return of {self.ref_min_score:.4g}, 100 one of {self.ref_max_score:.4g}"

    def env_action(self, action: Any) -> Any:
        """Map actions (..., A) in [-1, 1], an array, to the simulator's units.

        Only needed for a simulator that `EnvSpec.make` did not make, since that one takes actions in [-1, 1].
        """
        return action if self.action_low is None else spaces.from_unit(action, self.action_low, self.action_high)

    def score_pct(self, episode_return: float) -> float:
        """Normalised score of an undiscounted, unscaled return: 0 = `ref_min_score`, 100 = `ref_max_score`.

        By default this is the return itself. The references of TASKS are D4RL's: a random policy and an expert.
        """
        if self.score_name == "return":
            return episode_return
        return 100.0 * (episode_return - self.ref_min_score) / (self.ref_max_score - self.ref_min_score)

    def record(self) -> dict[str, Any]:
        """The task as JSON values for `from_json`; an infinite bound is null, and defaults in OPTIONAL are left out."""
        limits = [{name: x if isfinite(x) else None for name, x in asdict(limit).items()} for limit in self.limits]
        values = asdict(self) | {"limits": limits, "env": self.env.record()}
        values["d4rl_env"] = self.d4rl_env and self.d4rl_env.record()
        lists = {name: list(values[name]) for name in self.OPTIONAL if values[name]}
        return {name: value for name, value in values.items() if name not in self.OPTIONAL} | lists

    def departures(self) -> list[str]:
        """List in words how the task differs from the one in TASKS with its name; empty if scores are comparable.

        Empty too for a name that TASKS does not contain.
        """
        own = TASKS.get(self.name)
        if own is None:
            return []
        names = ("ref_min_score", "ref_max_score", "limits", "discount", "reward_scale")
        changed = [name for name in names if getattr(self, name) != getattr(own, name)]
        return envs.departures(self.env, own.env, own.d4rl_env) + [
            f"{name} = {shorten(getattr(self, name))}" for name in changed
        ]


def vet(task: Task, trust: Trust = False) -> Task:
    """Check a task that a file describes, and its simulators as `envs.vet` does.

    trust: simulators to accept beside the known ones; for a name in TASKS, the latter are of the task's own family.
    Raises InputError for other simulators, and for sizes that are not the simulator's.
    """
    own = TASKS.get(task.name)
    # What the user types is the simulator to run, not that of D4RL's files.
    trusts = {"env": trust, "d4rl_env": trust is True} if task.d4rl_env else {"env": trust}
    specs = {name: envs.vet(getattr(task, name), value, own and own.env) for name, value in trusts.items()}
    for spec in specs.values():
        check_wrappers(spec)
    task = replace(task, **specs)
    family = family_of(task.env)
    sizes = (own.obs_dim, own.action_dim) if own else FAMILIES[family].sizes if family else ()
    for name, size in zip(("obs_dim", "action_dim"), sizes, strict=False):
        value = getattr(task, name)
        require(value == size, f"{name}: {own.name if own else task.env.id} has {size}, got {shorten(value)}")
    return task


# Gymnasium, and the paper's public baselines, also bound the coordinates after the torso's height by 100.
_HOPPER = (Limit(0, low=0.7), Limit(1, -0.2, 0.2), *(Limit(index, -100.0, 100.0) for index in range(2, 11)))
_WALKER2D = (Limit(0, 0.8, 2.0), Limit(1, -1.0, 1.0))

# Name, simulator without version, sizes, reference scores, healthy region.
_MUJOCO = (
    ("halfcheetah", "HalfCheetah", 17, 6, -280.178953, 12135.0, ()),
    ("hopper", "Hopper", 11, 3, -20.272305, 3234.3, _HOPPER),
    ("walker2d", "Walker2d", 17, 6, 1.629008, 4592.3, _WALKER2D),
)

_LEVELS = ("random", "medium", "expert", "medium-expert", "medium-replay", "full-replay")

# Actor and critic coefficient (b1, b2) per level, in the order of _LEVELS.
_MUJOCO_COEFS = {
    "halfcheetah": ((0.001, 0.1), (0.001, 0.01), (0.01, 0.01), (0.01, 0.1), (0.01, 0.001), (0.001, 0.1)),
    "hopper": ((0.001, 0.01), (0.01, 0.01), (0.1, 0.1), (0.1, 0.01), (0.05, 0.5), (0.01, 0.01)),
    "walker2d": ((0.01, 0.0), (0.05, 0.1), (0.01, 0.5), (0.01, 0.01), (0.05, 0.01), (0.01, 0.01)),
}

# 0 free, 1 wall, r start, g goal: the one start and goal that D4RL evaluates, in the mazes of Gymnasium-Robotics.
_MAZES = {
    "UMaze": "11111 1g001 11101 1r001 11111",
    "Medium": "11111111 1r011001 10010001 11000111 10010001 10100101 100010g1 11111111",
    "Large": "111111111111 1r0001000001 101101010101 100000010001 101111011101 "
    "100101000001 110101010111 100100010g01 111111111111",
}

# Maze, actor and critic coefficient (b1, b2).
_ANTMAZE = {
    "umaze": ("UMaze", 0.003, 0.002),
    "umaze-diverse": ("UMaze", 0.003, 0.001),
    "medium-play": ("Medium", 0.001, 0.0005),
    "medium-diverse": ("Medium", 0.001, 0.0),
    "large-play": ("Large", 0.002, 0.001),
    "large-diverse": ("Large", 0.002, 0.002),
}


def _mujoco_tasks() -> list[Task]:
    """The 18 Gym-MuJoCo tasks; the public Minari server has data like those of `medium` and `expert` alone."""
    return [
        Task(
            f"{robot}-{level}",
            # The current version, for datasets that do not name their simulator.
            EnvSpec(f"{family}-v5", {}, 1000),
            *sizes_scores_limits,
            d4rl_env=EnvSpec(f"{family}-v4", {}, 1000),
            d4rl_id=f"{robot}-{level}-v2",
            minari_id=f"mujoco/{robot}/{level}-v0" if level in ("medium", "expert") else None,
            actor_bc_coef=actor_bc_coef,
            critic_bc_coef=critic_bc_coef,
        )
        for robot, family, *sizes_scores_limits in _MUJOCO
        for level, (actor_bc_coef, critic_bc_coef) in zip(_LEVELS, _MUJOCO_COEFS[robot], strict=True)
    ]


def _antmaze(maze: str) -> EnvSpec:
    """AntMaze in one of _MAZES; an observation is the ant's position, then 27 other numbers.

    The version is v4 because the public datasets were recorded in it; v5 also observes 78 contact forces. The score is
    the share of episodes that reach the goal, so an episode ends there instead of collecting one reward per step.
    """
    cells = [[int(cell) if cell in "01" else cell for cell in row] for row in _MAZES[maze].split()]
    steps = 700 if maze == "UMaze" else 1000
    return EnvSpec(f"AntMaze_{maze}-v4", {"maze_map": cells, "continuing_task": False}, steps)


def _antmaze_tasks() -> list[Task]:
    """The 6 AntMaze tasks."""
    return [
        Task(
            f"antmaze-{level}",
            _antmaze(maze),
            *(29, 8, 0.0, 1.0),
            discount=0.999,
            reward_scale=100.0,
            ends_at_success=True,
            d4rl_env=_antmaze(maze),
            d4rl_id=f"antmaze-{level}-v2",
            # The other public datasets have a goal in any cell.
            minari_id="D4RL/antmaze/umaze-v1" if level == "umaze" else None,
            actor_bc_coef=actor_bc_coef,
            critic_bc_coef=critic_bc_coef,
            actor_lr=3e-4,
            critic_lr=5e-5,
            batch_size=256,
        )
        for level, (maze, actor_bc_coef, critic_bc_coef) in _ANTMAZE.items()
    ]


TASKS: dict[str, Task] = {task.name: task for task in (*_mujoco_tasks(), *_antmaze_tasks())}


def is_d4rl(source: str) -> bool:
    """Whether a dataset, by its id or the name of its file, is one of D4RL's."""
    name = source.rpartition("/")[2].removesuffix(".hdf5").replace("_", "-")
    return source.startswith("D4RL/") or name in {task.d4rl_id for task in TASKS.values()}


_OF_DATASET = {task.minari_id: task for task in TASKS.values() if task.minari_id}


def find_task(typed: str) -> Task | None:
    """The task in TASKS with this name or this public dataset; none if there is none."""
    return TASKS.get(typed) or _OF_DATASET.get(typed)


def name_of(typed: str) -> str:
    """Name of the task that a user calls `typed`: a name, or a Minari id, whose slashes become hyphens.

    Raises InputError for a text that is neither.
    """
    own = find_task(typed)
    name = own.name if own else typed.replace("/", "-")
    require(bool(NAME.fits(name)), f"name: expected {NAME.words}, or an id of Minari, got {shorten(typed)}")
    return name


def get_task(name: str) -> Task:
    """The task with this name; InputError, with the nearest names, if there is none."""
    if name in TASKS:
        return TASKS[name]
    nearest = get_close_matches(name, TASKS, n=4, cutoff=0.4) or sorted(TASKS)
    raise InputError(f"unknown task {name!r}; nearest: {', '.join(nearest)}")


def unknown(typed: str, else_: str) -> InputError:
    """The error for a text that names no task.   else_: what it could be beside the names that resemble it."""
    nearest = get_close_matches(typed, TASKS, n=4, cutoff=0.5)
    names = f"; nearest: {', '.join(nearest)}" if nearest else ""
    return InputError(f"unknown task {typed!r}{names}; {else_}")
