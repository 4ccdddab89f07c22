"""How good the trained parts are: the world model on held-out episodes, the base policy in the simulator."""

import numpy as np
import torch
from torch import Tensor

from fastdwm.data import EnvSpec, Transitions
from fastdwm.evaluate import Protocol, run_episodes
from fastdwm.nets import Params, map_params
from fastdwm.rebrac import critics, policy
from fastdwm.rollout import World
from fastdwm.tasks import Task

N_TRANSITIONS = 1000
N_SAMPLES = 16
HORIZON = 10


@torch.no_grad()
def model_report(world: World, transitions: Transitions, held_out: np.ndarray, seed: int = 0) -> dict:
    """Errors of the world model and the reward model on held-out episodes, ready for JSON.

    held_out: (N,) bool, rows of whole episodes.   All errors in raw units unless named `normalised`.
    Source: [ITPO] Figs. 2-3 report one-step errors on 1000 transitions without saying how; the definitions are ours.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    rows = np.flatnonzero(held_out & transitions.next_obs_known)
    rows = rng.choice(rows, min(N_TRANSITIONS, len(rows)), replace=False)
    return {
        "one_step": one_step_errors(world, transitions, rows, generator),
        "open_loop": open_loop_errors(world, transitions, held_out, rng, generator),
    }


def one_step_errors(world: World, transitions: Transitions, rows: np.ndarray, generator: torch.Generator) -> dict:
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
    reward_error = (world.reward(obs, action) - reward).abs()
    return {
        "transitions": len(rows),
        "samples": N_SAMPLES,
        "obs_rmse": _rms(per_row),
        "obs_rmse_se": float(per_row.std() / len(rows) ** 0.5),
        "obs_rmse_normalised": _rms(error / dynamics.delta_std),
        "obs_mean_rmse": _rms(samples.mean(0) - next_obs),
        "spread_normalised": _rms((samples - samples.mean(0)) / dynamics.delta_std),
        "reward_rmse": _rms(reward_error),
        "reward_rmse_se": float(reward_error.std() / len(rows) ** 0.5),
    }


def open_loop_errors(
    world: World, transitions: Transitions, held_out: np.ndarray, rng: np.random.Generator, generator: torch.Generator
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
        normalised = error / world.dynamics.obs_std
        errors.append({"h": h, "obs_rmse": _rms(error), "obs_rmse_normalised": _rms(normalised)})
    return errors


def _columns(transitions: Transitions, rows: np.ndarray) -> tuple[Tensor, ...]:
    """obs, action, next_obs and reward of the rows."""
    names = ("obs", "action", "next_obs", "reward")
    return tuple(torch.from_numpy(np.asarray(getattr(transitions, name)[rows])) for name in names)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


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
        return policy(self.params, obs).numpy()

    def reset(self) -> None:
        """Nothing to forget."""

    def keep(self, mask: np.ndarray) -> None:
        """Nothing to drop."""

    def diagnose(self) -> dict:
        return {}


@torch.no_grad()
def policy_report(
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
    protocol = Protocol(min(task.max_episode_steps, env.max_episode_steps or task.max_episode_steps), 0, discount)
    episodes = run_episodes(agent, env, seeds, protocol).episodes
    discounted = [task.reward_scale * discount ** np.arange(e.length) @ np.asarray(e.rewards) for e in episodes]
    scores = [task.score_pct(episode.total) for episode in episodes]
    value = critics(cpu_critics, agent.first_obs, policy(cpu_policy, agent.first_obs)).amin(0)
    return {
        "score_pct": float(np.mean(scores)),
        "score_std": float(np.std(scores)),
        "q_start": float(value.mean()),
        "discounted_return": float(np.mean(discounted)),
    }
