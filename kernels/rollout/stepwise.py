"""The serial part of a rollout by the torch references: policy and sampler H times, and the backward pass."""

from typing import Any

import torch
from torch import Tensor

from fastdwm_kernels.layout import MLPLayout
from fastdwm_kernels.policy.reference import (
    policy_backward_reference,
    policy_forward_reference,
    policy_weight_grads_reference,
)
from fastdwm_kernels.rollout.models import RolloutModels
from fastdwm_kernels.sampler.reference import sampler_backward_reference, sampler_reference


class PolicyTape:
    """B policies along a rollout, with the values that each step saves and one weight gradient over all steps."""

    def __init__(self, layout: MLPLayout, flat: Tensor, n_steps: int):
        """flat: (B, P).   n_steps: calls of `forward` to come."""
        self.layout, self.params = layout, layout.views(flat)
        self.states: list[Tensor] = [None] * n_steps
        self.actions, self.hidden, self.dz = list(self.states), list(self.states), list(self.states)

    def forward(self, j: int, state: Tensor) -> Tensor:
        """Actions (B, M, A) of step j in states (B, M, S)."""
        self.states[j] = state
        self.actions[j], self.hidden[j] = policy_forward_reference(self.layout, self.params, state)
        return self.actions[j]

    def backward(self, j: int, grad: Tensor, need_dx: bool = True) -> Tensor | None:
        """Gradient of step j's states from that of its actions (B, M, A)."""
        saved = self.hidden[j], self.actions[j]
        dx, self.dz[j] = policy_backward_reference(self.layout, self.params, *saved, grad, need_dx)
        return dx

    def weight_gradient(self) -> tuple[Tensor, Tensor]:
        """(B, P), after `backward` of every step, and parts (B, any) of its squared norm."""
        hidden = [torch.cat(layer, 1) for layer in zip(*self.hidden, strict=True)]
        dz = [torch.cat(layer, 1) for layer in zip(*self.dz, strict=True)]
        grads = self.layout.pack(policy_weight_grads_reference(torch.cat(self.states, 1), hidden, dz))
        return grads, grads.square().sum(1, keepdim=True)


class Rollout:
    """A rollout of B policies (B, P) with M particles each, N = B M rows."""

    def __init__(self, models: RolloutModels, params: Tensor, noise: Tensor, save: bool):
        """noise: (H, K, B, M, S).   save: a call of `backward` will follow."""
        self.models, self.noise, self.save = models, noise, save
        self.policy = PolicyTape(models.policy, params, len(noise) + 1)
        self.saved: list[Any] = []

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """States (H + 1, N, S) and actions (H + 1, N, A) from obs (B, S)."""
        models, (horizon, denoise_steps, _, particles, obs_dim) = self.models, self.noise.shape
        state = obs.unsqueeze(1).repeat(1, particles, 1)
        states, actions = [state], [self.policy.forward(0, state)]
        for j in range(horizon):
            rows = ((state - models.obs_mean) / models.obs_std).view(-1, obs_dim)
            action, noise = actions[j].reshape(len(rows), -1), self.noise[j].reshape(denoise_steps, -1, obs_dim)
            y, saved = sampler_reference(models.sampler, rows, action, noise, self.save)
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
        action_grads = [p]
        for j in range(horizon, -1, -1):
            if j < horizon:
                dobs, daction, _ = sampler_backward_reference(models.sampler, lam * models.delta_std, self.saved[j])
                lam = lam + dobs / models.obs_std + direct[j, :, :obs_dim]
                p = daction + direct[j, :, obs_dim:]
                action_grads.insert(0, p)
            ds = self.policy.backward(j, p.reshape(n_policies, particles, -1), need_dx=j > 0)
            if j > 0:
                lam = lam + ds.flatten(0, 1)
        return *self.policy.weight_gradient(), torch.stack(action_grads)
