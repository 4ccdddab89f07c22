"""One reverse-diffusion step as a differentiable operator."""

import torch
from torch import Tensor

from fastdwm_kernels.contract import check_range, check_tensor, refuse_second_order
from fastdwm_kernels.sampler.step_reference import reverse_step_backward_reference, reverse_step_reference
from fastdwm_kernels.sampler.weights import SamplerWeights


def reverse_step(weights: SamplerWeights, index: int, y: Tensor, obs: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    """y_{k-1} = c_y y + c_out net(y, k, obs, action) + sigma noise for k = index + 1, in one launch.

    y, obs, noise: (N, S), obs normalised.   action: (N, A).   All contiguous, in the weights' dtype (float32; float64
    on the CPU for checks) and on their device.   index: 0..K - 1.
    Returns (N, S), newly allocated. Gradients flow to y, obs and action, first order only; noise and weights get none.
    Raises ValueError on a wrong shape, stride, device or index, TypeError on a wrong dtype, NotImplementedError when
    asked for second-order gradients.
    Source: [ITPO] v1 section 3 with the corrected reverse step.
    """
    check_range("index", index, 0, weights.steps - 1)
    n_rows, dtype, device = y.shape[0], weights.dtype, weights.device
    for name, value in (("y", y), ("obs", obs), ("noise", noise)):
        check_tensor(name, value, (n_rows, weights.obs_dim), dtype, device)
    check_tensor("action", action, (n_rows, weights.action_dim), dtype, device)
    if torch.is_grad_enabled() and (y.requires_grad or obs.requires_grad or action.requires_grad):
        return ReverseStepFunction.apply(weights, index, y, obs, action, noise)
    with torch.no_grad():
        return _forward(weights)(weights, index, y, obs, action, noise, False)[0]


class ReverseStepFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights, index, y, obs, action, noise):
        out, ctx.saved = _forward(weights)(weights, index, y, obs, action, noise, True)
        ctx.weights, ctx.index = weights, index
        return out

    @staticmethod
    def backward(ctx, dout):
        refuse_second_order("reverse_step")
        # Autograd may hand over an expanded gradient, which no caller of the operator controls.
        dy, dobs, daction = _backward(ctx.weights)(ctx.weights, ctx.index, dout.contiguous(), ctx.saved)
        return None, None, dy, dobs, daction, None


def _forward(weights: SamplerWeights):
    if weights.device.type != "cuda":
        return reverse_step_reference
    from fastdwm_kernels.sampler.step_kernel import reverse_step_fwd

    return reverse_step_fwd


def _backward(weights: SamplerWeights):
    if weights.device.type != "cuda":
        return reverse_step_backward_reference
    from fastdwm_kernels.sampler.step_kernel import reverse_step_bwd

    return reverse_step_bwd
