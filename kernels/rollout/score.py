"""Any score of the imagined states and actions; autograd differentiates it only with respect to these.

The backward pass through policy and sampler (`ops.Rollout`) stays derived by hand. It starts from the score's gradient
with respect to states and actions, like that of the default return in `imagine.py`.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from fastdwm_kernels.rollout.gradient import Gradient, backward
from fastdwm_kernels.rollout.models import RolloutModels

Score = Callable[[Tensor, Tensor], Tensor]
"""function from states (H + 1, B, M, S) and actions (H + 1, B, M, A) to (B,)"""


def value(ops: ModuleType, models: RolloutModels, score: Score, params: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
    """The score (B,)."""
    _, states, actions = imagine(ops, models, params, obs, noise, save=False)
    return score(states, actions)


def gradient(
    ops: ModuleType,
    models: RolloutModels,
    score: Score,
    params: Tensor,
    obs: Tensor,
    noise: Tensor,
) -> Gradient:
    """The score and its gradient."""
    rollout, *rows = imagine(ops, models, params, obs, noise, save=True)
    with torch.enable_grad():
        rows = [value.requires_grad_() for value in rows]
        values = score(*rows)
        direct = torch.autograd.grad(values.sum(), rows, materialize_grads=True)
    direct = torch.cat(direct, -1).flatten(1, 2)
    return backward(rollout, noise, values.detach().contiguous(), direct)


def imagine(ops: ModuleType, models: RolloutModels, params: Tensor, obs: Tensor, noise: Tensor, save: bool):
    """The rollout of B policies (B, P), its states (H + 1, B, M, S) and its actions (H + 1, B, M, A)."""
    _, _, *rows, _ = noise.shape
    rollout = ops.Rollout(models, params, noise, save)
    return rollout, *(value.unflatten(1, rows).detach() for value in rollout.forward(obs))
