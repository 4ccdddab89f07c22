"""Damage one model of a bundle on purpose and by a known amount.

Noise on a network's last layer is scaled by bisection until its error on held-out rows (`measure.model_errors`) is the
wanted one. A third of a world model's new error is a constant bias; of a reward model's it would be nine tenths (both
measured on hopper-medium), so the reward's bias is removed: a constant reward changes no gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastdwm.bundle import Bundle
from fastdwm.data import dataset as data
from fastdwm.data.dataset import Transitions
from fastdwm.errors import InputError
from fastdwm.measure.model_errors import N_TRANSITIONS, one_step_errors
from fastdwm.models.nets import Params, n_layers

CRITIC_FACTOR, REWARD_FACTOR, WORLD_FACTOR = 3.0, 3.0, 5.0
TOLERANCE = 0.01
"""relative tolerance of a calibrated error"""
SMALLEST, TRIALS = 1e-4, 60
"""first scale of the noise on a last layer, and the number of scales that are tried"""


@dataclass(frozen=True)
class Rows:
    """Held-out transitions on which errors are measured."""

    transitions: Transitions
    index: np.ndarray
    """(N,) int64, rows whose next observation is known"""

    @classmethod
    def of(cls, bundle: Bundle, dataset: str | None = None) -> "Rows":
        """At most N_TRANSITIONS rows that the bundle's training held out.   dataset: none: the bundle's."""
        transitions = data.load(bundle.task, dataset or bundle.dataset["id"])
        _, held_out = transitions.split_episodes(bundle.report.get("holdout", 0.05), bundle.report.get("seed", 0))
        rows = np.flatnonzero(held_out & transitions.next_obs_known)
        index = np.random.default_rng(0).choice(rows, min(N_TRANSITIONS, len(rows)), replace=False)
        return cls(transitions, index)

    def column(self, name: str) -> Tensor:
        """Column of the transitions, (N, ..) float32."""
        return torch.from_numpy(np.asarray(getattr(self.transitions, name)[self.index]))


def louder_critics(bundle: Bundle) -> Bundle:
    """Multiply the critics' values by CRITIC_FACTOR; the output is linear in the last layer."""
    last = n_layers(bundle.critics) - 1
    scaled = {name: CRITIC_FACTOR * bundle.critics[name] for name in (f"w{last}", f"b{last}")}
    return replace(bundle, critics=bundle.critics | scaled)


def other_critics(bundle: Bundle, path: str) -> Bundle:
    """Take the critics of a file from `train --keep-checkpoints`, and keep the bundle's policy."""
    return replace(bundle, critics=bundle.with_policy(path).critics)


def biased_reward(bundle: Bundle, rows: Rows) -> tuple[Bundle, str]:
    """Raise the reward model's RMSE by REWARD_FACTOR without changing its mean; returns also the measured errors."""
    obs, action = rows.column("obs"), rows.column("action")
    reward = bundle.task.reward_scale * rows.column("reward")
    last = n_layers(bundle.reward) - 1
    before = predicted_reward(bundle, obs, action)

    def damaged(scale: float) -> Bundle:
        params = perturbed(bundle.reward, scale)
        shift = predicted_reward(replace(bundle, reward=params), obs, action).mean() - before.mean()
        return replace(bundle, reward=params | {f"b{last}": params[f"b{last}"] - shift})

    def error(worse: Bundle) -> float:
        return float((predicted_reward(worse, obs, action) - reward).square().mean().sqrt())

    return calibrated(damaged, error, REWARD_FACTOR, "RMSE of the reward")


@torch.no_grad()
def predicted_reward(bundle: Bundle, obs: Tensor, action: Tensor) -> Tensor:
    """Predicted rewards (N,), in the unit of the training."""
    return bundle.world(next(iter(bundle.worlds))).reward(obs, action)


def wrong_world(bundle: Bundle, name: str, rows: Rows) -> tuple[Bundle, str]:
    """Raise a world model's one-step RMSE, in raw units, by WORLD_FACTOR; returns also the measured errors."""
    model = bundle.worlds[name]

    def damaged(scale: float) -> Bundle:
        return replace(bundle, worlds=bundle.worlds | {name: replace(model, params=perturbed(model.params, scale))})

    return calibrated(damaged, lambda worse: world_error(worse, name, rows), WORLD_FACTOR, "one-step RMSE")


@torch.no_grad()
def world_error(bundle: Bundle, name: str, rows: Rows) -> float:
    """One-step RMSE of the next observation, raw units."""
    # Every call draws the same noise, so that only the damage makes a difference.
    generator, std = torch.Generator().manual_seed(0), bundle.statistics["delta_std"]
    args = rows.index, std, generator, bundle.task.reward_scale
    return one_step_errors(bundle.world(name), rows.transitions, *args)["obs_rmse"]


def perturbed(params: Params, scale: float) -> Params:
    """Add `scale` times a fixed Gaussian noise to the weights of the last layer."""
    last = f"w{n_layers(params) - 1}"
    noise = torch.randn(params[last].shape, generator=torch.Generator().manual_seed(0))
    return params | {last: params[last] + scale * noise}


def calibrated(
    damaged: Callable[[float], Bundle], error: Callable[[Bundle], float], factor: float, name: str
) -> tuple[Bundle, str]:
    """Find the bundle whose error is `factor` times that of damaged(0) by doubling and bisection.

    Returns the bundle and a text of both errors; raises InputError if no scale fits, as for a model without error.
    """
    before, low, high = error(damaged(0.0)), 0.0, None
    scale = SMALLEST
    for _ in range(TRIALS):
        worse = damaged(scale)
        after = error(worse)
        if abs(after - factor * before) < TOLERANCE * factor * before:
            return worse, f"{name} {before:.3g} to {after:.3g}"
        low, high = (low, scale) if after > factor * before else (scale, high)
        scale = 2 * scale if high is None else (low + high) / 2
    raise InputError(f"damage: {name} of {before:.3g} could not be brought to {factor:g} times as much")
