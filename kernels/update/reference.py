"""One step of the policies' optimiser in torch: any dtype and device, and the CPU path.

All buffers are (B, P), one row per episode; every step is uphill along the gradient. One episode at a time: the
temporaries of all at once leave the cache, and cost ten times as much.
"""

import math

import torch
from torch import Tensor

BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8
LOG_BETA1, LOG_BETA2 = math.log(BETA1), math.log(BETA2)


@torch.no_grad()
def sgd_reference(params: Tensor, grads: Tensor, lr: float, factor: Tensor | None) -> None:
    """params += lr factor grads, in place."""
    for i in range(len(params)):
        params[i].add_(_scaled(grads, factor, i), alpha=lr)


@torch.no_grad()
def adam_reference(
    params: Tensor,
    grads: Tensor,
    first: Tensor,
    second: Tensor,
    count: Tensor,
    lr: float,
    factor: Tensor | None,
) -> None:
    """Adam without weight decay, in place on params, first, second (B, P) and count (B,).

    Deviation from the plain formula: 1 - beta^t is computed as -expm1(t log beta), since 1 - 0.999 in float32 is off
    by 5e-5.
    """
    for i in range(len(params)):
        grad = _scaled(grads, factor, i)
        t = float(count[i]) + 1
        first[i].lerp_(grad, 1 - BETA1)
        second[i].mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
        root = (second[i] / -math.expm1(t * LOG_BETA2)).sqrt_().add_(ADAM_EPS)
        params[i].addcdiv_(first[i], root, value=lr / -math.expm1(t * LOG_BETA1))
        count[i] = t


def bounded_step_reference(
    params: Tensor, grads: Tensor, squares: Tensor, step: Tensor | None, bound: Tensor | None, lr: float, clip: float
) -> tuple[Tensor, Tensor]:
    """Arguments as in `op.bounded_step`, with 0 for no clip."""
    norm = squares.sum(1).sqrt()
    if step is not None:
        factor = (step * (bound / norm).clamp(max=1)).nan_to_num(0, posinf=0, neginf=0)
    else:
        factor = lr * ((clip / norm.clamp(min=1e-12)).clamp(max=1) if clip > 0 else torch.ones_like(norm))
    return params + factor.unsqueeze(1) * grads, norm


def _scaled(grads: Tensor, factor: Tensor | None, i: int) -> Tensor:
    return grads[i] if factor is None else grads[i] * factor[i]
