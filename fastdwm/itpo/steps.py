"""The rules by which a gradient becomes a step: as far as the models are trusted, or by a step size in parameters."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.itpo.adapted import Adapted, ascend, lr_of
from fastdwm.itpo.objective import Objective
from fastdwm.kernels.rollout import Anchor, Gradient
from fastdwm.kernels.trust import Weights, clip
from fastdwm.kernels.update import bounded_step


@dataclass(frozen=True)
class Step:
    """One step of all policies, before anything is undone: their state after it, the gradient it followed and the norm
    (B,) of that."""

    state: Adapted
    found: Gradient
    norm: Tensor


def take_step(
    state: Adapted,
    base_action: Tensor | None,
    weights: Weights | None,
    objective: Objective,
    obs: Tensor,
    noise: Tensor,
    config: ITPOConfig,
) -> Step:
    """One step by the rule of the settings.

    base_action: (B, A) of the base policy in obs (B, S), which an anchor needs.   noise: (H, K, B, M, S).
    weights: what the evidence makes of this decision, for the rule of the trust.
    """
    if weights is not None:
        return trusted_step(state, base_action, weights, objective, obs, noise, config)
    weight = torch.full_like(obs[:, 0], config.anchor_coef) if config.anchor_coef else None
    found = objective.gradient(state.params, obs, noise, Anchor(base_action, weight) if config.anchor_coef else None)
    if found.squares is not None and config.optimiser == "sgd":
        given = state.params, found.grads, found.squares
        params, norm = bounded_step(*given, lr=lr_of(config), clip=config.grad_clip)
        return Step(replace(state, params=params), found, norm)
    norm = found.grads.norm(dim=1)
    factor = None if config.grad_clip is None else (config.grad_clip / norm.clamp(min=1e-12)).clamp(max=1)
    return Step(ascend(state, found.grads, factor, config), found, norm)


def trusted_step(
    state: Adapted,
    base_action: Tensor,
    weights: Weights,
    objective: Objective,
    obs: Tensor,
    noise: Tensor,
    config: ITPOConfig,
) -> Step:
    """As far along the gradient as the models are trusted; arguments as in `take_step`."""
    found = objective.gradient(state.params, obs, noise, Anchor(base_action, weights.anchor))
    if found.squares is not None:
        params, norm = bounded_step(state.params, found.grads, found.squares, weights.step, weights.bound)
        return Step(replace(state, params=params), found, norm)
    norm = found.grads.norm(dim=1)
    return Step(ascend(state, found.grads, clip(weights, norm), config), found, norm)
