"""The objective to maximise: the imagined return of B policies at once, with its gradient.

Every episode owns a copy of the policy; a sum over episodes has each copy's own gradient, so one backward pass serves
them all.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.itpo.rollout import Score, imagine, require_plain, scored_return
from fastdwm.models.nets import Params
from fastdwm.models.policy import Policy
from fastdwm.models.world import World
from fastdwm_kernels.rollout import Gradient


class Objective(Protocol):
    """The imagined return J and its gradient; B policies (B, P), obs (B, S), noise (H, K, B, M, S)."""

    def value(self, params: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
        """J (B,)."""

    def gradient(self, params: Tensor, obs: Tensor, noise: Tensor) -> Gradient:
        """J, and its gradient with respect to each episode's parameters and to the imagined actions."""


@dataclass(frozen=True)
class ReferenceObjective:
    """`imagined_return` differentiated by autograd: the reference for faster objectives."""

    policy: Policy
    world: World
    config: ITPOConfig
    score: Score | None = None

    def __post_init__(self) -> None:
        require_plain(self.config, self.score)

    @torch.no_grad()
    def value(self, params: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
        return self._return(*self._imagine(self.policy.layout.views(params), obs, noise))

    @torch.enable_grad()
    def gradient(self, params: Tensor, obs: Tensor, noise: Tensor) -> Gradient:
        layout, particles = self.policy.layout, noise.shape[3]
        leaves = {name: value.detach().requires_grad_(True) for name, value in layout.views(params).items()}
        states, actions = self._imagine(leaves, obs, noise)
        returns = self._return(states, actions)
        grads = torch.autograd.grad(returns.sum(), [*leaves.values(), *actions], materialize_grads=True)
        action_grads = particles * torch.stack(grads[len(leaves) :])
        grads = layout.pack(dict(zip(leaves, grads[: len(leaves)], strict=True)))
        return Gradient(returns.detach(), grads, action_grads, grads.square().sum(1, keepdim=True))

    def _imagine(self, params: Params, obs: Tensor, noise: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return imagine(self.policy, params, self.world, obs, noise)

    def _return(self, states: list[Tensor], actions: list[Tensor]) -> Tensor:
        return scored_return(self.world, torch.stack(states), torch.stack(actions), self.config, self.score)
