"""The optimiser steps of all episodes in torch, in any dtype and on any device.

All buffers are (B, P), one row per episode; every step ascends along the gradient.
"""

import math

import torch
from torch import Tensor

BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8
LOG_BETA1, LOG_BETA2 = math.log(BETA1), math.log(BETA2)


@torch.no_grad()
def bound_step_reference(
    params: Tensor, grads: Tensor, partial_sq_norms: Tensor, action_grads: Tensor, memory: Tensor, action_step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as in `op.bound_step`."""
    n_actions = len(action_grads) * action_grads.shape[3]
    rms, sq_norm = action_grads.square().mean((0, 2, 3)).sqrt(), partial_sq_norms.sum(1)
    gain, (mean, count) = sq_norm / rms.square(), memory.unbind(1)
    valid = gain.isfinite()
    count = torch.where(valid, count + 1, count)
    mean = torch.where(valid, mean + (gain - mean) / count, mean)
    factor = action_step * n_actions / (rms * mean)
    factor = torch.where(factor.isfinite(), factor, 0)
    return params + factor.unsqueeze(1) * grads, sq_norm.sqrt(), torch.stack([mean, count], 1)


@torch.no_grad()
def pull_back_reference(
    params: Tensor, base: Tensor, action: Tensor, base_action: Tensor, max_deviation: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as in `op.pull_back`."""
    change = action - base_action
    deviation = change.square().mean(1).sqrt()
    share = (max_deviation / deviation).unsqueeze(1)
    pulled = [torch.where(share < 1, b + share * (a - b), a) for a, b in ((params, base), (action, base_action))]
    return *pulled, deviation


@torch.no_grad()
def adam_reference(params: Tensor, grads: Tensor, first: Tensor, second: Tensor, count: Tensor, lr: float) -> None:
    """Adam without weight decay, in place on params, first, second (B, P) and count (B,).

    One episode at a time, for the temporaries of all episodes would leave the cache and cost ten times as much.
    Deviation from the plain formula: 1 - beta^t is computed as -expm1(t log beta), since 1 - 0.999 in float32 is off
    by 5e-5.
    """
    for i in range(len(params)):
        t = float(count[i]) + 1
        first[i].lerp_(grads[i], 1 - BETA1)
        second[i].mul_(BETA2).addcmul_(grads[i], grads[i], value=1 - BETA2)
        root = (second[i] / -math.expm1(t * LOG_BETA2)).sqrt_().add_(ADAM_EPS)
        params[i].addcdiv_(first[i], root, value=lr / -math.expm1(t * LOG_BETA1))
        count[i] = t
