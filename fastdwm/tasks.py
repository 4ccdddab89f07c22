"""The 24 D4RL tasks of the paper as data: simulator, dataset ids, reference scores, ReBRAC settings, healthy region.

Sources: scores, observation sizes and episode caps from D4RL's infos; ReBRAC settings from CORL's configs (those of
[ReBRAC] 2305.09836); healthy regions from Gymnasium's MuJoCo environments. Pure data: imports no numpy, no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import inf
from typing import Any

from fastdwm.errors import InputError


@dataclass(frozen=True)
class Limit:
    """One coordinate of the observation that must stay inside the open interval (low, high), in raw units."""

    index: int
    low: float = -inf
    high: float = inf


@dataclass(frozen=True)
class Environment:
    """A simulator and the scale of its score."""

    name: str
    """first part of the task's name"""
    env_id: str
    """current Gymnasium id, used where a dataset does not say what it was recorded in"""
    d4rl_env_id: str
    """Gymnasium id that repeats the physics and rewards of D4RL's own files"""
    obs_dim: int
    """size of an observation (S)"""
    action_dim: int
    """size of an action (A), every coordinate in [-1, 1]"""
    ref_min_score: float
    """return that scores 0 (a random policy)"""
    ref_max_score: float
    """return that scores 100 (an expert)"""
    limits: tuple[Limit, ...] = ()
    """the healthy region: leaving it terminates the episode; empty: nothing an observation shows terminates it"""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """arguments of the simulator that the score's definition demands; they override the dataset's own"""
    ends_at_success: bool = False
    """an episode ends, terminated, at its first positive reward, wherever its recording went on"""


@dataclass(frozen=True)
class Task:
    """One row of the paper's tables."""

    name: str
    """as typed on the command line, without D4RL's version"""
    env: Environment
    """simulator and score"""
    d4rl_id: str
    """name of the D4RL dataset behind the paper's numbers"""
    minari_id: str | None
    """nearest dataset on the public Minari server, none where there is no such dataset"""
    actor_bc_coef: float
    """weight of the behaviour-cloning term in the actor loss (b1)"""
    critic_bc_coef: float
    """weight of the next-action penalty in the critic target (b2)"""
    actor_lr: float = 1e-3
    """Adam step size of the policy"""
    critic_lr: float = 1e-3
    """Adam step size of the critics"""
    batch_size: int = 1024
    """transitions per update"""
    discount: float = 0.99
    """gamma"""
    reward_scale: float = 1.0
    """factor on every reward before it is learnt from"""
    max_episode_steps: int = 1000
    """cap of an evaluation episode"""

    def score_pct(self, episode_return: float) -> float:
        """D4RL's normalised score of an undiscounted, unscaled return: 0 = random, 100 = expert."""
        low, high = self.env.ref_min_score, self.env.ref_max_score
        return 100.0 * (episode_return - low) / (high - low)


# Gymnasium also bounds the state that follows the torso's height by 100; the paper's public baselines do too.
_HOPPER = (Limit(0, low=0.7), Limit(1, -0.2, 0.2), *(Limit(index, -100.0, 100.0) for index in range(2, 11)))
_WALKER2D = (Limit(0, 0.8, 2.0), Limit(1, -1.0, 1.0))

_MUJOCO = (
    Environment("halfcheetah", "HalfCheetah-v5", "HalfCheetah-v4", 17, 6, -280.178953, 12135.0),
    Environment("hopper", "Hopper-v5", "Hopper-v4", 11, 3, -20.272305, 3234.3, _HOPPER),
    Environment("walker2d", "Walker2d-v5", "Walker2d-v4", 17, 6, 1.629008, 4592.3, _WALKER2D),
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
    """The 18 Gym-MuJoCo tasks; only `medium` and `expert` have counterparts on the public Minari server."""
    return [
        Task(
            name=f"{env.name}-{level}",
            env=env,
            d4rl_id=f"{env.name}-{level}-v2",
            minari_id=f"mujoco/{env.name}/{level}-v0" if level in ("medium", "expert") else None,
            actor_bc_coef=actor_bc_coef,
            critic_bc_coef=critic_bc_coef,
        )
        for env in _MUJOCO
        for level, (actor_bc_coef, critic_bc_coef) in zip(_LEVELS, _MUJOCO_COEFS[env.name], strict=True)
    ]


def _antmaze(maze: str) -> Environment:
    """AntMaze in one of _MAZES; the observation is the ant's position, then its other 27 numbers.

    v4, not v5: the public datasets were recorded in it, and v5 observes 78 contact forces more. The score is the
    share of episodes that reach the goal, so an episode ends there instead of collecting one reward per step.
    """
    cells = [[int(cell) if cell in "01" else cell for cell in row] for row in _MAZES[maze].split()]
    env_id, kwargs = f"AntMaze_{maze}-v4", {"maze_map": cells, "continuing_task": False}
    return Environment("antmaze", env_id, env_id, 29, 8, 0.0, 1.0, kwargs=kwargs, ends_at_success=True)


def _antmaze_tasks() -> list[Task]:
    """The 6 AntMaze tasks."""
    return [
        Task(
            name=f"antmaze-{level}",
            env=_antmaze(maze),
            d4rl_id=f"antmaze-{level}-v2",
            minari_id=f"D4RL/antmaze/{level}-v1",
            actor_bc_coef=actor_bc_coef,
            critic_bc_coef=critic_bc_coef,
            actor_lr=3e-4,
            critic_lr=5e-5,
            batch_size=256,
            discount=0.999,
            reward_scale=100.0,
            max_episode_steps=700 if maze == "UMaze" else 1000,
        )
        for level, (maze, actor_bc_coef, critic_bc_coef) in _ANTMAZE.items()
    ]


TASKS: dict[str, Task] = {task.name: task for task in (*_mujoco_tasks(), *_antmaze_tasks())}


def get_task(name: str) -> Task:
    """The task of that name; raises InputError, with the nearest names in one line, if there is none."""
    if name in TASKS:
        return TASKS[name]
    nearest = get_close_matches(name, TASKS, n=4, cutoff=0.4) or sorted(TASKS)
    raise InputError(f"unknown task {name!r}; nearest: {', '.join(nearest)}")
