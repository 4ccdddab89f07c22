"""The operators of a rollout by their CPU kernels, float32; the same names as in `torch_ops.py`."""

import numpy as np
import torch
from torch import Tensor

from fastdwm.kernels.compiled import POOL, layer_table, run, transposed
from fastdwm.kernels.frozen_mlp.compiled import scalar_gradient
from fastdwm.kernels.frozen_mlp.reference import FrozenMLP
from fastdwm.kernels.layout import Layout
from fastdwm.kernels.policy.compiled import policy_backward, policy_forward, policy_weight_gradient
from fastdwm.kernels.reverse_chain.compiled import reverse_chain_backward_compiled, reverse_chain_compiled
from fastdwm.kernels.reverse_step.weights import ChainWeights


def chain_forward(
    weights: ChainWeights, obs: Tensor, action: Tensor, noise: Tensor, save: bool
) -> tuple[Tensor, np.ndarray | None]:
    """y_0 (N, S) and what its gradient needs."""
    y, slopes = reverse_chain_compiled(weights, obs, action, noise, save, POOL.take)
    if not save:
        POOL.give(slopes)
    return y, slopes if save else None


def chain_backward(weights: ChainWeights, dy: Tensor, slopes: np.ndarray) -> tuple[Tensor, Tensor]:
    """Gradients of obs (N, S) and action (N, A); once for each forward pass, whose memory is free then."""
    gradients = reverse_chain_backward_compiled(weights, dy, slopes)
    POOL.give(slopes)
    return gradients


def scalar_value(mlp: FrozenMLP, x: Tensor) -> Tensor:
    """Value (N,) of the inputs x (N, d_in), over the copies as `mlp.reduce` says."""
    return evaluate(mlp, x, x[:0])


def scalar_forward(mlp: FrozenMLP, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value (N,), and its gradient (N, d_in)."""
    dx = torch.empty_like(x)
    return evaluate(mlp, x, dx), dx


def scalar_backward(mlp: FrozenMLP, saved: Tensor, grad: Tensor) -> Tensor:
    """Gradient (N, d_in) of the inputs from that of the value, grad (N,)."""
    return saved * grad.unsqueeze(1)


def evaluate(mlp: FrozenMLP, x: Tensor, dx: Tensor) -> Tensor:
    """Value; the gradient is written to dx unless that is empty."""
    value, n_copies = x.new_empty(len(x)), len(mlp.copies)
    kinds = mlp.activation == "silu", mlp.layout.layer_norm, mlp.reduce == "min"
    parameters = mlp.flat[:n_copies], mlp.flat_t[:n_copies]
    cost = n_copies * mlp.layout.n_params * (2 if len(dx) else 1)
    run(scalar_gradient, len(x), cost, layer_table(mlp.layout), *parameters, kinds, x, value, dx)
    return value


class PolicyTape:
    """As in `torch_ops.py`; the rows of all steps share one buffer, layer by layer."""

    def __init__(self, layout: Layout, flat: Tensor, n_steps: int, particles: int, precision: str):
        self.layout, self.flat, self.particles = layout, flat, particles
        self.layers, n_rows = layer_table(layout), n_steps * particles
        shapes = [(len(flat), n_rows, layout.sizes[0])] + 3 * [(len(flat), n_rows * sum(layout.sizes[1:]))]
        self.memory = [POOL.take(*shape) for shape in (*shapes, flat.shape)]
        self.states, self.outputs, self.slopes, self.dz, self.flat_t = self.memory
        self.has_flat_t = False
        actions = torch.from_numpy(self.outputs[:, n_rows * int(self.layers[-1, 3]) :])
        self.actions = actions.view(len(flat), n_rows, layout.sizes[-1])

    def _run(self, kernel, j: int, *args) -> None:
        """A kernel on the rows of step j."""
        n_rows, first = len(self.flat) * self.particles, j * self.particles
        run(kernel, n_rows, self.layout.n_params, self.layers, *args, first, self.particles)

    def forward(self, j: int, state: Tensor) -> Tensor:
        rows = slice(j * self.particles, (j + 1) * self.particles)
        self.states[:, rows] = state.numpy()
        self._run(policy_forward, j, self.flat, self.states, self.outputs, self.slopes)
        return self.actions[:, rows]

    def backward(self, j: int, grad: Tensor, need_dx: bool = True) -> Tensor | None:
        if not self.has_flat_t:
            transposed(self.layout, self.flat, self.flat_t)
            self.has_flat_t = True
        n_policies, particles, _ = grad.shape
        grad = grad.reshape(n_policies * particles, -1)
        dx = grad.new_empty(len(grad) if need_dx else 0, self.layout.sizes[0])
        self._run(policy_backward, j, self.flat_t, self.slopes, grad.contiguous(), self.dz, dx)
        return dx.view(n_policies, particles, self.layout.sizes[0]) if need_dx else None

    def weight_gradient(self) -> Tensor:
        grads = torch.empty_like(self.flat)
        grads[:, self.layout.n_params :] = 0
        n_layers, cost = len(self.layers), self.states.shape[1] * self.layout.n_params
        buffers = self.states, self.outputs, self.dz
        run(policy_weight_gradient, len(grads) * n_layers, cost // n_layers, self.layers, *buffers, grads)
        return grads

    def __del__(self):
        # The actions are in this memory, too: whoever has them has the tape.
        POOL.give(*self.memory)
