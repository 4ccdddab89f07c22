"""Inference-time policy optimisation, [ITPO] v1 Algorithm 1: one decision, for B episodes at once.

Every episode owns a copy of the policy; a sum over episodes has each copy's own gradient, so one backward pass adapts
them all. Whatever goes wrong in one episode is undone in that episode alone.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.nets import Params, map_params
from fastdwm.rebrac import policy
from fastdwm.rollout import World, imagined_return

BACKTRACK_HALVINGS = 10
"""an update that leaves the trust region even at 2^-10 of its length is dropped"""


@dataclass(frozen=True)
class Adapted:
    """State of the adapted policies: parameters (B, ...) and, for Adam, moments (B, ...) and update counts (B,)."""

    params: Params
    first: Params
    second: Params
    count: Tensor

    @classmethod
    def start(cls, base: Params) -> "Adapted":
        """Unadapted policies with the parameters `base` (B, ...)."""
        zeros = map_params(torch.zeros_like, base)
        return cls(base, zeros, zeros, torch.zeros_like(base["b0"][:, 0]))

    def where(self, mask: Tensor, other: "Adapted") -> "Adapted":
        """This state for the episodes in mask (B,), `other` for the rest."""

        def pick(a: Params, b: Params) -> Params:
            return {name: torch.where(per_episode(mask, a[name]), a[name], b[name]) for name in a}

        count = torch.where(mask, self.count, other.count)
        return Adapted(
            pick(self.params, other.params), pick(self.first, other.first), pick(self.second, other.second), count
        )

    def keep(self, mask: Tensor) -> "Adapted":
        """Only the episodes in mask (B,)."""
        trees = (map_params(lambda value: value[mask], tree) for tree in (self.params, self.first, self.second))
        return Adapted(*trees, self.count[mask])


@dataclass(frozen=True)
class Decision:
    """What one decision did, per episode (B,): the action (B, A), J and the gradient norm at the first inner step,
    the share of the last update that survived the trust region and the held-out check, and whether it was discarded."""

    action: Tensor
    objective: Tensor
    grad_norm: Tensor
    update_scale: Tensor
    discarded: Tensor


def per_episode(values: Tensor, like: Tensor) -> Tensor:
    """View (B,) as (B, 1, ...) to broadcast against `like` (B, ...)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def global_norm(params: Params) -> Tensor:
    """Euclidean norm (B,) of each episode's parameters."""
    return torch.stack([value.flatten(1).square().sum(1) for value in params.values()]).sum(0).sqrt()


def act(params: Params, obs: Tensor) -> Tensor:
    """Actions (B, A) of B policies in their own states (B, S)."""
    return policy(params, obs.unsqueeze(1)).squeeze(1)


def gradient(
    params: Params, base: Params, world: World, obs: Tensor, noise: Tensor, config: ITPOConfig
) -> tuple[Tensor, Params]:
    """J (B,) and its gradient with respect to each episode's parameters (B, ...)."""
    leaves = {name: value.detach().requires_grad_(True) for name, value in params.items()}
    with torch.enable_grad():
        objective = imagined_return(leaves, base, world, obs, noise, config)
        grads = torch.autograd.grad(objective.sum(), list(leaves.values()))
    return objective.detach(), dict(zip(leaves, grads, strict=True))


def ascend(state: Adapted, grads: Params, config: ITPOConfig) -> Adapted:
    """The state after one full step of the optimiser along the gradient: SGD without momentum, or Adam."""
    if config.optimiser == "sgd":
        return replace(state, params={k: value + config.inner_lr * grads[k] for k, value in state.params.items()})
    count = state.count + 1
    first = {name: value.lerp(grads[name], 0.1) for name, value in state.first.items()}
    second = {name: value.lerp(grads[name].square(), 0.001) for name, value in state.second.items()}
    params = {}
    for name, value in state.params.items():
        t = per_episode(count, value)
        root = (second[name] / (1 - 0.999**t)).sqrt() + 1e-8
        params[name] = value + config.inner_lr * first[name] / (1 - 0.9**t) / root
    return Adapted(params, first, second, count)


def shorten(before: Params, after: Params, obs: Tensor, bound: float) -> tuple[Params, Tensor]:
    """Halve each episode's update until no coordinate of its current action moves by more than `bound`.

    Returns the parameters and the remaining share (B,) of the update: 1, 1/2, ..., 2^-10, or 0 if even that is too far.
    """
    action = act(before, obs)
    scale = torch.ones_like(obs[:, 0])
    for _ in range(BACKTRACK_HALVINGS + 1):
        params = interpolate(before, after, scale)
        far = (act(params, obs) - action).abs().amax(1) > bound
        if not far.any():
            return params, scale
        scale = torch.where(far, scale / 2, scale)
    scale = torch.where(far, 0, scale)
    return interpolate(before, after, scale), scale


def interpolate(before: Params, after: Params, share: Tensor) -> Params:
    """Each episode's point at `share` (B,) of the way; exact at 0 and 1."""
    return {name: before[name].lerp(after[name], per_episode(share, after[name])) for name in before}


def decide(
    state: Adapted, base: Params, world: World, obs: Tensor, noise: Tensor, held_out: Tensor, config: ITPOConfig
) -> tuple[Adapted, Decision]:
    """Adapt the policies to their states by `inner_steps` gradient steps on J, then act.

    state: adapted policies.   base: the base policy's parameters (B, ...).   obs: (B, S) raw units.
    noise: (E or 1, H, K, B, M, S), one bank for every inner step or one bank for all.
    held_out: (H, K, B, M', S), for the acceptance test; M' = 0 keeps every update.
    An episode whose objective, gradient or action is not finite discards the whole decision's update: it keeps the
    parameters from before and executes the base policy's action.
    """
    start = state
    first_objective = first_norm = None
    scale = torch.ones_like(obs[:, 0])
    finite = torch.ones_like(scale, dtype=torch.bool)
    for i in range(config.inner_steps):
        objective, grads = gradient(state.params, base, world, obs, noise[i % len(noise)], config)
        norm = global_norm(grads)
        finite &= objective.isfinite() & norm.isfinite()
        if i == 0:
            first_objective, first_norm = objective, norm
        if config.grad_clip is not None:
            factor = (config.grad_clip / norm.clamp(min=1e-12)).clamp(max=1)
            grads = {name: value * per_episode(factor, value) for name, value in grads.items()}
        proposal = ascend(state, grads, config)
        if config.trust_region is not None:
            params, scale = shorten(state.params, proposal.params, obs, config.trust_region)
            proposal = replace(proposal, params=params)
        if held_out.shape[3]:
            with torch.no_grad():
                gain = imagined_return(proposal.params, base, world, obs, held_out, config)
                gain = gain - imagined_return(state.params, base, world, obs, held_out, config)
            scale = torch.where(gain >= 0, scale, 0)
            proposal = proposal.where(gain >= 0, state)
        state = proposal
    action = act(state.params, obs)
    finite &= action.isfinite().all(1)
    action = torch.where(finite.unsqueeze(1), action, act(base, obs))
    nan = torch.full_like(scale, torch.nan)
    none = first_objective is None
    return state.where(finite, start), Decision(
        action, nan if none else first_objective, nan if none else first_norm, scale, ~finite
    )
