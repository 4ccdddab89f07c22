"""Measure the trained parts: the world model on held-out episodes, the base policy in the simulator."""

import numpy as np
import torch
from torch import Tensor

from fastdwm.command import StageProgress, unwatched
from fastdwm.data.dataset import Transitions
from fastdwm.data.recordings import derive
from fastdwm.envs import EnvSpec, coordinate_groups
from fastdwm.measure.simulate import run_episodes
from fastdwm.models.nets import Params, map_params
from fastdwm.models.policy import MLPFunction, mlp_policy
from fastdwm.models.rebrac import q_values
from fastdwm.models.world import World
from fastdwm.tasks import Task

N_TRANSITIONS = 1000
N_SAMPLES = 16
HORIZON = 10
CALIBRATION_SAMPLES = 64
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@torch.no_grad()
def measure_errors(
    world: World,
    transitions: Transitions,
    held_out: np.ndarray,
    statistics: dict[str, Tensor],
    seed: int = 0,
    reward_scale: float = 1.0,
) -> dict:
    """Errors of the world model and the reward model on held-out episodes, as JSON values.

    held_out: (N,) bool, rows of whole episodes.   statistics: obs_std, delta_std (S,), the units of normalised errors.
    reward_scale: factor between recorded rewards and those that the models were trained on.
    Errors are in raw units, that of the reward in scaled units, unless their name says `normalised`.
    Source: [ITPO] Figs. 2-3 report one-step errors on 1000 transitions without saying how; the definitions are ours.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    rows = np.flatnonzero(held_out & transitions.next_obs_known)
    rows = rng.choice(rows, min(N_TRANSITIONS, len(rows)), replace=False)
    return {
        "one_step": one_step_errors(world, transitions, rows, statistics["delta_std"], generator, reward_scale),
        "open_loop": open_loop_errors(world, transitions, held_out, statistics["obs_std"], rng, generator),
        "calibration": calibration(world, transitions, rows, statistics["delta_std"], generator),
    }


def one_step_errors(
    world: World,
    transitions: Transitions,
    rows: np.ndarray,
    delta_std: Tensor,
    generator: torch.Generator,
    reward_scale: float = 1.0,
) -> dict:
    """RMSE of next observation and reward over the rows, with standard errors.

    obs_rmse: sqrt(mean_n e_n^2), e_n^2 = mean over N_SAMPLES samples and all coordinates of the squared error of row n.
    obs_rmse_normalised: the same in standard deviations of the change of each coordinate; a model that predicts the
    mean change scores 1.   obs_mean_rmse: error of the samples' mean.   spread_normalised: std of the samples.
    groups: obs_rmse of the simulator's groups of coordinates, by name; of the simulators that have them.
    """
    obs, action, next_obs, reward = _columns(transitions, rows)
    dynamics = world.dynamics
    noise = torch.randn(dynamics.noise_steps, N_SAMPLES, *obs.shape, generator=generator)
    samples = dynamics.next_obs(obs.expand(N_SAMPLES, -1, -1), action.expand(N_SAMPLES, -1, -1), noise)
    error = samples - next_obs
    per_row = error.square().mean((0, 2)).sqrt()
    reward_error = (world.reward(obs, action) - reward_scale * reward).abs()
    return {
        "transitions": len(rows),
        "samples": N_SAMPLES,
        "obs_rmse": _rms(per_row),
        "obs_rmse_se": float(per_row.std() / len(rows) ** 0.5),
        "obs_rmse_normalised": _rms(error / delta_std),
        "obs_mean_rmse": _rms(samples.mean(0) - next_obs),
        "spread_normalised": _rms((samples - samples.mean(0)) / delta_std),
        "reward_rmse": _rms(reward_error),
        "reward_rmse_se": float(reward_error.std() / len(rows) ** 0.5),
        **_by_group(error, transitions.env),
    }


def open_loop_errors(
    world: World,
    transitions: Transitions,
    held_out: np.ndarray,
    obs_std: Tensor,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> list[dict]:
    """Error after h = 1..HORIZON imagined steps with the recorded actions, one sample each.

    obs_rmse_normalised is in standard deviations of the observation.   groups: as in `one_step_errors`, and
    groups_unchanged the same for the prediction that nothing changes.   Rollouts start at rows that at least HORIZON
    rows of the same episode follow.
    """
    ends = transitions.episode_ends
    last = ends[np.searchsorted(ends, np.arange(transitions.n))]
    starts = np.flatnonzero(held_out & (last - np.arange(transitions.n) >= HORIZON))
    if len(starts) == 0:
        return []
    starts = rng.choice(starts, min(N_TRANSITIONS, len(starts)), replace=False)
    state = start = _columns(transitions, starts)[0]
    errors = []
    for h in range(1, HORIZON + 1):
        _, action, next_obs, _ = _columns(transitions, starts + h - 1)
        noise = torch.randn(world.dynamics.noise_steps, *state.shape, generator=generator)
        state = world.dynamics.next_obs(state, action, noise)
        error = state - next_obs
        normalised = error / obs_std
        line = {"h": h, "obs_rmse": _rms(error), "obs_rmse_normalised": _rms(normalised)}
        line |= _by_group(error, transitions.env)
        line |= _by_group(start - next_obs, transitions.env, "groups_unchanged")
        errors.append(line)
    return errors


def calibration(
    world: World, transitions: Transitions, rows: np.ndarray, delta_std: Tensor, generator: torch.Generator
) -> dict:
    """Compare the spread of CALIBRATION_SAMPLES samples with the error of their mean.

    spread_to_error: std of the samples over the RMSE of their mean, both in standard deviations of the change. 1 is
    calibrated, less is overconfident; `ideal.spread_to_error` gives the part that is due to the sampler.
    error_normalised: (S,) the RMSE of each coordinate.   coverage: for each of `levels`, the share of recorded
    coordinates inside the central interval that holds this share of the samples; a calibrated model covers the level.
    A deterministic model has spread 0 (up to rounding) and coverage 0.
    """
    obs, action, next_obs, _ = _columns(transitions, rows)
    dynamics, n = world.dynamics, CALIBRATION_SAMPLES
    noise = torch.randn(dynamics.noise_steps, n, *obs.shape, generator=generator)
    samples = dynamics.next_obs(obs.expand(n, -1, -1), action.expand(n, -1, -1), noise)
    spread = _rms(samples.std(0) / delta_std)
    errors = (samples.mean(0) - next_obs) / delta_std
    error = _rms(errors)
    tails = (1 - np.array(LEVELS)) / 2
    # Weibull's quantiles of n samples cover a new sample at their nominal rate; the default ones cover it less often.
    low, high = (np.quantile(samples.numpy(), q, axis=0, method="weibull") for q in (tails, 1 - tails))
    inside = (low <= next_obs.numpy()) & (next_obs.numpy() <= high)
    return {
        "samples": n,
        "spread_to_error": spread / error if error else None,
        "error_normalised": errors.square().mean(0).sqrt().tolist(),
        "levels": list(LEVELS),
        "coverage": inside.mean((1, 2)).tolist(),
    }


def _columns(transitions: Transitions, rows: np.ndarray) -> tuple[Tensor, ...]:
    """The columns obs, action, next_obs and reward for these rows."""
    names = ("obs", "action", "next_obs", "reward")
    return tuple(torch.from_numpy(np.asarray(getattr(transitions, name)[rows])) for name in names)


def _by_group(error: Tensor, env: EnvSpec, key: str = "groups") -> dict[str, dict[str, float]]:
    """RMSE of an error (..., S) by group of coordinates, under `key`; empty for a simulator without groups."""
    errors = {name: _rms(error[..., coordinates]) for name, coordinates in coordinate_groups(env).items()}
    return {key: errors} if errors else {}


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def fresh_episodes(
    params: Params,
    env: EnvSpec,
    seeds: list[int],
    max_steps: int,
    action_noise: float,
    on_progress: StageProgress = unwatched,
    function: MLPFunction = mlp_policy,
) -> Transitions:
    """Simulate fresh episodes of the policy: no model was trained on them, and their states are those of planning.

    params: of one policy, float32.   action_noise: std of the Gaussian noise on its actions, which stay in [-1, 1].
    seeds[i] is the environment seed of episode i and the seed of its noise.   on_progress(steps, at most).
    function: of the policy, from its parameters to actions.
    """
    names = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
    columns: dict[str, list] = {name: [] for name in names}
    with env.make() as simulator:
        for i, seed in enumerate(seeds):
            rng, obs = np.random.default_rng(seed), simulator.reset(seed=seed)[0]
            for t in range(max_steps):
                with torch.no_grad():
                    action = function(params, torch.as_tensor(obs, dtype=torch.float32)).numpy()
                action = (action + action_noise * rng.standard_normal(len(action))).clip(-1, 1).astype(np.float32)
                next_obs, reward, terminated, truncated, _ = simulator.step(action)
                truncated = (truncated or t == max_steps - 1) and not terminated
                row = (obs, action, reward, next_obs, terminated, truncated)
                for name, value in zip(names, row, strict=True):
                    columns[name].append(value)
                if terminated or truncated:
                    break
                obs = next_obs
            on_progress((i + 1) * max_steps, len(seeds) * max_steps)
    kinds = {"terminated": bool, "truncated": bool}
    arrays = {name: np.array(values, kinds.get(name, np.float32)) for name, values in columns.items()}
    arrays["next_obs_known"] = np.ones(len(arrays["reward"]), bool)
    return Transitions(**derive(arrays), source="fresh episodes", env=env)


class BasePolicy:
    """A frozen policy with the interface of an agent for `run_episodes`; it stores the first observations."""

    def __init__(self, params: Params):
        self.params = params
        self.first_obs: Tensor | None = None
        self.discarded = np.zeros(0, int)

    @torch.no_grad()
    def act(self, obs: np.ndarray) -> np.ndarray:
        obs = torch.as_tensor(obs, dtype=torch.float32)
        if self.first_obs is None:
            self.first_obs = obs
        self.discarded = np.zeros(len(obs), int)
        return mlp_policy(self.params, obs).numpy()

    def reset(self) -> None:
        """Do nothing: there is no state."""

    def keep(self, mask: np.ndarray) -> None:
        """Do nothing: there is no state."""


@torch.no_grad()
def measure_policy(
    policy_params: Params, critic_params: Params, env: EnvSpec, task: Task, discount: float, seeds: list[int]
) -> dict[str, float]:
    """Run real episodes of the base policy: score, and the critics' value of the first state against the real return.

    q_start: mean of min_i Q_i(s_0, pi(s_0)).   discounted_return: mean of sum_t g^t r_t.   Both are in the critics'
    reward unit. Parameters may be on any device.
    """
    cpu_policy, cpu_critics = (
        map_params(lambda value: value.detach().cpu(), p) for p in (policy_params, critic_params)
    )
    agent = BasePolicy(cpu_policy)
    episodes = run_episodes(agent, env, seeds, max_steps=task.env.max_episode_steps).episodes
    discounted = [task.reward_scale * discount ** np.arange(e.length) @ np.asarray(e.rewards) for e in episodes]
    scores = [task.score_pct(episode.total) for episode in episodes]
    value = q_values(cpu_critics, agent.first_obs, mlp_policy(cpu_policy, agent.first_obs)).amin(0)
    return {
        "score_pct": float(np.mean(scores)),
        "score_std": float(np.std(scores)),
        "q_start": float(value.mean()),
        "discounted_return": float(np.mean(discounted)),
    }
