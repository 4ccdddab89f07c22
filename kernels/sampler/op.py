"""The whole sampler as a differentiable operator."""

import torch
from torch import Tensor

from fastdwm_kernels.contract import check_tensor, refuse_second_order
from fastdwm_kernels.sampler.reference import sampler_backward_reference, sampler_reference
from fastdwm_kernels.sampler.weights import SamplerWeights


def sample(weights: SamplerWeights, obs: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    """y_0 from y_K = noise[0] by K reverse steps: one launch, and one more for the VJP.

    obs: (N, S), normalised.   action: (N, A).   noise: (K, N, S), standard normal.   All contiguous, in the weights'
    dtype (float32; float64 on the CPU for checks) and on their device.
    Returns (N, S), newly allocated; deterministic given the noise. Gradients flow to obs and action, first order only;
    noise and weights get none. Pre-activations (K, layers, N, D) are kept for the VJP only if a gradient is wanted.
    Raises ValueError on a wrong shape, stride or device, TypeError on a wrong dtype, NotImplementedError when asked for
    second-order gradients.
    Source: [ITPO] v1 section 3 with the corrected reverse step.
    """
    n_rows, dtype, device = obs.shape[0], weights.dtype, weights.device
    check_tensor("obs", obs, (n_rows, weights.obs_dim), dtype, device)
    check_tensor("action", action, (n_rows, weights.action_dim), dtype, device)
    check_tensor("noise", noise, (weights.steps, n_rows, weights.obs_dim), dtype, device)
    if torch.is_grad_enabled() and (obs.requires_grad or action.requires_grad):
        return SamplerFunction.apply(weights, obs, action, noise)
    with torch.no_grad():
        return _forward(weights)(weights, obs, action, noise, False)[0]


class SamplerFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weights, obs, action, noise):
        y, ctx.saved = _forward(weights)(weights, obs, action, noise, True)
        ctx.weights = weights
        return y

    @staticmethod
    def backward(ctx, dy):
        refuse_second_order("sampler")
        # Autograd may hand over an expanded gradient, which no caller of the operator controls.
        dobs, daction = _backward(ctx.weights)(ctx.weights, dy.contiguous(), ctx.saved)
        return None, dobs, daction, None


def on_compiled(weights: SamplerWeights) -> bool:
    """Whether the CPU kernels can take these weights."""
    return weights.device.type == "cpu" and weights.dtype == torch.float32 and weights.precision == "ieee"


def _forward(weights: SamplerWeights):
    if weights.device.type == "cuda":
        from fastdwm_kernels.sampler.kernel import sampler_fwd

        return sampler_fwd
    if on_compiled(weights):
        from fastdwm_kernels.sampler.compiled import sampler_compiled

        return sampler_compiled
    return sampler_reference


def _backward(weights: SamplerWeights):
    if weights.device.type == "cuda":
        from fastdwm_kernels.sampler.kernel import sampler_bwd

        return sampler_bwd
    if on_compiled(weights):
        from fastdwm_kernels.sampler.compiled import sampler_backward_compiled

        return sampler_backward_compiled
    return sampler_backward_reference
