"""Offline training of a whole bundle: world model, reward model, policy and critics, then their report."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdwm import data, quality
from fastdwm.bundle import Bundle, package_versions
from fastdwm.command import Report
from fastdwm.config import DiffusionConfig, RewardConfig, TrainConfig
from fastdwm.data import Transitions
from fastdwm.diffusion import build_diffusion, denoiser_shapes, diffusion_loss
from fastdwm.nets import Params, init_mlp, map_params
from fastdwm.rebrac import ReBRAC, init_critics, init_policy
from fastdwm.reward import RewardModel, reward_loss, reward_shapes
from fastdwm.tasks import Task
from fastdwm.training import Batches, Loss, ModelTrainer, OnLine, fit

# Real episodes during training use other seeds than evaluation (10000...) and tuning (20000...).
EPISODE_SEED = 30_000
CRITIC_COLUMNS = ("obs", "action", "reward", "next_obs", "next_action", "terminated")

Trained = tuple[dict[str, Params], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Offline:
    """One training run: what every part of it needs."""

    task: Task
    transitions: Transitions
    config: TrainConfig
    model_rows: np.ndarray
    """(N,) bool: rows of the episodes that the models may see"""
    statistics: dict[str, Tensor]
    """obs_mean, obs_std, delta_mean, delta_std (S,)"""
    fit: Any
    """`training.fit` with folder and hooks filled in"""

    @property
    def dims(self) -> tuple[int, int]:
        """Sizes of observation and action."""
        return self.transitions.obs.shape[1], self.transitions.action.shape[1]

    def generators(self, part: int) -> tuple[torch.Generator, torch.Generator]:
        """Initialisation (CPU) and training (device) randomness of a part; parts do not share any."""
        seed = 1_000 * self.config.seed + 10 * part
        return (
            torch.Generator().manual_seed(seed),
            torch.Generator(self.config.device).manual_seed(seed + 1),
        )

    def batches(self, names: tuple[str, ...], rows: np.ndarray) -> Batches:
        """Batches of the named columns, rewards scaled."""
        columns = {name: getattr(self.transitions, name) for name in names}
        if "reward" in columns:
            columns["reward"] = columns["reward"] * np.float32(self.task.reward_scale)
        return Batches(columns, np.flatnonzero(rows), self.config.device)

    def place(self, params: Params) -> Params:
        return map_params(lambda value: value.to(self.config.device), params)


def train(
    task: Task,
    transitions: Transitions,
    config: TrainConfig,
    folder: Path,
    on_progress: Report,
    on_line: OnLine | None = None,
) -> Bundle:
    """Train all parts, or what is left of them in `folder`, measure them and return the bundle.

    config.rebrac: resolved for the task.   The policy learns from all episodes, the models from those not held out.
    """
    train_rows, held_out = transitions.split_episodes(config.holdout, config.seed)
    statistics = {k: torch.from_numpy(v) for k, v in data.statistics(transitions, train_rows).items()}
    hooks = dict(log_every=config.log_every, save_every=config.save_every, on_progress=on_progress, on_line=on_line)
    run = Offline(task, transitions, config, train_rows, statistics, partial(fit, folder=folder, **hooks))
    weights, training = {}, {}
    for part in (train_dynamics, train_reward, train_rebrac):
        networks, metrics = part(run)
        weights |= {name: map_params(lambda value: value.detach().cpu(), p) for name, p in networks.items()}
        training[part.__name__.removeprefix("train_")] = metrics
    bundle = Bundle(
        task=task.name,
        env=transitions.env,
        dataset=describe(transitions, task),
        reward_scale=task.reward_scale,
        **weights,
        statistics=statistics,
        rebrac_config=config.rebrac,
        dynamics_config=config.dynamics,
        reward_config=config.reward,
        report={"seed": config.seed, "training": training},
        versions=package_versions(),
    )
    models = quality.model_report(bundle.world(), transitions, held_out, config.seed)
    return dataclasses.replace(bundle, report=bundle.report | {"models": models})


def train_dynamics(run: Offline) -> Trained:
    """The diffusion model; what is kept is the moving average of its weights."""
    config = run.config.dynamics
    init, generator = run.generators(0)
    params = run.place(init_mlp(denoiser_shapes(*run.dims, config), init))
    loss = dynamics_objective(config, run.place(run.statistics))
    trainer = ModelTrainer(params, loss, config, generator, config.ema_rate)
    rows = run.model_rows & run.transitions.model_rows
    batches = run.batches(("obs", "action", "next_obs"), rows)
    lines = run.fit("dynamics", trainer, batches, config.batch_size, config.updates)
    return {"dynamics": trainer.networks["averaged"]}, lines[-1]


def dynamics_objective(config: DiffusionConfig, statistics: dict[str, Tensor]) -> Loss:
    """`diffusion_loss` at random diffusion steps with random noise."""

    def loss(params: Params, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        obs = batch["obs"]
        index = torch.randint(config.denoise_steps, (len(obs),), generator=generator, device=obs.device)
        noise = torch.randn(obs.shape, generator=generator, device=obs.device)
        return diffusion_loss(dataclasses.replace(model, params=params), config, batch, index, noise)

    model = build_diffusion({}, statistics, config)
    return loss


def train_reward(run: Offline) -> Trained:
    """The reward model."""
    config = run.config.reward
    init, generator = run.generators(1)
    params = run.place(init_mlp(reward_shapes(*run.dims, config), init))
    trainer = ModelTrainer(params, reward_objective(config, run.place(run.statistics)), config, generator)
    batches = run.batches(("obs", "action", "reward"), run.model_rows)
    lines = run.fit("reward", trainer, batches, config.batch_size, config.updates)
    return {"reward": trainer.networks["averaged"]}, lines[-1]


def reward_objective(config: RewardConfig, statistics: dict[str, Tensor]) -> Loss:
    """`reward_loss`; draws nothing."""

    def loss(params: Params, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return reward_loss(RewardModel(params, statistics["obs_mean"], statistics["obs_std"]), batch)

    return loss


def train_rebrac(run: Offline) -> Trained:
    """Policy and critics, with real episodes of the policy at each tenth of the training if asked for."""
    config = run.config.rebrac
    init, generator = run.generators(2)
    policy = run.place(init_policy(*run.dims, config.hidden, init))
    critics = run.place(init_critics(*run.dims, config.hidden, init))
    trainer = ReBRAC(policy, critics, config, generator)
    seeds = [EPISODE_SEED + i for i in range(run.config.eval_episodes)]
    period = max(config.updates // 10, 1)

    def measure(n_updates: int) -> dict[str, float]:
        if not seeds or n_updates // period == (n_updates - run.config.log_every) // period:
            return {}
        return quality.policy_report(policy, critics, run.transitions.env, run.task, config.discount, seeds)

    batches = run.batches(CRITIC_COLUMNS, run.transitions.critic_rows)
    lines = run.fit("rebrac", trainer, batches, config.batch_size, config.updates, measure=measure)
    return {"policy": policy, "critics": critics}, lines[-1]


def describe(transitions: Transitions, task: Task) -> dict[str, Any]:
    """The dataset, for the bundle: what it is and how good its behaviour was."""
    returns = transitions.episode_returns()
    return {
        "id": transitions.source,
        "transitions": transitions.n,
        "episodes": transitions.n_episodes,
        "mean_return": float(returns.mean()),
        "mean_score_pct": task.score_pct(float(returns.mean())),
    }
