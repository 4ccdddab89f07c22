"""The rules of an update: how the gradient of the imagined return changes the policies, and what they may do with it.

A rule is init (what it remembers of new episodes), step (one policy update) and act (the action to execute). The
operators behind them exist in plain torch, compiled for a CPU, and as Triton kernels.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm_kernels.rollout import Gradient
from fastdwm_kernels.update import adam_step, bound_step, pull_back, sgd_step


@dataclass(frozen=True)
class PolicyState:
    """The adapted policies of B episodes: parameters (B, P), and what the rule remembers, each (B, ...)."""

    params: Tensor
    memory: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return self.params, *self.memory

    def where(self, mask: Tensor, other: "PolicyState") -> "PolicyState":
        """This state for the episodes in mask (B,), `other` for the rest."""
        pairs = zip(self.tensors, other.tensors, strict=True)
        params, *memory = (torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in pairs)
        return PolicyState(params, tuple(memory))

    def keep(self, mask: Tensor) -> "PolicyState":
        """Only the episodes in mask (B,)."""
        params, *memory = (value[mask] for value in self.tensors)
        return PolicyState(params, tuple(memory))


class Rule(Protocol):
    """What turns gradients into policies and actions."""

    def init(self, params: Tensor) -> PolicyState:
        """The state of episodes that begin with these parameters (B, P)."""

    def step(self, state: PolicyState, gradient: Gradient) -> tuple[PolicyState, Tensor]:
        """The state after one update, and the gradients' norms (B,); `state` stays as it is."""

    def act(
        self, state: PolicyState, base: Tensor, action: Tensor, base_action: Tensor
    ) -> tuple[PolicyState, Tensor, Tensor]:
        """The state to go on with, the action (B, A) to execute, and how far (B,) `action` was from the base policy's.

        base: the base policy's parameters (B, P).   action, base_action: (B, A) of the adapted and the base policy.
        """


@dataclass(frozen=True)
class Bound:
    """The default: steps of a given size in actions, and actions that stay near the base policy's.

    The step size is that at which, to first order, the return gains what all imagined actions would gain by moving
    `action_step` along its slope: no scale of returns or networks enters (`kernels.update.bound_step`). Where the
    action would be further than `max_deviation` from the base policy's, the change of the action and of the policy are
    shortened to that: so far the data went and stayed, and show what comes of it (`measure.deviation`).
    It remembers how far the actions follow the parameters, a mean over the episode.
    """

    action_step: float
    max_deviation: float

    def init(self, params: Tensor) -> PolicyState:
        return PolicyState(params, (params.new_zeros(len(params), 2),))

    def step(self, state: PolicyState, gradient: Gradient) -> tuple[PolicyState, Tensor]:
        given = state.params, gradient.grads, gradient.partial_sq_norms, gradient.action_grads, *state.memory
        params, norm, memory = bound_step(*given, self.action_step)
        return PolicyState(params, (memory,)), norm

    def act(
        self, state: PolicyState, base: Tensor, action: Tensor, base_action: Tensor
    ) -> tuple[PolicyState, Tensor, Tensor]:
        params, action, deviation = pull_back(state.params, base, action, base_action, self.max_deviation)
        return replace(state, params=params), action, deviation


@dataclass(frozen=True)
class SGD:
    """Gradient ascent with a constant step size, as in the paper (Algorithm 1); actions are not clipped."""

    lr: float

    def init(self, params: Tensor) -> PolicyState:
        return PolicyState(params)

    def step(self, state: PolicyState, gradient: Gradient) -> tuple[PolicyState, Tensor]:
        params, norm = sgd_step(state.params, gradient.grads, gradient.partial_sq_norms, self.lr)
        return replace(state, params=params), norm

    def act(
        self, state: PolicyState, base: Tensor, action: Tensor, base_action: Tensor
    ) -> tuple[PolicyState, Tensor, Tensor]:
        return state, action, (action - base_action).square().mean(1).sqrt()


@dataclass(frozen=True)
class Adam(SGD):
    """Adam in the place of plain ascent; every episode counts its own steps."""

    def init(self, params: Tensor) -> PolicyState:
        moments = torch.zeros_like(params), torch.zeros_like(params)
        return PolicyState(params, (*moments, torch.zeros_like(params[:, 0])))

    def step(self, state: PolicyState, gradient: Gradient) -> tuple[PolicyState, Tensor]:
        params, *memory = adam_step(state.params, gradient.grads, *state.memory, self.lr)
        return PolicyState(params, tuple(memory)), gradient.partial_sq_norms.sum(1).sqrt_()


def make_rule(config: ITPOConfig) -> Rule:
    """The rule that the settings name.   config.max_deviation: a number where the rule is the bound."""
    if config.optimiser == "bound":
        return Bound(config.action_step, config.max_deviation)
    return {"sgd": SGD, "adam": Adam}[config.optimiser](config.inner_lr)
