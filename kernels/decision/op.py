"""A whole decision by the default rule in one call, equal to single calls of `rollout`, `update` and `policy`."""

import torch
from torch import Tensor

from fastdwm_kernels.commit import NUMBERS
from fastdwm_kernels.cpu import entry, layer_table, run
from fastdwm_kernels.decision.cpu import decide_rows
from fastdwm_kernels.memory import recycled, recycled_together
from fastdwm_kernels.rollout.imagine import Return
from fastdwm_kernels.rollout.models import RolloutModels
from fastdwm_kernels.rollout.op import check


@torch.no_grad()
def decide(
    models: RolloutModels,
    returns: Return,
    base: Tensor,
    params: Tensor,
    memory: Tensor,
    obs: Tensor,
    noise: Tensor,
    inner_steps: int,
    action_step: float,
    max_deviation: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the inner steps, clip the action, and roll back the episodes in which something is not finite.

    base: (1, P), the base policy.   params (B, P), memory (B, 2): the adapted policies, and the running statistics of
    `bound_step`.   obs: (B, S), raw units.   noise: (E or 1, H, K, B, M, S), one bank for each inner step or for all.
    inner_steps: E > 0.   action_step, max_deviation: as in `bound_step` and `pull_back`.   All float32 on the CPU and
    contiguous; nothing is changed in place.
    Returns the new params and memory, and the report (B, A + 4): the action, and the `NUMBERS` of `commit`.
    The action equals that of the single operators to the bit; the objective is summed in another order.
    Raises ValueError on a wrong shape, stride or device, TypeError on a wrong dtype.
    """
    check(models, obs, noise[0], params)
    layers, layout, sampler = layer_table(models.policy), models.policy, models.sampler.for_cpu
    banks, horizon, denoise_steps, n, particles, obs_dim = noise.shape
    n_steps, n_rows, action_dim = horizon + 1, n * particles, layout.sizes[-1]
    buffer = n, n_steps * particles * sum(layout.sizes[1:])
    tape = recycled_together(
        (n, n_steps * particles, obs_dim),
        buffer,
        buffer,
        (horizon * denoise_steps * n_rows * sampler.hidden,),
        buffer,
        tuple(params.shape),
        (n_steps, n_rows, obs_dim),
        (n_steps, n_rows, action_dim),
        (n_steps, n_rows, action_dim),
        (n_rows,),
        tuple(params.shape),
        (n, len(layers)),
        (1, n, action_dim),
        (n, 1, action_dim),
        (n,),
    )
    after = recycled(*params.shape), torch.empty_like(memory)
    report = obs.new_empty(n, action_dim + len(NUMBERS))
    frozen = sampler.forward, sampler.backward, returns.reward.for_cpu, returns.critics.for_cpu, models.scales.numpy()
    rule = float(action_step), float(max_deviation)
    bank = noise.view(banks, horizon, denoise_steps, n_rows, obs_dim)
    states = (params.numpy(), memory.numpy()), (after[0].numpy(), after[1].numpy())
    cost = 2 * inner_steps * n_steps * particles * (layout.n_params + sampler.cost)
    settings = particles, inner_steps, rule, layers, frozen, returns.for_cpu
    run(decide_rows, n, cost, *settings, bank, obs, base, *states, tuple(tape), report, smallest=1)
    return *after, report


def prepare() -> None:
    """Compile the kernel, so that no decision waits for it."""
    entry(decide_rows)
