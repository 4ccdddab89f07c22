"""Compiled MLPs for autograd: float32 on a CPU. The reference is autograd through the same network in plain torch."""

from typing import Any

import torch
from torch import Tensor

from fastdwm_kernels.checks import check_choice, check_tensor, cpu_kernels, refuse_second_order
from fastdwm_kernels.layout import MLPLayout, Params


class PackedParams(dict[str, Tensor]):
    """Parameters by name, as views of one buffer `flat` (Q, layout.width), which is autograd's leaf; update in place.

    Shapes are those of one network, or (Q, ...) of several.
    """

    def __init__(self, layout: MLPLayout, flat: Tensor, single: bool):
        self.layout, self.flat, self.single = layout, flat, single
        super().__init__(self.views(flat.detach()))

    def views(self, flat: Tensor) -> Params:
        """Views by name of a buffer in the parameters' layout, such as their gradient."""
        views = self.layout.views(flat)
        return {name: value[0] for name, value in views.items()} if self.single else views

    def clone(self) -> "PackedParams":
        """A copy in a buffer of its own, without gradients."""
        return PackedParams(self.layout, self.flat.detach().clone(), self.single)


def pack_params(params: Params) -> PackedParams | None:
    """A copy of an MLP's parameters w0 (d_in, d_out), b0 (d_out,), ... or (Q, ...), with scale{i}, shift{i} or without.

    None if the compiled passes do not support them: without numba, on another device, in another dtype, or for another
    kind of network or one without hidden layers.
    """
    if cpu_kernels("training") is None or any(
        value.device.type != "cpu" or value.dtype != torch.float32 for value in params.values()
    ):
        return None
    single = params["w0"].dim() == 2
    copies = {name: value.detach()[None] if single else value.detach() for name, value in params.items()}
    try:
        layout = MLPLayout.of(copies)
    except (KeyError, ValueError):
        return None
    return PackedParams(layout, layout.pack(copies), single) if len(layout.sizes) > 2 else None


def mlp(params: PackedParams, x: Tensor, activation: str) -> Tensor:
    """Output (N, d_out) of one network for x (N, d_in); or (Q, N, d_out) of several, for x (Q, N, d_in).

    activation: "relu", or "silu" without layer norm.   Only the parameters get gradients, of first order.
    Raises ValueError on a wrong shape or activation, TypeError on a wrong dtype, NotImplementedError if x requires
    gradients or second-order gradients are asked for.
    """
    rows = prepared(params, x, activation)
    if params.flat.requires_grad and torch.is_grad_enabled():
        y = MLPFunction.apply(params.layout, params.flat, rows, activation)
    else:
        y = cpu_kernels("training").evaluated(params.layout, params.flat, rows, activation)
    return y[0] if params.single else y


def mean_squared_error(
    params: PackedParams,
    x: Tensor,
    target: Tensor,
    activation: str,
    weights: Tensor | None = None,
    along: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over the copies of the mean of weights (y - target)^2; and y as in `mlp`, a constant for autograd.

    target: (N, d_out), or (Q, N, d_out), one for each copy.   weights: (N,), or None for ones.
    along: dx (n, d_in) and shares (2, n), for one network without layer norm. The target of the last n rows increases
    by shares[0] times the derivative of y along dx and shares[1] times y, both as constants for autograd.
    """
    rows, empty = prepared(params, x, activation), x.new_empty(0, 0)
    target = (target if target.dim() == 3 else target.unsqueeze(0)).contiguous()
    weights = empty.view(0) if weights is None else weights.contiguous()
    check_tensor("target", target, (None, rows.shape[1], params.layout.sizes[-1]), torch.float32)
    if target.shape[0] not in (1, params.flat.shape[0]):
        raise ValueError(f"target: expected one for all or {params.flat.shape[0]}, got {target.shape[0]}")
    dx, shares = None, empty
    if along is not None:
        if not params.single or params.layout.layer_norm:
            raise ValueError("along: expected one network without layer norm")
        dx, shares = prepared(params, along[0], activation), along[1].contiguous()
        check_tensor("shares", shares, (2, dx.shape[1]), torch.float32)
    loss, y = ErrorFunction.apply(params.layout, params.flat, rows, activation, target, weights, dx, shares)
    return loss, y[0] if params.single else y


@torch.no_grad()
def adam_step(optimiser: torch.optim.Adam, params: PackedParams, max_norm: float | None = None) -> float | None:
    """The optimiser's step on packed parameters, with the gradient clipped to `max_norm`; returns its norm before that.

    State and settings are the optimiser's own, without amsgrad and weight decay. Returns None without max_norm.
    """
    from fastdwm_kernels.training.cpu_adam import adam_step, gradient_norm

    flat, group = params.flat, optimiser.param_groups[0]
    state, (beta1, beta2) = optimiser.state[flat], group["betas"]
    if not state:
        moments = {name: torch.zeros_like(flat) for name in ("exp_avg", "exp_avg_sq")}
        optimiser.state[flat] = state = {"step": torch.tensor(0.0), **moments}
    state["step"] += 1
    n, norm, factor = float(state["step"]), None, 1.0
    if max_norm is not None:
        norm = gradient_norm(flat.grad)
        # Written so that NaN stays.
        factor = 1.0 if norm + 1e-6 <= max_norm else max_norm / (norm + 1e-6)
    scalars = 1 - beta1, beta2, 1 - beta2, group["lr"] / (1 - beta1**n), (1 - beta2**n) ** -0.5, group["eps"]
    adam_step(flat.detach(), flat.grad, state["exp_avg"], state["exp_avg_sq"], [factor, *scalars])
    return norm


def least_value(params: PackedParams, x: Tensor) -> Tensor:
    """Least output (N,) over copies with relu and one output, for x (N, d_in); only x gets a gradient, that of the
    smallest copy."""
    if params.single or params.layout.sizes[-1] != 1:
        raise ValueError("params: expected several networks with one output")
    check_tensor("x", x, (None, params.layout.sizes[0]), torch.float32, params.flat.device)
    return LeastFunction.apply(params.layout, params.flat.detach(), x)


def prepared(params: PackedParams, x: Tensor, activation: str) -> Tensor:
    """x for the passes: contiguous (Q, N, d_in), or (1, N, d_in) shared by all copies; raises as `mlp` says."""
    check_choice("activation", activation, ("relu",) if params.layout.layer_norm else ("relu", "silu"))
    if torch.is_grad_enabled() and x.requires_grad:
        raise NotImplementedError("x: gradients of the input are not implemented; use the plain torch path")
    x = x[None] if params.single else x
    # Rows that all copies share are read once.
    shared = x.dim() == 3 and x.shape[0] == params.flat.shape[0] and x.stride(0) == 0
    x = x[:1] if shared else x.contiguous()
    check_tensor("x", x, (1 if shared else params.flat.shape[0], None, params.layout.sizes[0]), torch.float32)
    return x


class MLPFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: MLPLayout, flat: Tensor, x: Tensor, activation: str) -> Tensor:
        y, saved = cpu_kernels("training").forward_pass(layout, flat, x, activation)
        ctx.layout, ctx.activation, ctx.saved = layout, activation, saved
        ctx.save_for_backward(flat)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order("mlp")
        (flat,) = ctx.saved_tensors
        dflat = cpu_kernels("training").backward_pass(ctx.layout, flat, ctx.saved, grad.contiguous(), ctx.activation)
        return None, dflat, None, None


class ErrorFunction(torch.autograd.Function):
    """The squared error, whose gradient the forward pass computes with it."""

    @staticmethod
    def forward(
        ctx: Any,
        layout: MLPLayout,
        flat: Tensor,
        x: Tensor,
        activation: str,
        target: Tensor,
        weights: Tensor,
        dx: Tensor | None,
        shares: Tensor,
    ):
        kernels = cpu_kernels("training")
        y, saved = kernels.forward_pass(layout, flat, x, activation)
        rates = shares if dx is None else kernels.tangent_pass(layout, flat, saved, dx)[0]
        loss, dy = kernels.loss_pass(y, target, weights, rates, shares)
        ctx.dflat = kernels.backward_pass(layout, flat, saved, dy, activation)
        ctx.mark_non_differentiable(y)
        return loss, y

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        refuse_second_order("mean_squared_error")
        return None, ctx.dflat if float(grad) == 1 else ctx.dflat * grad, *[None] * 6


class LeastFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: MLPLayout, flat: Tensor, x: Tensor) -> Tensor:
        value, ctx.dx = cpu_kernels("training").least(layout, flat, x, ctx.needs_input_grad[2])
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        refuse_second_order("least_value")
        return None, None, ctx.dx * grad.unsqueeze(-1)
