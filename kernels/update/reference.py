"""One step of the policies' optimiser in torch: any dtype and device, and the CPU path.

All buffers are (B, P), one row per episode; every step is uphill along the gradient.
"""

import math

import torch
from torch import Tensor

BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8
LOG_BETA1, LOG_BETA2 = math.log(BETA1), math.log(BETA2)


@torch.no_grad()
def sgd_reference(params: Tensor, grads: Tensor, lr: float, factor: Tensor | None, mask: Tensor | None) -> None:
    """params += lr factor grads, in place; rows outside the mask (B,) keep every bit."""
    grads = _scaled(grads, factor)
    if mask is None:
        params.add_(grads, alpha=lr)
    else:
        params.copy_(_pick(mask, params.add(grads, alpha=lr), params))


@torch.no_grad()
def adam_reference(
    params: Tensor,
    grads: Tensor,
    first: Tensor,
    second: Tensor,
    count: Tensor,
    lr: float,
    factor: Tensor | None,
    mask: Tensor | None,
) -> None:
    """Adam without weight decay, in place on params, first, second (B, P) and count (B,).

    Deviation from the plain formula: 1 - beta^t is computed as -expm1(t log beta), since 1 - 0.999 in float32 is off
    by 5e-5.
    """
    grads = _scaled(grads, factor)
    t = (count + 1).unsqueeze(1)
    new_first = first.lerp(grads, 1 - BETA1)
    new_second = second.lerp(grads.square(), 1 - BETA2)
    share1, share2 = -torch.expm1(t * LOG_BETA1), -torch.expm1(t * LOG_BETA2)
    root = (new_second / share2).sqrt_().add_(ADAM_EPS)
    new = torch.addcdiv(params, new_first / share1, root, value=lr)
    params.copy_(_pick(mask, new, params))
    first.copy_(_pick(mask, new_first, first))
    second.copy_(_pick(mask, new_second, second))
    count.add_(1 if mask is None else mask)


def _scaled(grads: Tensor, factor: Tensor | None) -> Tensor:
    return grads if factor is None else grads * factor.unsqueeze(1)


def _pick(mask: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    """`new` for the episodes in the mask, `old` for the rest; NaN in one episode stays there."""
    return new if mask is None else torch.where(mask.unsqueeze(1), new, old)
