"""The default return of B policies and its gradient by the CPU kernels: one call for the rows, one for the weights.

`imagine.py` composes the same of single operators; between these Python would take longer than a few particles do.
"""

from torch import Tensor

from fastdwm_kernels.cpu import arrays, layer_table, run, transpose
from fastdwm_kernels.memory import recycled, recycled_together
from fastdwm_kernels.policy.cpu import policy_weight_gradient
from fastdwm_kernels.rollout.cpu_return import imagined_return
from fastdwm_kernels.rollout.gradient import Gradient
from fastdwm_kernels.rollout.imagine import Return
from fastdwm_kernels.rollout.models import RolloutModels


def value(models: RolloutModels, returns: Return, params: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
    """J (B,)."""
    tape = make_tape(models, params, noise, save=False)
    none = obs.new_empty(0, 0, models.policy.sizes[-1])
    return run_rows(models, returns, params, obs, noise, tape, none)


def gradient(models: RolloutModels, returns: Return, params: Tensor, obs: Tensor, noise: Tensor) -> Gradient:
    """J and its gradient."""
    horizon, _, n_policies, particles, _ = noise.shape
    layers, layout = layer_table(models.policy), models.policy
    tape = make_tape(models, params, noise, save=True)
    action_grads = obs.new_empty(horizon + 1, n_policies * particles, layout.sizes[-1])
    policy_obs, outputs, _, _, dz, flat_t = tape[:6]
    run(transpose, n_policies, layout.n_params, layers, params, flat_t, smallest=1)
    values = run_rows(models, returns, params, obs, noise, tape, action_grads)
    grads, partial_sq_norms = recycled(*params.shape), params.new_empty(n_policies, len(layers))
    # An item is a layer, on average.
    cost = (horizon + 1) * particles * layout.n_params // len(layers)
    args = layers, policy_obs, outputs, dz, grads, partial_sq_norms
    run(policy_weight_gradient, partial_sq_norms.numel(), cost, *args, smallest=1)
    return Gradient(values, grads, action_grads.view(horizon + 1, n_policies, particles, -1), partial_sq_norms)


def make_tape(models: RolloutModels, params: Tensor, noise: Tensor, save: bool) -> list:
    """Scratch arrays of a rollout: policy_obs, outputs, act_derivs, sampler_derivs, dz, flat_t, states and actions.

    save: a backward pass will follow; otherwise the arrays that only it needs are empty."""
    (horizon, denoise_steps, n_policies, particles, obs_dim), layout = noise.shape, models.policy
    n_steps, n_rows, n_saved = horizon + 1, n_policies * particles, n_policies if save else 0
    layers = (n_policies, n_steps * particles * sum(layout.sizes[1:]))
    return recycled_together(
        (n_policies, n_steps * particles, obs_dim),
        layers,
        layers,
        # Derivatives that no backward pass reads overwrite each other.
        ((horizon * denoise_steps if save else 1) * n_rows * models.sampler.for_cpu.hidden,),
        (n_saved, layers[1]),
        (n_saved, params.shape[1]),
        (n_steps, n_rows, obs_dim),
        (n_steps, n_rows, layout.sizes[-1]),
    )


def run_rows(
    models: RolloutModels,
    returns: Return,
    params: Tensor,
    obs: Tensor,
    noise: Tensor,
    tape: list,
    action_grads: Tensor,
) -> Tensor:
    """J (B,); `imagined_return` also fills action_grads (H + 1, N, A), unless that is empty, and the tape."""
    horizon, denoise_steps, n_policies, particles, obs_dim = noise.shape
    policy_obs, outputs, act_derivs, sampler_derivs, dz, flat_t, states, actions = tape
    layers, sampler, flat = layer_table(models.policy), models.sampler.for_cpu, params.numpy()
    policy, policy_vjp = (layers, flat, policy_obs, outputs, act_derivs), (layers, flat_t, act_derivs, dz)
    packed = policy, policy_vjp, sampler.forward, sampler.backward, returns.reward.for_cpu, returns.critics.for_cpu
    n_rows, values = n_policies * particles, obs.new_empty(n_policies * particles)
    settings = (*packed, models.scales.numpy()), returns.for_cpu
    inputs = noise.view(horizon, denoise_steps, n_rows, obs_dim), sampler_derivs, obs
    results = states, actions, *arrays(action_grads, values)
    cost = 2 * (horizon + 1) * (models.policy.n_params + sampler.cost)
    run(imagined_return, n_rows, cost, particles, *settings, *inputs, results)
    return values.view(n_policies, particles).mean(1)
