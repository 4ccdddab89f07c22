"""Inference-time policy optimisation, [ITPO] v1 Algorithm 1: one decision, for B episodes at once.

Every episode owns a copy of the policy; a sum over episodes has each copy's own gradient, so one backward pass adapts
them all. Whatever goes wrong in one episode is undone in that episode alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.itpo.adapted import Adapted, ascend
from fastdwm.itpo.rollout import Score, imagined_return, require_plain
from fastdwm.models.nets import Params
from fastdwm.models.policy import Policy
from fastdwm.models.world import World

BACKTRACK_HALVINGS = 10
"""an update that leaves the trust region even at 2^-10 of its length is dropped"""


class Objective(Protocol):
    """The imagined return J and the way up it; B policies (B, P), obs (B, S), noise (H, K, B, M, S)."""

    def value(self, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
        """J (B,)."""

    def gradient(self, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """J (B,) and its gradient (B, P) with respect to each episode's parameters."""


@dataclass(frozen=True)
class ReferenceObjective:
    """`imagined_return`, differentiated by autograd: the truth that faster objectives are checked against."""

    policy: Policy
    world: World
    config: ITPOConfig
    score: Score | None = None

    def __post_init__(self) -> None:
        require_plain(self.config, self.score)

    @torch.no_grad()
    def value(self, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
        return self._return(self.policy.layout.views(params), base, obs, noise)

    @torch.enable_grad()
    def gradient(self, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        layout = self.policy.layout
        leaves = {name: value.detach().requires_grad_(True) for name, value in layout.views(params).items()}
        returns = self._return(leaves, base, obs, noise)
        grads = torch.autograd.grad(returns.sum(), list(leaves.values()), materialize_grads=True)
        return returns.detach(), layout.pack(dict(zip(leaves, grads, strict=True)))

    def _return(self, params: Params, base: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
        given = self.policy, params, self.world, obs, noise, self.config
        return imagined_return(*given, base=self.policy.layout.views(base), score=self.score)


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


def shorten(
    policy: Policy, before: Tensor, after: Tensor, obs: Tensor, action: Tensor, bound: float
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
        far = (policy.act(params, obs) - action).abs().amax(1) > bound
        # Only worth a synchronisation where there is none.
        if not obs.is_cuda and not far.any():
            return params, scale
        scale = torch.where(far, scale / 2, scale)
    scale = torch.where(far, 0, scale)
    return before.lerp(after, scale.unsqueeze(1)), scale


def inner_step(
    policy: Policy,
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
    scale = torch.ones_like(obs[:, 0])
    returns, grads = objective.gradient(state.params, base, obs, noise)
    norm = grads.norm(dim=1)
    factor = None if config.grad_clip is None else (config.grad_clip / norm.clamp(min=1e-12)).clamp(max=1)
    proposal = ascend(state, grads, factor, config)
    if config.trust_region is not None:
        params, scale = shorten(policy, state.params, proposal.params, obs, action, config.trust_region)
        proposal = replace(proposal, params=params)
    if held_out is not None:
        after = objective.value(proposal.params, base, obs, held_out)
        better = after >= objective.value(state.params, base, obs, held_out)
        scale = torch.where(better, scale, 0)
        proposal = proposal.where(better, state)
    return proposal, returns, norm, scale


def decide(
    policy: Policy,
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

    state: adapted copies of `policy`.   base: the base policy's parameters (B, P).   obs: (B, S) raw units.
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
    action = None if config.trust_region is None else policy.act(state.params, obs)
    n_steps = 0
    for i in range(config.inner_steps) if steps is None else steps:
        n_steps += 1
        banks = noise[i % len(noise)], None if held_out is None else held_out[i]
        state, returns, norm, scale = inner_step(policy, state, base, objective, obs, *banks, action, config)
        finite &= returns.isfinite() & norm.isfinite()
        if i == 0:
            first_return, first_norm = returns, norm
    action = policy.act(state.params, obs)
    finite &= action.isfinite().all(1)
    # On a GPU a copy of the parameters costs less than the synchronisation that would tell whether it is needed.
    if obs.is_cuda or not finite.all():
        action = torch.where(finite.unsqueeze(1), action, policy.act(base, obs))
        state = state.where(finite, start)
    return state, Decision(action, first_return, first_norm, scale, torch.full_like(scale, n_steps), ~finite)
