"""Models damaged on purpose and by a known amount: a bundle in, the same with one worse model out.

Errors are those of `measure.model_errors` on held-out rows of the data; how much noise a network's last layer gets is
found by bisection. A perturbed last layer errs in another way at every state and action: of a world model's new error
about a third is the same everywhere, of a reward model's nine tenths would be (both measured on hopper-medium). That is
taken out, for a constant reward changes no gradient.
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
"""of a calibrated error, relative"""
SMALLEST, TRIALS = 1e-4, 60
"""first scale of the noise on a last layer, and how many scales are tried"""


@dataclass(frozen=True)
class Rows:
    """Held-out transitions that errors are measured on."""

    transitions: Transitions
    index: np.ndarray
    """(N,) int64, rows whose next observation is known"""

    @classmethod
    def of(cls, bundle: Bundle, dataset: str | None = None) -> "Rows":
        """Those that the bundle's training held out, at most N_TRANSITIONS; dataset: none is what the bundle names."""
        transitions = data.load(bundle.task, dataset or bundle.dataset["id"])
        _, held_out = transitions.split_episodes(bundle.report.get("holdout", 0.05), bundle.report.get("seed", 0))
        known = np.flatnonzero(held_out & transitions.next_obs_known)
        index = np.random.default_rng(0).choice(known, min(N_TRANSITIONS, len(known)), replace=False)
        return cls(transitions, index)

    def column(self, name: str) -> Tensor:
        """Of the transitions, (N, ..) float32."""
        return torch.from_numpy(np.asarray(getattr(self.transitions, name)[self.index]))


def louder_critics(bundle: Bundle) -> Bundle:
    """The critics' values times CRITIC_FACTOR: the output is linear in the last layer."""
    last = n_layers(bundle.critics) - 1
    scaled = {name: CRITIC_FACTOR * bundle.critics[name] for name in (f"w{last}", f"b{last}")}
    return replace(bundle, critics=bundle.critics | scaled)


def other_critics(bundle: Bundle, path: str) -> Bundle:
    """The critics of a file that `train --keep-checkpoints` left, under the policy of the bundle."""
    return replace(bundle, critics=bundle.with_policy(path).critics)


def biased_reward(bundle: Bundle, rows: Rows) -> tuple[Bundle, str]:
    """A reward model with REWARD_FACTOR times its RMSE, its mean over the rows as before; and what was measured."""
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
    """(N,), in the unit that was learnt."""
    return bundle.world(next(iter(bundle.worlds))).reward(obs, action)


def wrong_world(bundle: Bundle, name: str, rows: Rows) -> tuple[Bundle, str]:
    """A world model with WORLD_FACTOR times its one-step RMSE, in raw units, on the rows; and what was measured."""
    model = bundle.worlds[name]

    def damaged(scale: float) -> Bundle:
        return replace(bundle, worlds=bundle.worlds | {name: replace(model, params=perturbed(model.params, scale))})

    return calibrated(damaged, lambda worse: world_error(worse, name, rows), WORLD_FACTOR, "one-step RMSE")


@torch.no_grad()
def world_error(bundle: Bundle, name: str, rows: Rows) -> float:
    """One-step RMSE of the next observation, raw units."""
    # The same noise at every call: what differs is the damage alone.
    given = rows.index, bundle.statistics["delta_std"], torch.Generator().manual_seed(0), bundle.task.reward_scale
    return one_step_errors(bundle.world(name), rows.transitions, *given)["obs_rmse"]


def perturbed(params: Params, scale: float) -> Params:
    """The network with `scale` times Gaussian noise, always the same, on the weights of its last layer."""
    last = f"w{n_layers(params) - 1}"
    noise = torch.randn(params[last].shape, generator=torch.Generator().manual_seed(0))
    return params | {last: params[last] + scale * noise}


def calibrated(
    damaged: Callable[[float], Bundle], error: Callable[[Bundle], float], factor: float, what: str
) -> tuple[Bundle, str]:
    """The bundle whose error is `factor` times that of damaged(0), by doubling and bisection; and what was measured.

    Raises InputError if no scale is found, as for a model whose error is zero.
    """
    before, low, high = error(damaged(0.0)), 0.0, None
    scale = SMALLEST
    for _ in range(TRIALS):
        worse = damaged(scale)
        after = error(worse)
        if abs(after - factor * before) < TOLERANCE * factor * before:
            return worse, f"{what} {before:.3g} to {after:.3g}"
        low, high = (low, scale) if after > factor * before else (scale, high)
        scale = 2 * scale if high is None else (low + high) / 2
    raise InputError(f"damage: {what} of {before:.3g} could not be brought to {factor:g} times as much")
