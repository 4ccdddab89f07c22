"""The policy MLP and its derivatives in torch, in any dtype and on any device; also the CPU path.

With h_0 = x, z_i = h_i W_i + b_i, h_{i+1} = act(z_i) for the hidden layers and a = out(z_L) at the end, the gradients
are, from g = dJ/da downwards,

    dz_L = g out'(z_L),   dh_i = dz_i W_i^T,   dz_{i-1} = dh_i act'(z_{i-1}),   dx = dh_0
    dW_i = h_i^T dz_i,    db_i = sum over rows of dz_i

All derivatives are functions of the results, which alone are saved: relu' = [h > 0], tanh' = 1 - h^2, and for an output
clipped to [-1, 1], clip' = [|a| < 1]. relu' is 0 at 0 and clip' is 0 at +-1, as torch's relu and hardtanh have it.
The order of the rows in h_i^T dz_i does not matter, so a rollout keeps (h_i, dz_i) of all its steps and computes one
product over them at the end.
"""

import torch
from torch import Tensor

from fastdwm_kernels.cpu_linear import activation_backward, linear
from fastdwm_kernels.layout import MLPLayout, Params


def policy_forward_reference(layout: MLPLayout, params: Params, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Actions (B, M, A) of B policies for observations x (B, M, S), and the hidden activations, first layer first."""
    last = len(params) // 2 - 1
    hidden = []
    for i in range(last):
        x = linear(x, params[f"w{i}"], params[f"b{i}"], layout.activation)
        hidden.append(x)
    z = linear(x, params[f"w{last}"], params[f"b{last}"])
    return (z.tanh_() if layout.output == "tanh" else z.clamp_(-1, 1)), hidden


def policy_backward_reference(
    layout: MLPLayout, params: Params, hidden: list[Tensor], action: Tensor, grad: Tensor, need_dx: bool = True
) -> tuple[Tensor | None, list[Tensor]]:
    """Gradient to the input (B, M, S), and the layer gradients dz (B, M, d_out) of every layer, first layer first.

    hidden, action: from `policy_forward_reference`.   grad: (B, M, A) upstream gradient.
    """
    if layout.output == "tanh":
        dz = [torch.ops.aten.tanh_backward(grad, action)]
    else:
        dz = [torch.ops.aten.hardtanh_backward(grad, action, -1, 1)]
    for i in range(len(hidden), 0, -1):
        dh = linear(dz[0], params[f"w{i}"].mT)
        dz.insert(0, activation_backward(dh, hidden[i - 1], layout.activation))
    return (linear(dz[0], params["w0"].mT) if need_dx else None), dz


def policy_weight_grads_reference(x: Tensor, hidden: list[Tensor], dz: list[Tensor]) -> Params:
    """Gradients (B, ...) of all parameters from R rows per episode, one batched product for each layer.

    x: (B, R, S).   hidden, dz: (B, R, D) of each layer; R is M, or (H + 1) M for a whole rollout.
    """
    grads = {}
    for i, (h, d) in enumerate(zip([x, *hidden], dz, strict=True)):
        grads[f"w{i}"] = linear(h.mT, d)
        grads[f"b{i}"] = d.sum(1)
    return grads
