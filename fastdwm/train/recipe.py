"""Offline training of a whole bundle: world model, reward model, policy and critics, then their report."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdwm.bundle import Bundle, package_versions
from fastdwm.command import Progress
from fastdwm.config import DiffusionConfig, MeanFlowConfig, RewardConfig, TrainConfig, require
from fastdwm.data import dataset as data
from fastdwm.data.dataset import Transitions
from fastdwm.measure import model_errors as quality
from fastdwm.models.diffusion import build_diffusion, denoiser_shapes, diffusion_loss
from fastdwm.models.meanflow import build_meanflow, draw_times, meanflow_loss, meanflow_shapes
from fastdwm.models.mlp import build_deterministic, deterministic_loss, deterministic_shapes
from fastdwm.models.nets import Params, init_mlp, map_params
from fastdwm.models.rebrac import ReBRAC, init_critics, init_policy
from fastdwm.models.reward import RewardModel, reward_loss, reward_shapes
from fastdwm.tasks import Task
from fastdwm.train.fit import Batches, Loss, ModelTrainer, OnLine, fit
from fastdwm.train.tilt import Tilt, outcome_value, policy_score, tilt, value_score

# Real episodes during training use other seeds than evaluation (10000...) and tuning (20000...).
EPISODE_SEED = 30_000
MODEL_COLUMNS = ("obs", "action", "next_obs")
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
    networks: dict[str, Params] = dataclasses.field(default_factory=dict)
    """what is trained so far, on the CPU"""

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

    @property
    def dynamics_rows(self) -> np.ndarray:
        """(N,) bool: rows that a world model learns from."""
        return self.model_rows & self.transitions.model_rows

    def batches(self, names: tuple[str, ...], rows: np.ndarray, **extra: Tensor) -> Batches:
        """Batches of the named columns, rewards scaled.   extra: more columns, given for `rows` alone."""
        columns = {name: getattr(self.transitions, name) for name in names}
        for name, values in extra.items():
            columns[name] = np.zeros(self.transitions.n, np.float32)
            columns[name][rows] = values.cpu().numpy()
        if "reward" in names:
            columns["reward"] = columns["reward"] * np.float32(self.task.reward_scale)
        return Batches(columns, np.flatnonzero(rows), self.config.device)

    def place(self, params: Params) -> Params:
        return map_params(lambda value: value.to(self.config.device), params)


def train(
    task: Task,
    transitions: Transitions,
    config: TrainConfig,
    folder: Path,
    on_progress: Progress,
    on_line: OnLine | None = None,
) -> Bundle:
    """Train all parts, or what is left of them in `folder`, measure them and return the bundle.

    config.rebrac: resolved for the task.   The policy learns from all episodes, the models from those not held out.
    """
    train_rows, held_out = split(transitions, config)
    statistics = {k: torch.from_numpy(v) for k, v in data.statistics(transitions, train_rows).items()}
    hooks = dict(log_every=config.log_every, save_every=config.save_every, on_progress=on_progress, on_line=on_line)
    run = Offline(task, transitions, config, train_rows, statistics, partial(fit, folder=folder, **hooks))
    training = {}
    # MeanFlow comes last: its tilt reads the policy.
    for part in (train_dynamics, train_deterministic, train_reward, train_rebrac, train_meanflow):
        networks, metrics = part(run)
        run.networks.update({name: map_params(lambda value: value.detach().cpu(), p) for name, p in networks.items()})
        training[part.__name__.removeprefix("train_")] = metrics
    bundle = Bundle(
        task=task.name,
        env=transitions.env,
        dataset=describe(transitions, task),
        reward_scale=task.reward_scale,
        **run.networks,
        statistics=statistics,
        rebrac_config=config.rebrac,
        dynamics_config=config.dynamics,
        reward_config=config.reward,
        meanflow_config=config.meanflow,
        deterministic_config=config.deterministic,
        report={"seed": config.seed, "holdout": config.holdout, "training": training},
        versions=package_versions(),
    )
    reports = {
        sampler: quality.model_report(
            bundle.world(sampler=sampler), transitions, held_out, config.seed, task.reward_scale
        )
        for sampler in bundle.samplers
    }
    return dataclasses.replace(bundle, report=bundle.report | {"models": reports["diffusion"], "samplers": reports})


def split(transitions: Transitions, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N,) bool that the models learn from, and rows of held-out episodes that measure them.

    Raises InputError if either, or the policy's training, would be left without rows.
    """
    train_rows, held_out = transitions.split_episodes(config.holdout, config.seed)
    for purpose, rows, least in (
        ("for the critics, which need rows before a timeout", transitions.critic_rows, 1),
        ("for the models, which need a next observation", train_rows & transitions.model_rows, 1),
        # A standard error takes two.
        ("with a next observation in held-out episodes", held_out & transitions.model_rows, 2),
    ):
        require(rows.sum() >= least, f"{transitions.source}: expected rows {purpose}, got {rows.sum()} of {len(rows)}")
    return train_rows, held_out


def train_dynamics(run: Offline) -> Trained:
    """The diffusion model; what is kept is the moving average of its weights."""
    config = run.config.dynamics
    init, generator = run.generators(0)
    params = run.place(init_mlp(denoiser_shapes(*run.dims, config), init))
    loss = dynamics_objective(config, run.place(run.statistics))
    trainer = ModelTrainer(params, loss, config, generator, config.ema_rate)
    batches = run.batches(MODEL_COLUMNS, run.dynamics_rows)
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


def train_deterministic(run: Offline) -> Trained:
    """The baseline; what is kept is the moving average of its weights, as for the samplers."""
    config = run.config.deterministic
    init, generator = run.generators(3)
    params = run.place(init_mlp(deterministic_shapes(*run.dims, config), init))
    loss = deterministic_objective(run.place(run.statistics))
    trainer = ModelTrainer(params, loss, config, generator, config.ema_rate)
    batches = run.batches(MODEL_COLUMNS, run.dynamics_rows)
    lines = run.fit("deterministic", trainer, batches, config.batch_size, config.updates)
    return {"deterministic": trainer.networks["averaged"]}, lines[-1]


def deterministic_objective(statistics: dict[str, Tensor]) -> Loss:
    """`deterministic_loss`; draws nothing."""

    def loss(params: Params, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return deterministic_loss(build_deterministic(params, statistics), batch)

    return loss


def train_meanflow(run: Offline) -> Trained:
    """The one-step model under its tilt; what is kept is the moving average of its weights."""
    config = run.config.meanflow
    init, generator = run.generators(4)
    params = run.place(init_mlp(meanflow_shapes(*run.dims, config), init))
    loss = meanflow_objective(config, run.place(run.statistics))
    trainer = ModelTrainer(params, loss, config, generator, config.ema_rate)
    tilted = model_tilt(run)
    extra = {} if tilted is None else {"weight": tilted.weights}
    batches = run.batches(MODEL_COLUMNS, run.dynamics_rows, **extra)
    lines = run.fit("meanflow", trainer, batches, config.batch_size, config.updates)
    return {"meanflow": trainer.networks["averaged"]}, lines[-1] | ({} if tilted is None else tilted.metrics())


def meanflow_objective(config: MeanFlowConfig, statistics: dict[str, Tensor]) -> Loss:
    """`meanflow_loss` at random times with random noise, weighted if the batch has weights."""

    def loss(params: Params, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        obs = batch["obs"]
        r, t = draw_times(config, len(obs), generator)
        noise = torch.randn(obs.shape, generator=generator, device=obs.device)
        model = dataclasses.replace(frame, params=params)
        return meanflow_loss(model, config, batch, r, t, noise, batch.get("weight"))

    frame = build_meanflow({}, statistics, config)
    return loss


def model_tilt(run: Offline) -> Tilt | None:
    """Weights of the rows that the world model learns from, by the trained policy (and critics)."""
    config, rows = run.config.meanflow, run.dynamics_rows
    if config.tilt == "none":
        return None
    columns = (*MODEL_COLUMNS, "terminated")
    obs, action, next_obs, terminated = (
        torch.from_numpy(getattr(run.transitions, name)[rows]).to(run.config.device) for name in columns
    )
    actor = run.place(run.networks["policy"])
    if config.tilt == "policy":
        return tilt(policy_score(actor, obs, action), config.policy_tilt)
    value = outcome_value(actor, run.place(run.networks["critics"]), next_obs, terminated)
    # The score has no unit: the baseline learns values of unit size.
    value = (value - value.mean()) / value.std()
    return tilt(value_score(train_baseline(run, value), obs, action, value), config.value_tilt)


def train_baseline(run: Offline, value: Tensor) -> RewardModel:
    """Regression of the outcome's value on observation and action, by a network like the reward's."""
    config, statistics = run.config.reward, run.place(run.statistics)
    init, generator = run.generators(5)
    params = run.place(init_mlp(reward_shapes(*run.dims, config), init))
    trainer = ModelTrainer(params, reward_objective(config, statistics), config, generator)
    batches = run.batches(("obs", "action"), run.dynamics_rows, reward=value)
    run.fit("baseline", trainer, batches, config.batch_size, config.updates)
    return RewardModel(trainer.networks["averaged"], statistics["obs_mean"], statistics["obs_std"])


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
        "fingerprint": transitions.fingerprint,
        "transitions": transitions.n,
        "episodes": transitions.n_episodes,
        "mean_return": float(returns.mean()),
        "mean_score_pct": task.score_pct(float(returns.mean())),
    }
