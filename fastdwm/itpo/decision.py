"""Inference-time policy optimisation, [ITPO] v1 Algorithm 1: one decision, for B episodes at once.

Every episode owns a copy of the policy; a sum over episodes has each copy's own gradient, so one backward pass adapts
them all. Whatever goes wrong in one episode is undone in that episode alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.itpo.adapted import Adapted
from fastdwm.itpo.guard import Guarded, hold, learn
from fastdwm.itpo.objective import Objective
from fastdwm.itpo.steps import Step, take_step
from fastdwm.itpo.trust import interrupted, settings_of
from fastdwm.kernels.trust import Weights, weigh
from fastdwm.models.policy import Policy

BACKTRACK_HALVINGS = 10
"""an update that leaves the trust region even at 2^-10 of its length is dropped"""


@dataclass(frozen=True)
class Decision:
    """What one decision did, per episode (B,): the action (B, A), J and the gradient norm at the first inner step,
    the share of the last update that survived the trust region and the held-out check, the inner steps that were taken
    (float), whether they were discarded, and what the guard did."""

    action: Tensor
    objective: Tensor
    grad_norm: Tensor
    update_scale: Tensor
    inner_steps: Tensor
    discarded: Tensor
    guarded: Guarded


@dataclass(frozen=True)
class Proposal:
    """What a decision would do, before anything is undone.

    start, state: before and after it.   action: (B, A).   base_action: where it was needed, else none.
    first: the first inner step, none without one.   finite: (B,), of the others.   scale: (B,), none for 1.
    guarded: none without a guard.
    """

    start: Adapted
    state: Adapted
    action: Tensor
    base_action: Tensor | None
    first: Step | None
    finite: Tensor | None
    scale: Tensor | None
    n_steps: int
    guarded: Guarded | None


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
    base_action: Tensor | None,
    weights: Weights | None,
    objective: Objective,
    obs: Tensor,
    noise: Tensor,
    held_out: Tensor | None,
    action: Tensor | None,
    config: ITPOConfig,
) -> tuple[Step, Tensor | None]:
    """One policy update, and per episode the share of it that was kept, none for all of it.

    base_action: (B, A), which an anchor needs.   weights: as in `take_step`.
    noise, held_out: (H, K, B, M, S), one bank of those in `decide`.   action: (B, A) that the decision started from,
    for the trust region.   Everything else as in `decide`.
    """
    taken, scale = take_step(state, base_action, weights, objective, obs, noise, config), None
    proposal = taken.state
    if config.trust_region is not None:
        params, scale = shorten(policy, state.params, proposal.params, obs, action, config.trust_region)
        proposal = replace(proposal, params=params)
    if held_out is not None:
        better = objective.value(proposal.params, obs, held_out) >= objective.value(state.params, obs, held_out)
        scale = torch.where(better, torch.ones_like(obs[:, 0]) if scale is None else scale, 0)
        proposal = proposal.where(better, state)
    return replace(taken, state=proposal), scale


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
    earned: Tensor | None = None,
) -> tuple[Adapted, Decision]:
    """Adapt the policies to their states by gradient steps on J, then act.

    state: adapted copies of `policy`.   base: the base policy's parameters (B, P).   obs: (B, S) raw units.
    noise: (E or 1, H, K, B, M, S), one bank for every inner step or one bank for all.
    held_out: (E, H, K, B, M', S), a bank for the acceptance test of every inner step; none: every update is kept.
    steps: 0, 1, .., one for each gradient step, ending early at a deadline; none: config.inner_steps of them.
    earned: (B,), reward of the action before, NaN or none where nobody said.
    An episode whose objective, gradient or action is not finite discards the whole decision's update: it keeps the
    parameters from before and executes the base policy's action.
    """
    found = propose(policy, state, base, objective, obs, noise, held_out, config, steps, earned)
    return settle(found, policy, base, obs)


def propose(
    policy: Policy,
    state: Adapted,
    base: Tensor,
    objective: Objective,
    obs: Tensor,
    noise: Tensor,
    held_out: Tensor | None,
    config: ITPOConfig,
    steps: Iterable[int] | None = None,
    earned: Tensor | None = None,
) -> Proposal:
    """What `decide` does, but for undoing; arguments as there."""
    start, first, finite, scale = state, None, None, None
    action = None if config.trust_region is None else policy.act(state.params, obs)
    learns = config.optimiser == "trust" and config.adapts
    base_action = policy.act(base, obs) if learns or config.anchor_coef else None
    weights = None
    if learns:
        settings, imagined = settings_of(config), noise.shape[1] + 1
        weights = weigh(state.evidence, settings, imagined, imagined * base_action.shape[1])
    n_steps = 0
    for i in range(config.inner_steps) if steps is None else steps:
        n_steps += 1
        banks = noise[i % len(noise)], None if held_out is None else held_out[i]
        taken, scale = inner_step(policy, state, base_action, weights, objective, obs, *banks, action, config)
        state = taken.state
        if first is None:
            first = taken
        else:
            finite = is_finite(taken) if finite is None else finite & is_finite(taken)
    action, guarded = policy.act(state.params, obs), None
    if weights is not None:
        action, guarded = hold(action, base_action, weights.trust, state.evidence, settings)
        evidence = learn(state.evidence, first, objective, obs, action, base_action, settings, earned)
        state = replace(state, evidence=evidence)
    return Proposal(start, state, action, base_action, first, finite, scale, n_steps, guarded)


def is_finite(step: Step) -> Tensor:
    """Whether its objective and its gradient are, (B,)."""
    # Three launches where `isfinite` of both has nine.
    return step.found.returns.abs().maximum(step.norm) < torch.inf


def settle(found: Proposal, policy: Policy, base: Tensor, obs: Tensor) -> tuple[Adapted, Decision]:
    """The decision, undone in the episodes where something is not finite; arguments as in `decide`."""
    start, state, action, first = found.start, found.state, found.action, found.first
    # NaN is the largest. One comparison of all: each costs more than what it computes.
    largest = action.abs().amax(1)
    if first is not None:
        largest = largest.maximum(first.found.returns.abs()).maximum(first.norm)
    finite = largest < torch.inf
    if found.finite is not None:
        finite = finite & found.finite
    # On a GPU a copy of the parameters costs less than the synchronisation that would tell whether it is needed.
    if obs.is_cuda or not finite.all():
        other = policy.act(base, obs) if found.base_action is None else found.base_action
        action = torch.where(finite.unsqueeze(1), action, other)
        state = state.where(finite, replace(start, evidence=interrupted(start.evidence)))
    taken, scale = torch.full_like(obs[:, 0], found.n_steps), found.scale
    if first is None:
        *seen, scale = (torch.full_like(taken, torch.nan) for _ in range(3))
    else:
        seen, scale = (first.found.returns, first.norm), torch.ones_like(taken) if scale is None else scale
    guarded = found.guarded or Guarded.not_at_all(taken)
    return state, Decision(action, *seen, scale, taken, ~finite, guarded)
