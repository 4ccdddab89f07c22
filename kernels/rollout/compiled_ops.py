"""The operators of a rollout by their CPU kernels, float32; the same names as in `torch_ops.py`."""

import torch
from torch import Tensor

from fastdwm_kernels.compiled import arrays, entry, layer_table, run, transpose, transposed
from fastdwm_kernels.frozen_mlp.compiled import scalar_gradient
from fastdwm_kernels.frozen_mlp.reference import FrozenMLP
from fastdwm_kernels.layout import MLPLayout
from fastdwm_kernels.memory import recycled
from fastdwm_kernels.policy.compiled import policy_backward, policy_forward, policy_weight_gradient
from fastdwm_kernels.rollout import compiled_gradient
from fastdwm_kernels.rollout.compiled import rollout_backward, rollout_forward
from fastdwm_kernels.rollout.compiled_return import imagined_return
from fastdwm_kernels.rollout.models import RolloutModels

value, gradient = compiled_gradient.value, compiled_gradient.gradient


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
    found, cost = x.new_empty(len(x)), len(mlp.copies) * mlp.layout.n_params * (2 if len(dx) else 1)
    run(scalar_gradient, len(x), cost, *mlp.for_cpu, x, found, dx)
    return found


class PolicyTape:
    """As in `torch_ops.py`; the rows of all steps share one buffer, layer by layer."""

    def __init__(self, layout: MLPLayout, flat: Tensor, n_steps: int, particles: int, precision: str):
        self.layout, self.flat, self.particles = layout, flat, particles
        self.layers, n_rows = layer_table(layout), n_steps * particles
        shapes = [(len(flat), n_rows, layout.sizes[0])] + 3 * [(len(flat), n_rows * sum(layout.sizes[1:]))]
        memory = [recycled(*shape) for shape in (*shapes, flat.shape)]
        self.states, self.outputs, self.slopes, self.dz, self.flat_t = memory
        self._transposed = False
        actions = self.outputs[:, n_rows * int(self.layers[-1, 3]) :]
        self.actions = actions.view(len(flat), n_rows, layout.sizes[-1])

    def transpose(self) -> None:
        """Make flat_t, which every backward pass reads."""
        if not self._transposed:
            transposed(self.layout, self.flat, self.flat_t)
            self._transposed = True

    def _run(self, kernel, j: int, *args) -> None:
        """A kernel on the rows of step j."""
        n_rows, first = len(self.flat) * self.particles, j * self.particles
        run(kernel, n_rows, self.layout.n_params, self.layers, *args, first, self.particles)

    def forward(self, j: int, state: Tensor) -> Tensor:
        rows = slice(j * self.particles, (j + 1) * self.particles)
        self.states[:, rows] = state
        self._run(policy_forward, j, self.flat, self.states, self.outputs, self.slopes)
        return self.actions[:, rows]

    def backward(self, j: int, grad: Tensor, need_dx: bool = True) -> Tensor | None:
        self.transpose()
        n_policies, particles, _ = grad.shape
        grad = grad.reshape(n_policies * particles, -1)
        dx = grad.new_empty(len(grad) if need_dx else 0, self.layout.sizes[0])
        self._run(policy_backward, j, self.flat_t, self.slopes, grad.contiguous(), self.dz, dx)
        return dx.view(n_policies, particles, self.layout.sizes[0]) if need_dx else None

    def weight_gradient(self) -> tuple[Tensor, Tensor]:
        grads, squares = recycled(*self.flat.shape), self.flat.new_empty(len(self.flat), len(self.layers))
        n_layers, cost = len(self.layers), self.states.shape[1] * self.layout.n_params
        given = self.states, self.outputs, self.dz, grads, squares
        run(policy_weight_gradient, len(grads) * n_layers, cost // n_layers, self.layers, *given, smallest=1)
        return grads, squares


class Rollout:
    """As `stepwise.Stepwise`, one call for all steps."""

    def __init__(self, models: RolloutModels, params: Tensor, noise: Tensor, save: bool):
        (horizon, steps, n_policies, self.particles, self.obs_dim), self.models = noise.shape, models
        self.n_rows, chain = n_policies * self.particles, models.chain.for_cpu
        self.noise = noise.view(horizon, steps, self.n_rows, self.obs_dim)
        self.policy = PolicyTape(models.policy, params, horizon + 1, self.particles, models.chain.precision)
        # Slopes that nobody will read share one place.
        self.slopes = recycled((horizon * steps if save else 1) * self.n_rows * chain.hidden)
        self.cost = (horizon + 1) * models.policy.n_params + horizon * chain.cost

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        n_steps, n_rows, tape = len(self.noise) + 1, self.n_rows, self.policy
        action_dim = self.models.policy.sizes[-1]
        states, actions = obs.new_empty(n_steps, n_rows, self.obs_dim), obs.new_empty(n_steps, n_rows, action_dim)
        states[0].view(len(obs), self.particles, -1)[:] = obs.unsqueeze(1)
        scratch = arrays(obs.new_empty(n_rows, self.obs_dim + action_dim), obs.new_empty(n_rows, self.obs_dim))
        policy = tape.layers, *arrays(tape.flat, tape.states, tape.outputs, tape.slopes)
        parts = self.particles, policy, self.models.chain.for_cpu.forward, self.models.scales
        run(rollout_forward, n_rows, self.cost, *parts, self.noise, self.slopes, 0, scratch, states, actions)
        return states, actions

    def backward(self, direct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tape, widths = self.policy, (self.obs_dim, self.obs_dim, direct.shape[2])
        tape.transpose()
        scratch = arrays(*(direct.new_empty(self.n_rows, width) for width in widths))
        slopes = direct.new_empty(*direct.shape[:2], direct.shape[2] - self.obs_dim)
        policy = tape.layers, *arrays(tape.flat_t, tape.slopes, tape.dz)
        parts = self.particles, policy, self.models.chain.for_cpu.backward, self.models.scales
        run(rollout_backward, self.n_rows, self.cost, *parts, self.slopes, 0, direct, slopes, scratch)
        return *tape.weight_gradient(), slopes


def prepare() -> None:
    """Compile what a decision calls, so that none waits for it."""
    for function in (transpose, imagined_return, policy_weight_gradient):
        entry(function)
