"""How good the trained parts are: the world model on held-out episodes, the base policy in the simulator."""

import numpy as np
import torch
from torch import Tensor

from fastdwm.command import StageProgress, unwatched
from fastdwm.data.dataset import Transitions
from fastdwm.data.recordings import derive
from fastdwm.envs import EnvSpec
from fastdwm.measure.simulate import run_episodes
from fastdwm.models.nets import Params, map_params
from fastdwm.models.policy import mlp_policy
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
    """Errors of the world model and the reward model on held-out episodes, ready for JSON.

    held_out: (N,) bool, rows of whole episodes.   statistics: obs_std, delta_std (S,), the units of what is normalised.
    reward_scale: recorded rewards times this are what was learnt.
    All errors in raw units, that of the reward in the scaled unit, unless named `normalised`.
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

    obs: sqrt(mean_n e_n^2), e_n^2 = mean over N_SAMPLES samples and the coordinates of the squared error of row n.
    obs_normalised: the same in standard deviations of the change of each coordinate; a model that predicts the mean
    change scores 1.   obs_mean: of the mean of the samples.   spread: std of the samples, normalised.
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

    obs_rmse_normalised is in standard deviations of the observation.   Starts are rows that HORIZON steps follow.
    """
    ends = transitions.episode_ends
    last = ends[np.searchsorted(ends, np.arange(transitions.n))]
    starts = np.flatnonzero(held_out & (last - np.arange(transitions.n) >= HORIZON))
    if len(starts) == 0:
        return []
    starts = rng.choice(starts, min(N_TRANSITIONS, len(starts)), replace=False)
    state = _columns(transitions, starts)[0]
    errors = []
    for h in range(1, HORIZON + 1):
        _, action, next_obs, _ = _columns(transitions, starts + h - 1)
        noise = torch.randn(world.dynamics.noise_steps, *state.shape, generator=generator)
        state = world.dynamics.next_obs(state, action, noise)
        error = state - next_obs
        normalised = error / obs_std
        errors.append({"h": h, "obs_rmse": _rms(error), "obs_rmse_normalised": _rms(normalised)})
    return errors


def calibration(
    world: World, transitions: Transitions, rows: np.ndarray, delta_std: Tensor, generator: torch.Generator
) -> dict:
    """Whether the spread of CALIBRATION_SAMPLES samples tells how wrong their mean is.

    spread_to_error: std of the samples over the RMSE of their mean, both in standard deviations of the change; 1 is
    calibrated, less is overconfident, be it for the model or for the way it samples, whose part `ideal.spread_to_error`
    tells.
    error_normalised: (S,) that RMSE of each coordinate.   coverage: for each of `levels`, the share of recorded
    coordinates inside the central interval that holds this share of the samples; the level itself is calibrated.
    A deterministic model has spread 0 (up to rounding) and covers nothing.
    """
    obs, action, next_obs, _ = _columns(transitions, rows)
    dynamics, n = world.dynamics, CALIBRATION_SAMPLES
    noise = torch.randn(dynamics.noise_steps, n, *obs.shape, generator=generator)
    samples = dynamics.next_obs(obs.expand(n, -1, -1), action.expand(n, -1, -1), noise)
    spread = _rms(samples.std(0) / delta_std)
    errors = (samples.mean(0) - next_obs) / delta_std
    error = _rms(errors)
    tails = (1 - np.array(LEVELS)) / 2
    # Weibull's quantiles of n samples cover a further sample as often as they say, the default ones less often.
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
    """obs, action, next_obs and reward of the rows."""
    names = ("obs", "action", "next_obs", "reward")
    return tuple(torch.from_numpy(np.asarray(getattr(transitions, name)[rows])) for name in names)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def fresh_episodes(
    params: Params,
    env: EnvSpec,
    seeds: list[int],
    max_steps: int,
    action_noise: float,
    on_progress: StageProgress = unwatched,
) -> Transitions:
    """Episodes of the policy, simulated now: data that no model has seen, at the states that planning meets.

    params: of one policy, float32.   action_noise: std of the Gaussian noise on its actions, which stay in [-1, 1].
    Episode i starts from environment seed seeds[i], which also draws its noise.   on_progress(steps, at most).
    """
    names = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
    columns: dict[str, list] = {name: [] for name in names}
    with env.make() as simulator:
        for i, seed in enumerate(seeds):
            rng, obs = np.random.default_rng(seed), simulator.reset(seed=seed)[0]
            for t in range(max_steps):
                with torch.no_grad():
                    action = mlp_policy(params, torch.as_tensor(obs, dtype=torch.float32)).numpy()
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
    known = {"next_obs_known": np.ones(len(arrays["reward"]), bool)}
    return Transitions(**derive(arrays | known), source="fresh episodes", env=env)


class BasePolicy:
    """A frozen policy as `run_episodes` wants an agent: acts, never adapts. Remembers the first observations."""

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
        """Nothing to forget."""

    def keep(self, mask: np.ndarray) -> None:
        """Nothing to drop."""


@torch.no_grad()
def measure_policy(
    policy_params: Params, critic_params: Params, env: EnvSpec, task: Task, discount: float, seeds: list[int]
) -> dict[str, float]:
    """Real episodes of the base policy: score, and the critic's value of the first state against what came of it.

    q_start: mean of min_i Q_i(s_0, pi(s_0)).   discounted_return: mean of sum_t g^t r_t.   Both in the reward unit that
    the critics were trained on; parameters may be on any device.
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
