"""The operators of a rollout by their torch references: the meaning, and float64 on a CPU."""

import torch
from torch import Tensor

from fastdwm_kernels.frozen_mlp.reference import (
    frozen_mlp_backward_reference,
    frozen_mlp_forward_reference,
    frozen_mlp_reference,
)
from fastdwm_kernels.layout import MLPLayout
from fastdwm_kernels.policy.reference import (
    policy_backward_reference,
    policy_forward_reference,
    policy_weight_grads_reference,
)
from fastdwm_kernels.rollout.stepwise import Stepwise
from fastdwm_kernels.sampler.reference import sampler_backward_reference, sampler_reference

sampler_forward = sampler_reference
sampler_backward = sampler_backward_reference
scalar_value = frozen_mlp_reference
scalar_forward = frozen_mlp_forward_reference
scalar_backward = frozen_mlp_backward_reference


class PolicyTape:
    """B policies along a rollout: what each step leaves for the gradient, and one weight gradient over all steps."""

    def __init__(self, layout: MLPLayout, flat: Tensor, n_steps: int, particles: int, precision: str):
        """flat: (B, P).   n_steps: calls of `forward` to come, each with M = `particles` rows of every policy."""
        self.layout, self.params = layout, layout.views(flat)
        self.states: list[Tensor] = [None] * n_steps
        self.actions, self.hidden, self.dz = list(self.states), list(self.states), list(self.states)

    def forward(self, j: int, state: Tensor) -> Tensor:
        """Actions (B, M, A) of step j in states (B, M, S)."""
        self.states[j] = state
        self.actions[j], self.hidden[j] = policy_forward_reference(self.params, state)
        return self.actions[j]

    def backward(self, j: int, grad: Tensor, need_dx: bool = True) -> Tensor | None:
        """Gradient of step j's states from that of its actions (B, M, A)."""
        dx, self.dz[j] = policy_backward_reference(self.params, self.hidden[j], self.actions[j], grad, need_dx)
        return dx

    def weight_gradient(self) -> tuple[Tensor, Tensor]:
        """(B, P), after `backward` of every step, and parts (B, any) of its squared norm."""
        hidden = [torch.cat(layer, 1) for layer in zip(*self.hidden, strict=True)]
        dz = [torch.cat(layer, 1) for layer in zip(*self.dz, strict=True)]
        grads = self.layout.pack(policy_weight_grads_reference(torch.cat(self.states, 1), hidden, dz))
        return grads, grads.square().sum(1, keepdim=True)


class Rollout(Stepwise):
    PolicyTape = PolicyTape
    sampler_forward = staticmethod(sampler_forward)
    sampler_backward = staticmethod(sampler_backward)
