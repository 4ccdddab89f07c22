"""The operators of a rollout by their Triton kernels; the same names as in `torch_ops.py`."""

import torch
from torch import Tensor

from fastdwm.kernels.frozen_mlp.kernel import frozen_mlp_bwd, frozen_mlp_fwd
from fastdwm.kernels.frozen_mlp.reference import FrozenMLP
from fastdwm.kernels.launch import operand_dtype
from fastdwm.kernels.layout import MLPLayout
from fastdwm.kernels.policy.kernel import policy_bwd_into, policy_fwd_into, policy_weight_bwd
from fastdwm.kernels.reverse_chain.kernel import reverse_chain_bwd as chain_backward
from fastdwm.kernels.reverse_chain.kernel import reverse_chain_fwd as chain_forward
from fastdwm.kernels.rollout.stepwise import Stepwise

__all__ = ["PolicyTape", "Rollout", "scalar_backward", "scalar_forward", "scalar_value"]


def scalar_value(mlp: FrozenMLP, x: Tensor) -> Tensor:
    """Value (N,) of the inputs x (N, d_in), over the copies as `mlp.reduce` says."""
    return reduce(mlp, frozen_mlp_fwd(mlp, x, save=False)[0])


def scalar_forward(mlp: FrozenMLP, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Value (N,) and what its gradient needs."""
    values, z = frozen_mlp_fwd(mlp, x, save=True)
    return reduce(mlp, values), (values, z)


def scalar_backward(mlp: FrozenMLP, saved: tuple[Tensor, Tensor], grad: Tensor) -> Tensor:
    """Gradient (N, d_in) of the inputs from that of the value, grad (N,)."""
    return frozen_mlp_bwd(mlp, *saved, grad.contiguous())


def reduce(mlp: FrozenMLP, values: Tensor) -> Tensor:
    """One value for each row of (Q, N)."""
    if mlp.reduce == "min":
        return values.amin(0)
    return values[0] if mlp.reduce == "first" else values.mean(0)


class PolicyTape:
    """As in `torch_ops.py`; the rows of all steps share one buffer, so the weight gradient is one launch."""

    def __init__(self, layout: MLPLayout, flat: Tensor, n_steps: int, particles: int, precision: str):
        self.layout, self.flat, self.particles, self.precision = layout, flat, particles, precision
        rows, widths, operand = (len(flat), n_steps * particles), sum(layout.sizes[1:-1]), operand_dtype(precision)
        self.states = flat.new_empty(*rows, layout.sizes[0])
        self.actions = flat.new_empty(*rows, layout.sizes[-1])
        self.hidden = flat.new_empty(*rows, widths, dtype=operand)
        self.dz = torch.empty_like(self.hidden)
        self.dz_out = torch.empty_like(self.actions, dtype=operand)

    def step(self, j: int, *buffers: Tensor) -> list[Tensor]:
        """Views (B, M, ...) of the rows of step j."""
        return [buffer[:, j * self.particles : (j + 1) * self.particles] for buffer in buffers]

    def forward(self, j: int, state: Tensor) -> Tensor:
        states, hidden, actions = self.step(j, self.states, self.hidden, self.actions)
        states.copy_(state)
        policy_fwd_into(self.layout, self.flat, states, hidden, actions, self.precision)
        return actions

    def backward(self, j: int, grad: Tensor, need_dx: bool = True) -> Tensor | None:
        hidden, actions, dz, dz_out = self.step(j, self.hidden, self.actions, self.dz, self.dz_out)
        return policy_bwd_into(self.layout, self.flat, hidden, actions, grad.contiguous(), dz, dz_out, self.precision)

    def weight_gradient(self) -> Tensor:
        return policy_weight_bwd(self.layout, self.states, self.hidden, self.dz, self.dz_out, self.precision)


class Rollout(Stepwise):
    PolicyTape = PolicyTape
    chain_forward = staticmethod(chain_forward)
    chain_backward = staticmethod(chain_backward)
