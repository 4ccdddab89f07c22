"""Frozen networks with one output: packed once, then evaluated and differentiated with respect to the input."""

import torch
from torch import Tensor

from fastdwm_kernels.checks import (
    check_choice,
    check_precision,
    check_range,
    check_tensor,
    operands,
    refuse_second_order,
)
from fastdwm_kernels.frozen_mlp.reference import (
    FrozenMLP,
    frozen_mlp_backward_reference,
    frozen_mlp_forward_reference,
)
from fastdwm_kernels.launch import PRECISIONS
from fastdwm_kernels.layout import MLPLayout, Params


def pack_frozen_mlp(
    params: Params, *, activation: str = "relu", reduce: str = "first", precision: str = "ieee"
) -> FrozenMLP:
    """Copy one or several networks into the form that `frozen_mlp` reads.

    params: w0 (d_in, d_out), b0 (d_out,), ... of one network or (Q, ...) of several, all with scale{i}, shift{i} of a
    layer norm after the activation or all without; one output; fp32, on the CPU also fp64.
    activation: of the hidden layers, "relu" or "tanh".
    reduce: "min", "mean" or "first" of the copies.   precision: of the operands, "fp16" (on a GPU) or "ieee".
    Raises ValueError on wrong shapes or names, weights beyond the range of fp16, or sizes beyond those of the kernels
    (hidden widths <= 512, d_in <= 256); TypeError on a wrong dtype.
    """
    check_choice("reduce", reduce, ("min", "mean", "first"))
    first = params["w0"]
    check_choice("precision", precision, PRECISIONS)
    if first.dim() == 2:
        params = {name: value.unsqueeze(0) for name, value in params.items()}
    layout = layout_of(params, activation)
    dtype = torch.float64 if first.dtype == torch.float64 and not first.is_cuda else torch.float32
    for name, value in params.items():
        if value.dtype != dtype:
            raise TypeError(f"params[{name}]: expected {dtype}, got {value.dtype}")
    flat = layout.pack({name: value.detach() for name, value in params.items()})
    return FrozenMLP(layout, reduce, precision, flat, operands("params", flat, precision))


def layout_of(params: Params, activation: str) -> MLPLayout:
    """The layout of networks w0 (Q, d_in, d_out), ...; raises ValueError unless the operators support it."""
    layout = MLPLayout.of(params, activation)
    if layout.sizes[-1] != 1 or len(layout.sizes) < 3:
        raise ValueError(f"params: expected hidden layers and one output, got widths {layout.sizes}")
    if params["w0"].is_cuda:
        check_range("input size", layout.sizes[0], 1, 256)
        check_range("hidden width", max(layout.sizes[1:-1]), 1, 512)
    return layout


def frozen_mlp(mlp: FrozenMLP, x: Tensor) -> Tensor:
    """Value of each input, reduced over the copies by `mlp.reduce`.

    x: (..., d_in) in the dtype and on the device of `mlp`, contiguous.
    Returns (...), newly allocated. x gets a first-order gradient, for "min" through the smallest copy; the networks get
    none.
    Raises ValueError on a wrong shape, stride, device or precision, TypeError on a wrong dtype, NotImplementedError
    when asked for second-order gradients.
    """
    check_precision(mlp.precision, x.is_cuda)
    d_in = mlp.layout.sizes[0]
    check_tensor("x", x, (*x.shape[:-1], d_in), mlp.flat.dtype, mlp.flat.device)
    return FrozenMLPFunction.apply(x.view(-1, d_in), mlp).view(x.shape[:-1])


class FrozenMLPFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, mlp: FrozenMLP) -> Tensor:
        ctx.mlp = mlp
        if not x.is_cuda:
            value, ctx.saved = frozen_mlp_forward_reference(mlp, x)
            return value
        from fastdwm_kernels.frozen_mlp.kernel import frozen_mlp_fwd

        values, a = frozen_mlp_fwd(mlp, x, ctx.needs_input_grad[0])
        ctx.saved = values, a
        if mlp.reduce == "min":
            return values.amin(0)
        return values[0] if len(values) == 1 else values.mean(0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_order("frozen_mlp")
        if not grad.is_cuda:
            return frozen_mlp_backward_reference(ctx.mlp, ctx.saved, grad), None
        from fastdwm_kernels.frozen_mlp.kernel import frozen_mlp_bwd

        return frozen_mlp_bwd(ctx.mlp, *ctx.saved, grad.contiguous()), None
