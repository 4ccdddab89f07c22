"""Frozen scalar networks and their input gradient in torch, in any dtype and on any device; also the CPU path.

With h_0 = x, z_i = h_i W_i + b_i, a_i = act(z_i), h_{i+1} = norm(a_i) scale_i + shift_i (or a_i without layer norm)
and the value v = h_L w + b, the gradient is, from dh_L = w downwards,

    n = (a - mean) r, r = 1 / sqrt(var + eps):   da = r (q - mean(q) - n mean(q n)) with q = dh scale
    dz = da act'(z),   dh_i = dz_i W_i^T,   dv/dx = dh_0

and dh_L = g w for an upstream gradient g. The derivatives are functions of a: relu' = [a > 0], tanh' = 1 - a^2.
The minimum over copies has the gradient of the smallest copy (the first of equal ones), so each row goes backwards
through that copy alone. The parameters get no gradient.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fastdwm_kernels.cpu_linear import activation_backward, linear
from fastdwm_kernels.layout import MLPLayout, Params

NORM_EPS = 1e-5
"""added to the variance by the layer norm, as in torch"""


@dataclass(frozen=True)
class FrozenMLP:
    """Q copies of a network with one output, made by `pack_frozen_mlp`.

    flat: (Q, layout.width) parameters.   weights: the same in the dtype of the kernels' operands.
    """

    layout: MLPLayout
    reduce: str
    precision: str
    flat: Tensor
    weights: Tensor

    @cached_property
    def copies(self) -> list[Params]:
        """Views of each copy's parameters; only of the first copy if reduce is "first"."""
        views = self.layout.views(self.flat)
        n_copies = 1 if self.reduce == "first" else len(self.flat)
        return [{name: value[q] for name, value in views.items()} for q in range(n_copies)]

    @cached_property
    def for_cpu(self) -> tuple:
        """The networks for the CPU kernels: the first arguments of `scalar_gradient`."""
        from fastdwm_kernels.cpu import layer_table, transposed

        kinds = self.layout.layer_norm, self.reduce == "min"
        flat = self.flat[: len(self.copies)]
        return layer_table(self.layout), flat.numpy(), transposed(self.layout, flat).numpy(), kinds


@dataclass(frozen=True)
class Saved:
    """Saved values: (a[, mean, 1 / std]) of each copy's hidden layers, and for "min" the smallest copy of each row."""

    layers: list[list[tuple[Tensor, ...]]]
    smallest: Tensor | None


def frozen_mlp_reference(mlp: FrozenMLP, x: Tensor) -> Tensor:
    """Value (N,) of the inputs x (N, d_in), reduced over the copies by `mlp.reduce`."""
    return frozen_mlp_forward_reference(mlp, x)[0]


def frozen_mlp_forward_reference(mlp: FrozenMLP, x: Tensor) -> tuple[Tensor, Saved]:
    """Value (N,) of the inputs x (N, d_in), and the values saved for its gradient."""
    values, layers = zip(*[_forward_copy(mlp, copy, x) for copy in mlp.copies], strict=True)
    if len(values) == 1:
        return values[0], Saved(list(layers), None)
    if mlp.reduce == "mean":
        return torch.stack(values).mean(0), Saved(list(layers), None)
    value, smallest = torch.stack(values).min(0)
    return value, Saved(list(layers), smallest)


def frozen_mlp_backward_reference(mlp: FrozenMLP, saved: Saved, grad: Tensor) -> Tensor:
    """Gradient (N, d_in) of the inputs from that of the value, grad (N,)."""
    if saved.smallest is None:
        upstream = grad / len(mlp.copies)
        grads = [_backward_copy(mlp, *each, upstream) for each in zip(mlp.copies, saved.layers, strict=True)]
        return grads[0] if len(grads) == 1 else torch.stack(grads).sum(0)
    dx = grad.new_empty(len(grad), mlp.layout.sizes[0])
    for q, (copy, layers) in enumerate(zip(mlp.copies, saved.layers, strict=True)):
        rows = (saved.smallest == q).nonzero().squeeze(1)
        kept = [tuple(value.index_select(0, rows) for value in layer) for layer in layers]
        dx.index_copy_(0, rows, _backward_copy(mlp, copy, kept, grad.index_select(0, rows)))
    return dx


def _forward_copy(mlp: FrozenMLP, copy: Params, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    last = len(mlp.layout.sizes) - 2
    saved = []
    for i in range(last):
        x = linear(x, copy[f"w{i}"], copy[f"b{i}"], mlp.layout.activation)
        kept = (x,)
        if mlp.layout.layer_norm:
            scale, shift = copy[f"scale{i}"], copy[f"shift{i}"]
            x, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], scale, shift, NORM_EPS)
            kept += (mean, rstd)
        saved.append(kept)
    return torch.addmv(copy[f"b{last}"], x, copy[f"w{last}"][:, 0]), saved


def _backward_copy(mlp: FrozenMLP, copy: Params, layers: list[tuple[Tensor, ...]], upstream: Tensor) -> Tensor:
    last = len(layers)
    dh = torch.outer(upstream, copy[f"w{last}"][:, 0])
    for i in reversed(range(last)):
        a, *moments = layers[i]
        if moments:
            scale, shift = copy[f"scale{i}"], copy[f"shift{i}"]
            dh, _, _ = torch.ops.aten.native_layer_norm_backward(
                dh, a, a.shape[-1:], *moments, scale, shift, [True, False, False]
            )
        dz = activation_backward(dh, a, mlp.layout.activation)
        dh = linear(dz, copy[f"w{i}"].mT)
    return dh
