"""Replay recorded transitions in their simulator, to detect data that were scaled, shifted or mixed up.

gymnasium and mujoco are imported where they are used.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fastdwm.data.dataset import Transitions, statistics
from fastdwm.envs import EnvSpec, family_of
from fastdwm.errors import InputError

# Hopper and Walker2d clip observed velocities to +-10, so that the physical state of such an observation is unknown.
CUT_VELOCITY = 10.0

MAZES = ("AntMaze_UMaze", "AntMaze_Medium", "AntMaze_Large")
FAMILIES = ("Hopper", "Walker2d", "HalfCheetah", *MAZES)
"""families of simulators whose state follows from an observation"""

STEPS, EDGE_STEPS = 18, 8
"""number of steps to replay inside episodes, and at each kind of place where recorders make mistakes"""
FEWEST_STEPS = 3
"""smallest number of steps for a median"""
SCALE_STEPS = 10_000
"""number of steps that give the standard deviation of an observation's change"""

# Median errors over steps, of observations in standard deviations of their change, of rewards in standard deviations.
# In the simulator that recorded the data they are 1e-6; halved or wrong actions give 0.1 to 0.7 for observations,
# rewards of another row 0.03 to 0.2. Other versions of MuJoCo and of the robots lie between. The largest
# changes are contacts at clipped velocities, with errors of up to 0.6 of the change itself; a reset recorded as a step
# gives more than 1.
OBS_TOLERANCE, REWARD_TOLERANCE, JUMP_TOLERANCE = 0.05, 0.02, 0.9
JUMPS = "where observations change the most"


class Simulator:
    """A MuJoCo task as a function of observation and action, deterministic to the bit and without state.

    A horizontal position that observations leave out is set to 0; neither physics nor reward depends on it. AntMaze
    observes the whole state but not the goal, which is that of the seed 0: rewards and terminations are those of that
    goal.
    """

    def __init__(self, spec: EnvSpec, reward_scale: float = 1.0):
        """reward_scale: factor on the simulator's rewards, as in the models' training.
        Raises InputError for a simulator whose state does not follow from an observation."""
        self.env, self.reward_scale = spec.make(), reward_scale
        self.inner = self.env.unwrapped
        # A maze has no `set_state` of its own; its robot has.
        self.robot = getattr(self.inner, "ant_env", self.inner)
        # Only RescaleAction has this function among the wrappers of `EnvSpec.make`.
        self.action = getattr(self.env, "action", lambda action: action)
        obs = np.asarray(self.env.reset(seed=0)[0])
        settable = all(hasattr(self.robot, name) for name in ("set_state", "_get_obs", "model", "data"))
        self.hidden = self.robot.model.nq + self.robot.model.nv - len(obs) if settable else -1
        if self.hidden not in (0, 1) or not np.array_equal(self.observe(obs), obs):
            self.env.close()
            raise InputError(f"{spec.id} cannot be set to the state behind an observation")

    def observe(self, obs: np.ndarray) -> np.ndarray:
        """Set the physics to obs (S,), and observe it again."""
        import mujoco

        # This also clears the solver's last solution, from which it would otherwise start.
        mujoco.mj_resetData(self.robot.model, self.robot.data)
        state = np.concatenate([np.zeros(self.hidden), obs])
        self.robot.set_state(*np.split(state, [self.robot.model.nq]))
        return self.robot._get_obs()

    def step(self, obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Next observation (S,), reward, and whether the episode terminates, from one obs (S,) and action (A,)."""
        self.observe(obs)
        _, reward, terminated, *_ = self.inner.step(self.action(action))
        # Not the step's own observation, which is a dict in a maze.
        return self.robot._get_obs(), self.reward_scale * reward, terminated

    def __call__(self, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Next observation and reward in one array (S + 1,)."""
        next_obs, reward, _ = self.step(obs, action)
        return np.append(next_obs, reward)

    def __enter__(self) -> "Simulator":
        return self

    def __exit__(self, *error: object) -> None:
        self.env.close()


def check(transitions: Transitions, trust_env: bool = False) -> None:
    """Replay about 50 transitions of a known robot in its simulator; raise InputError, in one line, if they differ.

    In a maze, whose goal observations leave out, only the observations are compared.
    trust_env: the user trusts data and simulator, so only warn.   Other simulators are not checked, for their state
    does not follow from an observation.
    """
    if family_of(transitions.env) not in FAMILIES or not (messages := differences(transitions)):
        return
    message = f"{transitions.source}: replayed in {transitions.env.id}, {', '.join(messages)}"
    if not trust_env:
        causes = "they are of another simulator, were scaled, or rows or ends of episodes are out of place"
        raise InputError(f"{message}: {causes}; --trust-env takes them all the same")
    print(f"fastdwm: {message}", file=sys.stderr)


def differences(transitions: Transitions) -> list[str]:
    """Describe how transitions differ when replayed in their simulator; empty if they do not."""
    if not transitions.model_rows.any():
        return []
    rng = np.random.default_rng(0)
    sample = np.zeros(transitions.n, bool)
    sample[rng.permutation(np.flatnonzero(transitions.model_rows))[:SCALE_STEPS]] = True
    scale = statistics(transitions, sample)["delta_std"]
    with Simulator(transitions.env) as simulator, _no_physics_warnings():
        replayed = {
            place: (rows, *_replay(simulator, transitions, rows))
            for place, rows in _places(transitions, scale, rng).items()
        }
    reward_std = max(1e-3, np.concatenate([reward for _, _, reward, _ in replayed.values()]).std())
    messages: dict[str, str] = {}
    for place, (rows, next_obs, reward, terminated) in replayed.items():
        next_obs_known = transitions.next_obs_known[rows]
        change = _size((transitions.next_obs[rows] - transitions.obs[rows]) / scale)
        errors = _size((next_obs - transitions.next_obs[rows]) / scale) / np.maximum(change, 1)
        error, tolerance = _median(errors[next_obs_known]), JUMP_TOLERANCE if place == JUMPS else OBS_TOLERANCE
        if error > tolerance:
            messages.setdefault("obs", f"observations are off by {error:.2g} of their usual change {place}")
        if place == JUMPS or family_of(transitions.env) in MAZES:
            continue
        # Hopper-v5 gives no reward for being healthy in the step that terminates, v4 does.
        error = _median(np.abs(reward - transitions.reward[rows])[~transitions.terminated[rows]] / reward_std)
        if error > REWARD_TOLERANCE:
            messages.setdefault("reward", f"rewards are off by {error:.2g} of their standard deviation {place}")
        wrong = terminated != transitions.terminated[rows]
        if _median(wrong) > 0.5:
            messages.setdefault("end", f"{wrong.sum()} of {len(wrong)} steps differ in whether they terminate {place}")
    return list(messages.values())


def _places(transitions: Transitions, scale: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Rows to replay, by their place in the data; all kinds but the last have no clipped velocities."""
    starts, ends = transitions.episode_starts, transitions.episode_ends
    inside = transitions.model_rows.copy()
    inside[ends] = False
    inner = np.flatnonzero(inside)
    jumps = inner[np.argsort(_size((transitions.next_obs[inner] - transitions.obs[inner]) / scale))[-EDGE_STEPS:]]
    uncut = (np.abs(transitions.obs) != CUT_VELOCITY).all(axis=1)
    inside &= uncut
    places = {
        "inside episodes": np.flatnonzero(inside),
        "in their first steps": starts[inside[starts]],
        "one step before their ends": ends[inside[ends - 1]] - 1,
        "at their ends": ends[uncut[ends]],
        JUMPS: jumps,
    }
    return {
        place: rng.permutation(rows)[: STEPS if place == "inside episodes" else EDGE_STEPS]
        for place, rows in places.items()
    }


def _replay(simulator: Simulator, transitions: Transitions, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Next observations (N, S), rewards (N,) and terminations (N,) of these transitions in the simulator."""
    pairs = zip(transitions.obs[rows].astype(float), transitions.action[rows].astype(float), strict=True)
    steps = [simulator.step(obs, action) for obs, action in pairs]
    next_obs = np.array([step[0] for step in steps]).reshape(len(rows), transitions.obs.shape[1])
    return next_obs, np.array([step[1] for step in steps], float), np.array([step[2] for step in steps], bool)


def _size(values: np.ndarray) -> np.ndarray:
    """Root mean square of each row."""
    return np.sqrt(np.square(values).mean(axis=1))


def _median(values: np.ndarray) -> float:
    """The median; 0 for fewer than FEWEST_STEPS values, infinity if one is NaN."""
    return float(np.nan_to_num(np.median(values), nan=np.inf)) if len(values) >= FEWEST_STEPS else 0.0


@contextmanager
def _no_physics_warnings() -> Iterator[None]:
    """Keep MuJoCo from writing warnings on unphysical states to a file in the working directory."""
    import mujoco

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
