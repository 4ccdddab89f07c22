"""The default return of B policies and the way up it by the CPU kernels: one call for the rows, one for the weights.

What `imagine.py` composes of single operators: here nothing of it is left to Python, which costs more than the numbers
of a few particles.
"""

from torch import Tensor

from fastdwm.kernels.compiled import arrays, layer_table, run, transpose
from fastdwm.kernels.memory import recycled, recycled_together
from fastdwm.kernels.policy.compiled import policy_weight_gradient
from fastdwm.kernels.rollout.compiled_return import imagined_return
from fastdwm.kernels.rollout.gradient import Anchor, Gradient
from fastdwm.kernels.rollout.imagine import Return
from fastdwm.kernels.rollout.models import RolloutModels


def value(models: RolloutModels, returns: Return, params: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
    """J (B,) alone."""
    tape = make_tape(models, params, noise, save=False)
    none = obs.new_empty(0, 0, models.policy.sizes[-1])
    return run_rows(models, returns, params, obs, noise, None, tape, none, obs.new_empty(0))


def gradient(
    models: RolloutModels, returns: Return, params: Tensor, obs: Tensor, noise: Tensor, anchor: Anchor | None
) -> Gradient:
    """J and the way up."""
    horizon, _, n_policies, particles, _ = noise.shape
    layers, layout = layer_table(models.policy), models.policy
    tape, slopes = (
        make_tape(models, params, noise, save=True),
        obs.new_empty(horizon + 1, n_policies * particles, layout.sizes[-1]),
    )
    seen, outputs, _, _, dz, flat_t = tape[:6]
    run(transpose, n_policies, layout.n_params, layers, params, flat_t, smallest=1)
    anchored = obs.new_empty(n_policies if anchor else 0)
    found = run_rows(models, returns, params, obs, noise, anchor, tape, slopes, anchored)
    grads, squares = recycled(*params.shape), params.new_empty(n_policies, len(layers))
    # An item is a layer, on average.
    cost = (horizon + 1) * particles * layout.n_params // len(layers)
    run(policy_weight_gradient, squares.numel(), cost, layers, seen, outputs, dz, grads, squares, smallest=1)
    slopes = slopes.view(horizon + 1, n_policies, particles, -1)
    return Gradient(found, grads, slopes, squares, anchored if anchor else None)


def make_tape(models: RolloutModels, params: Tensor, noise: Tensor, save: bool) -> list:
    """Memory of a rollout, in numpy: seen, outputs, slopes (of the policies), slopes (of the chain), dz, flat_t, states
    and actions; what only the way back needs is empty without it."""
    (horizon, steps, n_policies, particles, obs_dim), layout = noise.shape, models.policy
    n_steps, n_rows, back = horizon + 1, n_policies * particles, n_policies if save else 0
    layers = (n_policies, n_steps * particles * sum(layout.sizes[1:]))
    return recycled_together(
        (n_policies, n_steps * particles, obs_dim),
        layers,
        layers,
        # Slopes that nobody will read share one place.
        ((horizon * steps if save else 1) * n_rows * models.chain.for_cpu.hidden,),
        (back, layers[1]),
        (back, params.shape[1]),
        (n_steps, n_rows, obs_dim),
        (n_steps, n_rows, layout.sizes[-1]),
    )


def run_rows(
    models: RolloutModels,
    returns: Return,
    params: Tensor,
    obs: Tensor,
    noise: Tensor,
    anchor: Anchor | None,
    tape: list,
    slopes: Tensor,
    anchored: Tensor,
) -> Tensor:
    """J (B,); `imagined_return` leaves the rest in `slopes` (H + 1, N, A) and on the tape, and in `anchored` (B,): each
    unless it is empty."""
    horizon, steps, n_policies, particles, obs_dim = noise.shape
    seen, outputs, policy_slopes, chain_slopes, dz, flat_t, states, actions = tape
    layers, chain, flat = layer_table(models.policy), models.chain.for_cpu, params.numpy()
    policy, policy_vjp = (layers, flat, seen, outputs, policy_slopes), (layers, flat_t, policy_slopes, dz)
    target = obs.new_zeros(n_policies, models.policy.sizes[-1]) if anchor is None else anchor.action
    weight = obs.new_zeros(n_policies) if anchor is None else anchor.weight
    packed = policy, policy_vjp, chain.forward, chain.backward, returns.reward.for_cpu, returns.critics.for_cpu
    n_rows, values = n_policies * particles, obs.new_empty(n_policies * particles)
    given = (*packed, models.scales.numpy()), returns.for_cpu, arrays(target, weight)
    rolled = noise.view(horizon, steps, n_rows, obs_dim), chain_slopes, obs
    found = states, actions, *arrays(slopes, values, anchored)
    cost = 2 * (horizon + 1) * (models.policy.n_params + chain.cost)
    run(imagined_return, n_rows, cost, particles, *given, *rolled, found)
    return values.view(n_policies, particles).mean(1)
