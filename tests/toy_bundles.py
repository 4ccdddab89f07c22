"""Small bundles with random networks, whose decisions take milliseconds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from models import HIDDEN, generator

from fastdwm import Bundle, Task
from fastdwm.bundle import TrainedModel
from fastdwm.models.config import DiffusionConfig, MeanFlowConfig, MLPConfig, ReBRACConfig, RewardConfig
from fastdwm.models.nets import init_mlp
from fastdwm.models.rebrac import init_critics, init_policy
from fastdwm.models.registry import WORLD_MODELS
from fastdwm.models.reward import reward_shapes
from fastdwm.tasks import get_task
from fastdwm.weights import pack_tensors

OBS_DIM, ACTION_DIM = 11, 3
ALL = ("diffusion", "meanflow", "mlp")
CONFIGS = {
    "diffusion": DiffusionConfig(hidden=HIDDEN, denoise_steps=3, time_features=4),
    "meanflow": MeanFlowConfig(hidden=HIDDEN, time_features=4),
    "mlp": MLPConfig(hidden=HIDDEN),
}
STATISTICS = {"obs_mean": 0.1, "obs_std": 1.5, "delta_mean": 0.0, "delta_std": 0.3}


def make_bundle(*worlds: str, task: Task | None = None, seed: int = 0, settings: Any = None, **changes: Any) -> Bundle:
    """Bundle for hopper-medium of networks as training initialises them.

    worlds: world models; none: diffusion.   settings: other settings of world models, by name.
    changes: other fields of the bundle.
    """
    task = task or get_task("hopper-medium")
    rebrac, reward = ReBRACConfig(hidden=HIDDEN).for_task(task), RewardConfig(hidden=HIDDEN)
    sizes = task.obs_dim, task.action_dim
    policy = init_policy(*sizes, HIDDEN, generator(seed))
    # The actions of a freshly initialised policy are almost zero.
    policy["w2"] *= 300
    models = {}
    for i, name in enumerate(worlds or ("diffusion",)):
        config = replace(CONFIGS[name], **(settings or {}).get(name, {}))
        models[name] = TrainedModel(
            config, init_mlp(WORLD_MODELS[name].shapes(*sizes, config), generator(seed + 10 + i))
        )
    values = {
        "task": task,
        "dataset": {"id": "made up"},
        "policy": policy,
        "critics": init_critics(*sizes, HIDDEN, generator(seed + 1)),
        "reward": init_mlp(reward_shapes(*sizes, reward), generator(seed + 3)),
        "worlds": models,
        "statistics": {name: torch.full((task.obs_dim,), x) for name, x in STATISTICS.items()},
        "rebrac_config": rebrac,
        "reward_config": reward,
        "report": {},
        "versions": {},
        "max_deviation": 0.05,
    }
    return Bundle(**(values | changes))


def save_checkpoint(path: Path, max_deviation: float | None = 0.05, **changes: torch.Tensor) -> Bundle:
    """Save policy and critics of another bundle as `train --keep-checkpoints` does; returns that bundle.

    max_deviation: none: left out.   changes: other tensors of the policy; None: left out.
    """
    other = make_bundle(seed=5)
    policy = {name: value for name, value in (other.policy | changes).items() if value is not None}
    groups = {"policy": policy, "critics": other.critics}
    if max_deviation is not None:
        groups["bound"] = {"max_deviation": torch.tensor([max_deviation])}
    path.write_bytes(pack_tensors(groups))
    return other
