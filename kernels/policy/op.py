"""The policies of all episodes, each on its own particles."""

import torch
from torch import Tensor

from fastdwm_kernels.checks import check_precision, check_range, check_tensor, cpu_kernels, refuse_second_order
from fastdwm_kernels.launch import operand_dtype
from fastdwm_kernels.layout import MLPLayout
from fastdwm_kernels.policy.reference import (
    policy_backward_reference,
    policy_forward_reference,
    policy_weight_grads_reference,
)


def policy(layout: MLPLayout, flat: Tensor, x: Tensor, precision: str = "ieee") -> Tensor:
    """Actions in [-1, 1] of B policies, each on its own M observations.

    layout: names the hidden layers' activation and the output function, too.
    flat: (B, layout.width) parameters, fp32 (on the CPU also fp64), contiguous: `MLPLayout.of(params).pack(params)`.
    x: (B, M, S) of the same dtype, contiguous.   precision: of the operands, "fp16" (on a GPU) or "ieee".
    Returns (B, M, A), newly allocated. flat and x get first-order gradients, computed only if needed.
    Raises ValueError on a wrong shape, stride, device, precision or size (kernels: S <= 128, A <= 32, hidden widths
    <= 512), TypeError on a wrong dtype, NotImplementedError when asked for second-order gradients.
    """
    check_layout(layout, x.is_cuda)
    dtype = torch.float64 if x.dtype == torch.float64 and not x.is_cuda else torch.float32
    check_tensor("x", x, (None, None, layout.sizes[0]), dtype)
    check_tensor("flat", flat, (x.shape[0], layout.width), dtype, x.device)
    check_precision(precision, x.is_cuda)
    differentiated = torch.is_grad_enabled() and (flat.requires_grad or x.requires_grad)
    if not x.is_cuda and x.dtype == torch.float32 and not differentiated:
        if (cpu := cpu_kernels("policy")) is not None:
            return cpu.act(layout, flat, x)
    return PolicyFunction.apply(flat, x, layout, precision)


def check_layout(layout: MLPLayout, on_gpu: bool) -> None:
    """Raise ValueError unless the operator supports policies of this layout on the device."""
    if layout.layer_norm or len(layout.sizes) < 3:
        raise ValueError(f"layout: expected hidden layers without layer norm, got {layout}")
    if on_gpu:
        check_range("observation size", layout.sizes[0], 1, 128)
        check_range("hidden width", max(layout.sizes[1:-1]), 1, 512)
        check_range("action size", layout.sizes[-1], 1, 32)


class PolicyFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, flat: Tensor, x: Tensor, layout: MLPLayout, precision: str) -> Tensor:
        ctx.layout, ctx.precision = layout, precision
        weights = flat
        if x.is_cuda:
            from fastdwm_kernels.policy.kernel import policy_fwd

            weights = flat.to(operand_dtype(precision))
            action, *hidden = policy_fwd(layout, weights, flat, x, precision)
        else:
            action, hidden = policy_forward_reference(layout, layout.views(flat), x)
        ctx.save_for_backward(weights, x, action, *hidden)
        return action

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order("policy")
        need_dflat, need_dx = ctx.needs_input_grad[:2]
        weights, x, action, *hidden = ctx.saved_tensors
        layout, grad, dflat = ctx.layout, grad.contiguous(), None
        if x.is_cuda:
            from fastdwm_kernels.policy.kernel import policy_bwd
            from fastdwm_kernels.policy.weight_kernel import policy_weight_bwd

            dx, dz, dz_out = policy_bwd(layout, weights, hidden[0], action, grad, ctx.precision)
            if need_dflat:
                dflat, _ = policy_weight_bwd(layout, x, hidden[0], dz, dz_out, ctx.precision)
        else:
            dx, dz = policy_backward_reference(layout, layout.views(weights), hidden, action, grad, need_dx)
            if need_dflat:
                dflat = layout.pack(policy_weight_grads_reference(x, hidden, dz))
        return dflat, dx if need_dx else None, None, None
