"""A rollout by the CPU kernels in float32: one call forward, one backward, one for the weight gradient."""

from torch import Tensor

from fastdwm_kernels.cpu import arrays, entry, layer_table, run, transpose, transposed
from fastdwm_kernels.memory import recycled
from fastdwm_kernels.policy.cpu import policy_weight_gradient
from fastdwm_kernels.rollout import cpu_gradient
from fastdwm_kernels.rollout.cpu import rollout_backward, rollout_forward
from fastdwm_kernels.rollout.cpu_return import imagined_return
from fastdwm_kernels.rollout.models import RolloutModels

value, gradient = cpu_gradient.value, cpu_gradient.gradient


class Rollout:
    """The CPU kernels behind the interface of `stepwise.Rollout`."""

    def __init__(self, models: RolloutModels, params: Tensor, noise: Tensor, save: bool):
        (horizon, denoise_steps, n_policies, self.particles, self.obs_dim), self.models = noise.shape, models
        self.flat, layout, sampler = params, models.policy, models.sampler.for_cpu
        self.layers, self.n_rows = layer_table(layout), n_policies * self.particles
        self.noise = noise.view(horizon, denoise_steps, self.n_rows, self.obs_dim)
        # The rows of all steps share one buffer, layer by layer.
        rows = (horizon + 1) * self.particles
        layers = (n_policies, rows * sum(layout.sizes[1:]))
        self.policy_obs = recycled(n_policies, rows, self.obs_dim)
        self.outputs, self.act_derivs, self.dz = (recycled(*layers) for _ in range(3))
        # Derivatives that no backward pass reads overwrite each other.
        self.sampler_derivs = recycled((horizon * denoise_steps if save else 1) * self.n_rows * sampler.hidden)
        self.cost = (horizon + 1) * layout.n_params + horizon * sampler.cost

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        n_steps, n_rows, models = len(self.noise) + 1, self.n_rows, self.models
        action_dim = models.policy.sizes[-1]
        states, actions = obs.new_empty(n_steps, n_rows, self.obs_dim), obs.new_empty(n_steps, n_rows, action_dim)
        states[0].view(len(obs), self.particles, -1)[:] = obs.unsqueeze(1)
        scratch = arrays(obs.new_empty(n_rows, self.obs_dim + action_dim), obs.new_empty(n_rows, self.obs_dim))
        policy = self.layers, *arrays(self.flat, self.policy_obs, self.outputs, self.act_derivs)
        parts = self.particles, policy, models.sampler.for_cpu.forward, models.scales
        run(rollout_forward, n_rows, self.cost, *parts, self.noise, self.sampler_derivs, 0, scratch, states, actions)
        return states, actions

    def backward(self, direct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        models, widths = self.models, (self.obs_dim, self.obs_dim, direct.shape[2])
        scratch = arrays(*(direct.new_empty(self.n_rows, width) for width in widths))
        action_grads = direct.new_empty(*direct.shape[:2], direct.shape[2] - self.obs_dim)
        flat_t = transposed(models.policy, self.flat, recycled(*self.flat.shape))
        policy = self.layers, *arrays(flat_t, self.act_derivs, self.dz)
        parts = self.particles, policy, models.sampler.for_cpu.backward, models.scales
        buffers = self.sampler_derivs, 0, direct, action_grads, scratch
        run(rollout_backward, self.n_rows, self.cost, *parts, *buffers)
        grads, n_layers = recycled(*self.flat.shape), len(self.layers)
        partial_sq_norms, cost = (
            self.flat.new_empty(len(grads), n_layers),
            self.policy_obs.shape[1] * models.policy.n_params,
        )
        args = self.layers, self.policy_obs, self.outputs, self.dz, grads, partial_sq_norms
        run(policy_weight_gradient, partial_sq_norms.numel(), cost // n_layers, *args, smallest=1)
        return grads, partial_sq_norms, action_grads


def prepare() -> None:
    """Compile the kernels that a decision calls, so that no decision waits for it."""
    for function in (transpose, imagined_return, policy_weight_gradient):
        entry(function)
