"""Offline training of a whole bundle: reward model, policy and critics, world models, and their report."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdwm.bundle import Bundle, TrainedModel
from fastdwm.checks import require
from fastdwm.command import Progress
from fastdwm.data import dataset as data
from fastdwm.data.dataset import Transitions
from fastdwm.files import write_atomically
from fastdwm.importers.imported import Imported
from fastdwm.machine import package_versions
from fastdwm.measure.deviation import max_deviation
from fastdwm.measure.model_errors import measure_errors, measure_policy
from fastdwm.models.nets import Params, init_mlp
from fastdwm.models.rebrac import ReBRAC, init_critics, init_policy
from fastdwm.models.registry import WORLD_MODELS
from fastdwm.models.reward import RewardModel, reward_objective, reward_shapes
from fastdwm.tasks import Task
from fastdwm.train.config import TrainConfig
from fastdwm.train.fit import Loop, ModelTrainer, OnLine
from fastdwm.train.fqe import check_critics, keep_policy
from fastdwm.train.offline import CRITIC_COLUMNS, MODEL_COLUMNS, Metrics, Offline, kept
from fastdwm.train.returns import return_columns
from fastdwm.train.tilt import Tilt, outcome_value, policy_score, tilt, value_score
from fastdwm.weights import MAX_STATISTIC, check_tensor, pack_tensors

# Real episodes during training use seeds apart from those of evaluation (10000...) and tuning (20000...).
EPISODE_SEED = 30_000
MAX_REWARD = 1e6
"""bound on the absolute value of a scaled reward, and on 1 / the largest"""


def train(
    task: Task,
    transitions: Transitions,
    config: TrainConfig,
    folder: Path,
    on_progress: Progress,
    on_line: OnLine | None = None,
    imported: Imported | None = None,
) -> Bundle:
    """Train all parts in `folder`, or resume there, measure them and return the bundle.

    config.rebrac: from `for_task`.   The policy learns from all episodes, the models from those not held out.
    imported: a policy to keep, with critics or without.
    """
    names = [name for name in WORLD_MODELS if name != "mlp"] if config.worlds is None else config.worlds
    for name in names:
        require(name in WORLD_MODELS, f"worlds: expected some of {', '.join(WORLD_MODELS)}, got {name!r}")
    train_rows, held_out, statistics = prepare(task, transitions, config)
    loop = Loop(folder, config.log_every, config.save_every, on_progress, on_line)
    imported = None if imported is None else imported.for_data(transitions.obs)
    run, training = Offline(task, transitions, config, train_rows, statistics, loop, imported), {}
    # The policy comes before the world models, for a tilt uses it.
    run.networks["reward"], training["reward"] = train_reward(run)
    if imported is None:
        run.networks["policy"], run.networks["critics"], training["rebrac"] = train_rebrac(run)
    else:
        training |= keep_policy(run, imported)
    critic = check_critics(run)
    worlds = {}
    for name in filter(names.__contains__, WORLD_MODELS):
        worlds[name], training[name] = train_world(run, name)
    bundle = Bundle(
        task=dataclasses.replace(task, env=transitions.env),
        dataset=dataset_record(transitions, task),
        **run.networks,
        worlds=worlds,
        statistics=statistics,
        rebrac_config=config.rebrac,
        reward_config=config.reward,
        report=own_report(config, imported) | {"training": training, "critic": critic},
        versions=package_versions(),
        own_policy=None if imported is None else imported.policy_spec,
        own_critics=None if imported is None else imported.critic_spec,
    )
    # The policy that the user gave stays as it is.
    bundle = bundle.in_half() if config.weights == "float16" and imported is None else bundle
    bound = max_deviation(transitions, bundle.policy, bundle.discount, bundle.policy_function)
    errors = held_out_errors(bundle, transitions, held_out, config.seed)
    return dataclasses.replace(bundle, max_deviation=bound, report=bundle.report | {"errors": errors})


def own_report(config: TrainConfig, imported: Imported | None) -> dict[str, Any]:
    """The bundle's record of the run, and of the file that its policy came from."""
    about = {"seed": config.seed, "holdout": config.holdout}
    if imported is None:
        return about
    critics = "fqe" if imported.critics is None else "file"
    return about | {"policy": {"file": config.policy or "a module", "critics": critics, "notes": list(imported.notes)}}


def held_out_errors(bundle: Bundle, transitions: Transitions, held_out: np.ndarray, seed: int) -> dict[str, dict]:
    """`measure_errors` of each world model."""
    settings = bundle.statistics, seed, bundle.task.reward_scale
    return {name: measure_errors(bundle.world(name), transitions, held_out, *settings) for name in bundle.worlds}


def prepare(
    task: Task, transitions: Transitions, config: TrainConfig
) -> tuple[np.ndarray, np.ndarray, dict[str, Tensor]]:
    """The rows of `split`, and the statistics of those that the models learn from.

    Raises InputError as `split` does, and for numbers too large or small for a bundle to hold.
    """
    train_rows, held_out = split(transitions, config)
    # Overflow of float32 gives infinity, which is refused.
    with np.errstate(all="ignore"):
        arrays = data.statistics(transitions, train_rows)
        reward = float(np.abs(transitions.reward.astype(np.float64) * task.reward_scale).max())
    statistics = {name: torch.from_numpy(values) for name, values in arrays.items()}
    for name, values in statistics.items():
        check_tensor(f"{transitions.source}: {name}", values, (task.obs_dim,), MAX_STATISTIC)
    usable = reward == 0 or 1 / MAX_REWARD <= reward <= MAX_REWARD
    expected = f"expected the largest reward to be 0 or within {1 / MAX_REWARD:g} and {MAX_REWARD:g}"
    require(usable, f"{transitions.source}: {expected}, got {reward:g}")
    return train_rows, held_out, statistics


def split(transitions: Transitions, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N,) bool that the models learn from, and rows of held-out episodes to measure them.

    Raises InputError if there are no rows for either, or for the critics.
    """
    train_rows, held_out = transitions.split_episodes(config.holdout, config.seed)
    for purpose, rows, least in (
        ("for the critics, which need rows before a timeout", transitions.critic_rows, 1),
        ("for the models, which need a next observation", train_rows & transitions.model_rows, 1),
        # A standard error needs two.
        ("with a next observation in held-out episodes", held_out & transitions.model_rows, 2),
    ):
        require(rows.sum() >= least, f"{transitions.source}: expected rows {purpose}, got {rows.sum()} of {len(rows)}")
    return train_rows, held_out


def train_world(run: Offline, name: str) -> tuple[TrainedModel, Metrics]:
    """Train a world model, with its tilt if it has one, and keep the moving average of its weights."""
    model = WORLD_MODELS[name]
    config = run.config.world(name, model.config)
    init, generator = run.generators(name)
    params = run.place(init_mlp(model.shapes(*run.dims, config), init))
    loss = model.loss(config, run.place(run.statistics))
    trainer = ModelTrainer(params, loss, config, generator)
    tilted = model_tilt(run, config)
    extra = {} if tilted is None else {"weight": tilted.weights}
    batches = run.batches(MODEL_COLUMNS, run.world_rows, **extra)
    metrics = run.loop.fit(name, trainer, batches, config.batch_size, config.updates)
    trained = TrainedModel(config, kept(trainer.networks["averaged"]))
    return trained, metrics | ({} if tilted is None else tilted.metrics())


def model_tilt(run: Offline, config: Any) -> Tilt | None:
    """Weights of the rows that a world model learns from, by the trained policy (and critics); None without a tilt."""
    rows = run.world_rows
    if getattr(config, "tilt", "none") == "none":
        return None
    columns = (*MODEL_COLUMNS, "terminated")
    obs, action, next_obs, terminated = (
        torch.from_numpy(getattr(run.transitions, name)[rows]).to(run.config.device) for name in columns
    )
    if config.tilt == "policy":
        return tilt(policy_score(run.actor(), obs, action), config.policy_tilt)
    value = outcome_value(run.actor(), run.critics(), next_obs, terminated)
    # The score has no unit, so the baseline may learn standardised values.
    value = (value - value.mean()) / value.std()
    return tilt(value_score(train_baseline(run, value), obs, action, value), config.value_tilt)


def train_baseline(run: Offline, value: Tensor) -> RewardModel:
    """Regress the value of the next state on observation and action, with a network like the reward's."""
    config, statistics = run.config.reward, run.place(run.statistics)
    init, generator = run.generators("baseline")
    params = run.place(init_mlp(reward_shapes(*run.dims, config), init))
    trainer = ModelTrainer(params, reward_objective(statistics), config, generator)
    batches = run.batches(("obs", "action"), run.world_rows, reward=value)
    run.loop.fit("baseline", trainer, batches, config.batch_size, config.updates)
    return RewardModel(trainer.networks["averaged"], statistics["obs_mean"], statistics["obs_std"])


def train_reward(run: Offline) -> tuple[Params, Metrics]:
    """Train the reward model."""
    config = run.config.reward
    init, generator = run.generators("reward")
    params = run.place(init_mlp(reward_shapes(*run.dims, config), init))
    trainer = ModelTrainer(params, reward_objective(run.place(run.statistics)), config, generator)
    batches = run.batches(("obs", "action", "reward"), run.model_rows)
    metrics = run.loop.fit("reward", trainer, batches, config.batch_size, config.updates)
    return kept(trainer.networks["averaged"]), metrics


def train_rebrac(run: Offline) -> tuple[Params, Params, Metrics]:
    """Train policy and critics; log real episodes at each tenth of the training if the settings ask for them."""
    config = run.config.rebrac
    init, generator = run.generators("rebrac")
    policy = run.place(init_policy(*run.dims, config.hidden, init))
    critics = run.place(init_critics(*run.dims, config.hidden, init))
    trainer = ReBRAC(policy, critics, config, generator)
    policy, critics = (trainer.networks[name] for name in ("policy", "critics"))
    seeds = [EPISODE_SEED + i for i in range(run.config.eval_episodes)]
    period = max(config.updates // 10, 1)
    keep_updates = checkpoint_updates(config.updates, run.config.keep_checkpoints)

    def measure(n_updates: int) -> Metrics:
        if not seeds or n_updates // period == (n_updates - run.config.log_every) // period:
            return {}
        return measure_policy(policy, critics, run.transitions.env, run.task, config.discount, seeds)

    def keep(n_updates: int) -> None:
        if n_updates in keep_updates:
            bound = max_deviation(run.transitions, kept(policy), config.discount)
            content = pack_tensors(
                {"policy": policy, "critics": critics, "bound": {"max_deviation": torch.tensor([bound])}}
            )
            write_atomically(run.loop.folder / f"policy-{n_updates}.safetensors", content)

    batches = run.batches(CRITIC_COLUMNS, run.transitions.critic_rows, return_columns(run.transitions, config))
    hooks = {"measure": measure, "after_update": keep}
    metrics = run.loop.fit("rebrac", trainer, batches, config.batch_size, config.updates, **hooks)
    return kept(policy), kept(critics), metrics


def checkpoint_updates(updates: int, count: int) -> set[int]:
    """The updates after which a policy is kept: `count` of them, evenly spaced up to the last one."""
    return {round(updates * (i + 1) / count) for i in range(count)}


def dataset_record(transitions: Transitions, task: Task) -> dict[str, Any]:
    """The bundle's record of the dataset: its identity, size and mean return."""
    returns = transitions.episode_returns()
    return {
        "id": transitions.source,
        "fingerprint": transitions.fingerprint,
        "transitions": transitions.n,
        "episodes": transitions.n_episodes,
        "mean_return": float(returns.mean()),
        "mean_score_pct": task.score_pct(float(returns.mean())),
    }
