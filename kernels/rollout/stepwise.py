"""The serial part of a rollout, one operator after the other: the policy and the sampler, H times, and back.

What the fused execution on a CPU (`compiled.py`) does in two calls, for the operators that are called one by one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdwm_kernels.rollout.models import RolloutModels


class Stepwise:
    """B policies (B, P) with M particles each; rows are N = B M. Subclasses name the operators."""

    PolicyTape: type
    sampler_forward: Callable
    sampler_backward: Callable

    def __init__(self, models: RolloutModels, params: Tensor, noise: Tensor, save: bool):
        """noise: (H, K, B, M, S).   save: a call of `backward` will follow."""
        self.models, self.noise, self.save = models, noise, save
        horizon, _, _, particles, _ = noise.shape
        self.policy = self.PolicyTape(models.policy, params, horizon + 1, particles, models.sampler.precision)
        self.saved: list[Any] = []

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """States (H + 1, N, S) and actions (H + 1, N, A) from obs (B, S)."""
        models, (horizon, steps, _, particles, obs_dim) = self.models, self.noise.shape
        state = obs.unsqueeze(1).repeat(1, particles, 1)
        states, actions = [state], [self.policy.forward(0, state)]
        for j in range(horizon):
            rows = ((state - models.obs_mean) / models.obs_std).view(-1, obs_dim)
            action, noise = actions[j].reshape(len(rows), -1), self.noise[j].reshape(steps, -1, obs_dim)
            y, saved = self.sampler_forward(models.sampler, rows, action, noise, self.save)
            state = state + (y * models.delta_std).add_(models.delta_mean).view_as(state)
            self.saved.append(saved)
            states.append(state)
            actions.append(self.policy.forward(j + 1, state))
        return torch.stack(states).flatten(1, 2), torch.stack(actions).flatten(1, 2)

    def backward(self, direct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient (B, P), parts (B, any) of its squared norm, and all p (H + 1, N, A), from direct (H + 1, N, S + A),
        the gradient of each step's own terms; lam and p as in imagine.py."""
        models, (horizon, _, n_policies, particles, obs_dim) = self.models, self.noise.shape
        lam, p = direct[horizon].split([obs_dim, direct.shape[2] - obs_dim], 1)
        slopes = [p]
        for j in range(horizon, -1, -1):
            if j < horizon:
                dobs, daction, _ = self.sampler_backward(models.sampler, lam * models.delta_std, self.saved[j])
                lam = lam + dobs / models.obs_std + direct[j, :, :obs_dim]
                p = daction + direct[j, :, obs_dim:]
                slopes.insert(0, p)
            ds = self.policy.backward(j, p.reshape(n_policies, particles, -1), need_dx=j > 0)
            if j > 0:
                lam = lam + ds.flatten(0, 1)
        return *self.policy.weight_gradient(), torch.stack(slopes)
