"""A world model's sampler, and one step of it, as differentiable operators."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastdwm_kernels.checks import check_precision, check_range, check_tensor, refuse_second_order
from fastdwm_kernels.sampler.reference import sampler_backward_reference, sampler_reference
from fastdwm_kernels.sampler.weights import SamplerWeights


def sample(weights: SamplerWeights, obs: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    """y_0 from y_K = noise[0] by K reverse steps; on a GPU one launch, and one more for the VJP.

    obs: (N, S), normalised.   action: (N, A).   noise: (K, N, S), standard normal.   All contiguous, in the weights'
    dtype (float32; float64 on the CPU for checks) and on their device.
    Returns (N, S), newly allocated, deterministic given the noise. obs and action get first-order gradients, noise and
    weights none. Pre-activations (K, layers, N, D) are saved only if a gradient is needed.
    Raises ValueError on a wrong shape, stride, device or precision, TypeError on a wrong dtype, NotImplementedError
    when asked for second-order gradients.
    Source: [ITPO] v1 section 3 with the corrected reverse step.
    """
    n_rows, dtype, device = obs.shape[0], weights.dtype, weights.device
    check_tensor("obs", obs, (n_rows, weights.obs_dim), dtype, device)
    check_tensor("action", action, (n_rows, weights.action_dim), dtype, device)
    check_tensor("noise", noise, (weights.steps, n_rows, weights.obs_dim), dtype, device)
    check_precision(weights.precision, obs.is_cuda)
    return _apply(weights, obs, action, noise.detach())


def reverse_step(weights: SamplerWeights, index: int, y: Tensor, obs: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    """y_{k-1} = c_y y + c_out net(y, k, obs, action) + sigma noise for k = index + 1: a sampler of one step.

    y, obs, noise: (N, S), obs normalised.   action: (N, A).   All contiguous, in the weights' dtype (float32; float64
    on the CPU for checks) and on their device.   index: 0..K - 1.
    Returns (N, S), newly allocated. y, obs and action get first-order gradients, noise and weights none.
    Raises ValueError on a wrong shape, stride, device, precision or index, TypeError on a wrong dtype,
    NotImplementedError when asked for second-order gradients.
    Source: [ITPO] v1 section 3 with the corrected reverse step.
    """
    check_range("index", index, 0, weights.steps - 1)
    n_rows, dtype, device = y.shape[0], weights.dtype, weights.device
    for name, value in (("y", y), ("obs", obs), ("noise", noise)):
        check_tensor(name, value, (n_rows, weights.obs_dim), dtype, device)
    check_tensor("action", action, (n_rows, weights.action_dim), dtype, device)
    check_precision(weights.precision, y.is_cuda)
    out, sigma = _apply(weights.single_steps[index], obs, action, y.unsqueeze(0)), weights.affine[index][2]
    # The kernels add no noise in the last step, which here is the only one.
    return torch.add(out, noise.detach(), alpha=sigma) if sigma else out


def _apply(weights: SamplerWeights, obs: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    if torch.is_grad_enabled() and any(value.requires_grad for value in (obs, action, noise)):
        return SamplerFunction.apply(weights, obs, action, noise)
    with torch.no_grad():
        return _passes(weights)[0](weights, obs, action, noise, False)[0]


class SamplerFunction(torch.autograd.Function):
    """The sampler with gradients of obs and action, and of the noise if that is the start y of a single step."""

    @staticmethod
    def forward(ctx, weights, obs, action, noise):
        forward, ctx.vjp = _passes(weights)
        y, ctx.saved = forward(weights, obs, action, noise, True)
        ctx.weights = weights
        return y

    @staticmethod
    def backward(ctx, dy):
        refuse_second_order("sampler")
        # Autograd may pass an expanded gradient.
        dobs, daction, dstart = ctx.vjp(ctx.weights, dy.contiguous(), ctx.saved)
        return None, dobs, daction, dstart.unsqueeze(0) if ctx.needs_input_grad[3] else None


def has_cpu_kernels(weights: SamplerWeights) -> bool:
    """Whether the CPU kernels support these weights."""
    return weights.device.type == "cpu" and weights.dtype == torch.float32


def _passes(weights: SamplerWeights) -> tuple[Callable, Callable]:
    """Forward pass and VJP for the device and dtype of the weights."""
    if weights.device.type == "cuda":
        from fastdwm_kernels.sampler.kernel import sampler_bwd, sampler_fwd

        return sampler_fwd, sampler_bwd
    if has_cpu_kernels(weights):
        from fastdwm_kernels.sampler.cpu import sampler_backward_cpu, sampler_cpu

        return sampler_cpu, sampler_backward_cpu
    return sampler_reference, sampler_backward_reference
