"""Update rules: turn the gradient of the imagined return into policies, and limit the actions that they execute.

A rule has init (the state of new episodes), step (one policy update) and act (the action to execute). Their operators
exist in plain torch, compiled for a CPU, and as Triton kernels.
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
    """The adapted policies of B episodes: parameters (B, P) and the rule's memory, each tensor (B, ...)."""

    params: Tensor
    memory: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Parameters and memory."""
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
    """The interface of an update rule."""

    def init(self, params: Tensor) -> PolicyState:
        """The state of episodes that begin with these parameters (B, P)."""

    def step(self, state: PolicyState, gradient: Gradient) -> tuple[PolicyState, Tensor]:
        """The state after one update, and the gradients' norms (B,); `state` stays as it is."""

    def act(
        self, state: PolicyState, base: Tensor, action: Tensor, base_action: Tensor
    ) -> tuple[PolicyState, Tensor, Tensor]:
        """The state to keep, the action (B, A) to execute, and the deviation (B,) of `action` from the base policy's.

        base: the base policy's parameters (B, P).   action, base_action: (B, A) of the adapted and the base policy.
        """


@dataclass(frozen=True)
class Bound:
    """The default rule: steps of a given size in actions, and actions that stay near the base policy's.

    The step size makes the return gain, to first order, as much as if all imagined actions moved by `action_step` along
    its gradient, so it does not depend on the scale of returns or networks (`kernels.update.bound_step`). If the action
    deviates from the base policy's by more than `max_deviation`, the changes of the action and of the policy are scaled
    down to that. The data contain such deviations and their consequences (`measure.deviation`).
    The memory is the mean over the episode of how far the actions follow the parameters, and the number of steps.
    """

    action_step: float
    max_deviation: float

    def init(self, params: Tensor) -> PolicyState:
        return PolicyState(params, (params.new_zeros(len(params), 2),))

    def step(self, state: PolicyState, gradient: Gradient) -> tuple[PolicyState, Tensor]:
        args = state.params, gradient.grads, gradient.partial_sq_norms, gradient.action_grads, *state.memory
        params, norm, memory = bound_step(*args, self.action_step)
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
    """Gradient ascent by Adam; every episode counts its own steps."""

    def init(self, params: Tensor) -> PolicyState:
        moments = torch.zeros_like(params), torch.zeros_like(params)
        return PolicyState(params, (*moments, torch.zeros_like(params[:, 0])))

    def step(self, state: PolicyState, gradient: Gradient) -> tuple[PolicyState, Tensor]:
        params, *memory = adam_step(state.params, gradient.grads, *state.memory, self.lr)
        return PolicyState(params, tuple(memory)), gradient.partial_sq_norms.sum(1).sqrt_()


def make_rule(config: ITPOConfig) -> Rule:
    """The rule that the settings name; `bound` needs a number in config.max_deviation."""
    if config.optimiser == "bound":
        return Bound(config.action_step, config.max_deviation)
    return {"sgd": SGD, "adam": Adam}[config.optimiser](config.inner_lr)
