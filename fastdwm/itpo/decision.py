"""Inference-time policy optimisation, [ITPO] v1 Algorithm 1: one decision, for B episodes at once.

Every episode owns a copy of the policy; a sum over episodes has each copy's own gradient, so one backward pass adapts
them all. Whatever goes wrong in one episode is undone in that episode alone.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.itpo.rollout import World, imagined_return
from fastdwm.kernels.layout import Layout
from fastdwm.models.rebrac import policy

BACKTRACK_HALVINGS = 10
"""an update that leaves the trust region even at 2^-10 of its length is dropped"""


class Objective(Protocol):
    """The imagined return J and the way up it; B policies (B, P), obs (B, S), noise (H, K, B, M, S)."""

    def value(self, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
        """J (B,)."""

    def gradient(self, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """J (B,) and its gradient (B, P) with respect to each episode's parameters."""

    def ascend(self, state: "Adapted", grads: Tensor, factor: Tensor | None, config: ITPOConfig) -> "Adapted":
        """The state after one step of the optimiser along factor (B,) times the gradient (B, P); `state` stays."""


@dataclass(frozen=True)
class ReferenceObjective:
    """`imagined_return`, differentiated by autograd: the truth that faster objectives are checked against."""

    world: World
    layout: Layout
    config: ITPOConfig

    @torch.no_grad()
    def value(self, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
        views = self.layout.views(params), self.layout.views(base)
        return imagined_return(*views, self.world, obs, noise, self.config)

    @torch.enable_grad()
    def gradient(self, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        leaves = {name: value.detach().requires_grad_(True) for name, value in self.layout.views(params).items()}
        returns = imagined_return(leaves, self.layout.views(base), self.world, obs, noise, self.config)
        grads = torch.autograd.grad(returns.sum(), list(leaves.values()))
        return returns.detach(), self.layout.pack(dict(zip(leaves, grads, strict=True)))

    def ascend(self, state: "Adapted", grads: Tensor, factor: Tensor | None, config: ITPOConfig) -> "Adapted":
        return ascend(state, grads if factor is None else grads * factor.unsqueeze(1), config)


@dataclass(frozen=True)
class Adapted:
    """State of the adapted policies: one flat row of parameters for each episode, laid out by `layout`.

    params: (B, P).   first, second: Adam's moments (B, P), or (B, 0) with SGD.   count: Adam's updates (B,).
    """

    layout: Layout
    params: Tensor
    first: Tensor
    second: Tensor
    count: Tensor

    @classmethod
    def start(cls, layout: Layout, base: Tensor, config: ITPOConfig) -> "Adapted":
        """Unadapted policies with the parameters `base` (B, P)."""
        zeros = torch.zeros_like(base if config.optimiser == "adam" else base[:, :0])
        return cls(layout, base, zeros, zeros, torch.zeros_like(base[:, 0]))

    def where(self, mask: Tensor, other: "Adapted") -> "Adapted":
        """This state for the episodes in mask (B,), `other` for the rest."""
        column = mask.unsqueeze(1)
        return Adapted(
            self.layout,
            torch.where(column, self.params, other.params),
            torch.where(column, self.first, other.first),
            torch.where(column, self.second, other.second),
            torch.where(mask, self.count, other.count),
        )

    def keep(self, mask: Tensor) -> "Adapted":
        """Only the episodes in mask (B,)."""
        return Adapted(self.layout, self.params[mask], self.first[mask], self.second[mask], self.count[mask])


@dataclass(frozen=True)
class Decision:
    """What one decision did, per episode (B,): the action (B, A), J and the gradient norm at the first inner step,
    the share of the last update that survived the trust region and the held-out check, the inner steps that were taken
    (float), and whether they were discarded."""

    action: Tensor
    objective: Tensor
    grad_norm: Tensor
    update_scale: Tensor
    inner_steps: Tensor
    discarded: Tensor


def act(layout: Layout, params: Tensor, obs: Tensor) -> Tensor:
    """Actions (B, A) of B policies (B, P) in their own states (B, S)."""
    return policy(layout.views(params), obs.unsqueeze(1)).squeeze(1)


def ascend(state: Adapted, grads: Tensor, config: ITPOConfig) -> Adapted:
    """The state after one full step of the optimiser along the gradient (B, P): SGD without momentum, or Adam."""
    if config.optimiser == "sgd":
        return replace(state, params=state.params.add(grads, alpha=config.inner_lr))
    count = state.count + 1
    first, second = state.first.lerp(grads, 0.1), state.second.lerp(grads.square(), 0.001)
    t = count.unsqueeze(1)
    # -expm1(t log beta) is 1 - beta^t without the cancellation that costs float32 four digits at t = 1.
    share1, share2 = (-torch.expm1(t * math.log(beta)) for beta in (0.9, 0.999))
    params = state.params + config.inner_lr * (first / share1) / ((second / share2).sqrt() + 1e-8)
    return Adapted(state.layout, params, first, second, count)


def shorten(
    layout: Layout, before: Tensor, after: Tensor, obs: Tensor, action: Tensor, bound: float
) -> tuple[Tensor, Tensor]:
    """Halve each episode's update until no coordinate of its current action is further than `bound` from `action`.

    action: (B, A), what the decision started from; that of the parameters `before` (B, P) is no further from it.
    Returns the parameters (B, P) and the remaining share (B,) of the update: 1, 1/2, ..., 2^-10, or 0 if even that is
    too far.
    """
    scale = torch.ones_like(obs[:, 0])
    for _ in range(BACKTRACK_HALVINGS + 1):
        # lerp is exact at both ends: a whole update and none at all keep every bit.
        params = before.lerp(after, scale.unsqueeze(1))
        far = (act(layout, params, obs) - action).abs().amax(1) > bound
        # Only worth a synchronisation where there is none.
        if not obs.is_cuda and not far.any():
            return params, scale
        scale = torch.where(far, scale / 2, scale)
    scale = torch.where(far, 0, scale)
    return before.lerp(after, scale.unsqueeze(1)), scale


def inner_step(
    state: Adapted,
    base: Tensor,
    objective: Objective,
    obs: Tensor,
    noise: Tensor,
    held_out: Tensor | None,
    action: Tensor | None,
    config: ITPOConfig,
) -> tuple[Adapted, Tensor, Tensor, Tensor]:
    """One policy update; returns the new state, and per episode J and the gradient norm before it, and the share kept.

    noise, held_out: (H, K, B, M, S), one bank of those in `decide`.   action: (B, A) that the decision started from,
    for the trust region.   Everything else as in `decide`.
    """
    layout, scale = state.layout, torch.ones_like(obs[:, 0])
    returns, grads = objective.gradient(state.params, base, obs, noise)
    norm = grads.norm(dim=1)
    factor = None if config.grad_clip is None else (config.grad_clip / norm.clamp(min=1e-12)).clamp(max=1)
    proposal = objective.ascend(state, grads, factor, config)
    if config.trust_region is not None:
        params, scale = shorten(layout, state.params, proposal.params, obs, action, config.trust_region)
        proposal = replace(proposal, params=params)
    if held_out is not None:
        after = objective.value(proposal.params, base, obs, held_out)
        better = after >= objective.value(state.params, base, obs, held_out)
        scale = torch.where(better, scale, 0)
        proposal = proposal.where(better, state)
    return proposal, returns, norm, scale


def decide(
    state: Adapted,
    base: Tensor,
    objective: Objective,
    obs: Tensor,
    noise: Tensor,
    held_out: Tensor | None,
    config: ITPOConfig,
    steps: Iterable[int] | None = None,
) -> tuple[Adapted, Decision]:
    """Adapt the policies to their states by gradient steps on J, then act.

    state: adapted policies.   base: the base policy's parameters (B, P).   obs: (B, S) raw units.
    noise: (E or 1, H, K, B, M, S), one bank for every inner step or one bank for all.
    held_out: (E, H, K, B, M', S), a bank for the acceptance test of every inner step; none: every update is kept.
    steps: 0, 1, .., one for each gradient step, ending early at a deadline; none: config.inner_steps of them.
    An episode whose objective, gradient or action is not finite discards the whole decision's update: it keeps the
    parameters from before and executes the base policy's action.
    """
    start = state
    unknown = torch.full_like(obs[:, 0], torch.nan)
    first_return, first_norm, scale = unknown, unknown, torch.ones_like(unknown)
    finite = torch.ones_like(unknown, dtype=torch.bool)
    action = None if config.trust_region is None else act(state.layout, state.params, obs)
    n_steps = 0
    for i in range(config.inner_steps) if steps is None else steps:
        n_steps += 1
        banks = noise[i % len(noise)], None if held_out is None else held_out[i]
        state, returns, norm, scale = inner_step(state, base, objective, obs, *banks, action, config)
        finite &= returns.isfinite() & norm.isfinite()
        if i == 0:
            first_return, first_norm = returns, norm
    action = act(state.layout, state.params, obs)
    finite &= action.isfinite().all(1)
    # On a GPU a copy of the parameters costs less than the synchronisation that would tell whether it is needed.
    if obs.is_cuda or not finite.all():
        action = torch.where(finite.unsqueeze(1), action, act(state.layout, base, obs))
        state = state.where(finite, start)
    return state, Decision(action, first_return, first_norm, scale, torch.full_like(scale, n_steps), ~finite)
