"""What is climbed: the imagined return of B policies at once, and the way up it.

Every episode owns a copy of the policy; a sum over episodes has each copy's own gradient, so one backward pass serves
them all.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.itpo.rollout import Score, imagine, require_plain, scored_return
from fastdwm.kernels.rollout import Anchor, Gradient
from fastdwm.kernels.rollout.gradient import pull_of
from fastdwm.models.nets import Params
from fastdwm.models.policy import Policy
from fastdwm.models.world import World, terminal_value


class Objective(Protocol):
    """The imagined return J and the way up it; B policies (B, P), obs (B, S), noise (H, K, B, M, S)."""

    discount: float

    def value(self, params: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
        """J (B,)."""

    def gradient(self, params: Tensor, obs: Tensor, noise: Tensor, anchor: Anchor | None = None) -> Gradient:
        """J, the gradient of J less the anchor's penalty with respect to each episode's parameters, and J's slopes."""

    def outcome(
        self, obs: Tensor, action: Tensor, base_action: Tensor, value: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The reward model's r(s, a) (B,) and the base policy's value Q(s, pi_0(s)) (B,) in real states (B, S).

        value: the latter where a gradient has left it (`Gradient.anchored`)."""


@dataclass(frozen=True)
class ReferenceObjective:
    """`imagined_return`, differentiated by autograd: the truth that faster objectives are checked against."""

    policy: Policy
    world: World
    config: ITPOConfig
    score: Score | None = None

    def __post_init__(self) -> None:
        require_plain(self.config, self.score)

    @property
    def discount(self) -> float:
        return self.world.discount

    @torch.no_grad()
    def value(self, params: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
        return self._return(*self._imagine(self.policy.layout.views(params), obs, noise))

    @torch.enable_grad()
    def gradient(self, params: Tensor, obs: Tensor, noise: Tensor, anchor: Anchor | None = None) -> Gradient:
        layout, particles = self.policy.layout, noise.shape[3]
        leaves = {name: value.detach().requires_grad_(True) for name, value in layout.views(params).items()}
        states, actions = self._imagine(leaves, obs, noise)
        returns = self._return(states, actions)
        climbed = returns.sum()
        if anchor is not None:
            penalty = (actions[0] - anchor.action.unsqueeze(1)).square().sum(2).mean(1)
            climbed = climbed - (anchor.weight * penalty).sum()
        grads = torch.autograd.grad(climbed, [*leaves.values(), *actions], materialize_grads=True)
        slopes = torch.stack(grads[len(leaves) :])
        if anchor is not None:
            slopes[0] += pull_of(anchor, actions[0].detach())
        grads = layout.pack(dict(zip(leaves, grads[: len(leaves)], strict=True)))
        return Gradient(returns.detach(), grads, particles * slopes)

    def _imagine(self, params: Params, obs: Tensor, noise: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return imagine(self.policy, params, self.world, obs, noise)

    def _return(self, states: list[Tensor], actions: list[Tensor]) -> Tensor:
        return scored_return(self.world, torch.stack(states), torch.stack(actions), self.config, self.score)

    @torch.no_grad()
    def outcome(
        self, obs: Tensor, action: Tensor, base_action: Tensor, value: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if value is None:
            value = terminal_value(self.world, obs, base_action, self.config.terminal_value)
        return self.world.reward(obs, action), value
