"""A whole decision by the default rule in one call, equal to single calls of `rollout`, `update` and `policy`."""

import torch
from torch import Tensor

from fastdwm_kernels.checks import check_precision, check_tensor
from fastdwm_kernels.commit import NUMBERS
from fastdwm_kernels.cpu import entry, layer_table, run
from fastdwm_kernels.decision.cpu import decide_rows
from fastdwm_kernels.memory import recycled_together
from fastdwm_kernels.rollout.imagine import Return
from fastdwm_kernels.rollout.models import RolloutModels


class Decider:
    """The decisions of B episodes: a function whose scratch memory and arguments are made only once.

    Between compiled calls Python would take longer than a few particles do.
    """

    def __init__(
        self,
        models: RolloutModels,
        returns: Return,
        base: Tensor,
        n_episodes: int,
        horizon: int,
        particles: int,
        inner_steps: int,
        action_step: float,
        max_deviation: float,
    ):
        """base: (1, P), the base policy; float32 on the CPU.   inner_steps: E > 0.
        action_step, max_deviation: as in `bound_step` and `pull_back`."""
        layers, layout, sampler = layer_table(models.policy), models.policy, models.sampler.for_cpu
        check_precision(models.sampler.precision, on_gpu=False)
        check_tensor("base", base, (1, layout.width), device=models.sampler.device)
        n, obs_dim, action_dim = n_episodes, models.sampler.obs_dim, layout.sizes[-1]
        n_steps, n_rows, width = horizon + 1, n_episodes * particles, layout.width
        buffer = n, n_steps * particles * sum(layout.sizes[1:])
        *tape, params, other_params, memory, other_memory = recycled_together(
            (n, n_steps * particles, obs_dim),
            buffer,
            buffer,
            (horizon * models.sampler.steps * n_rows * sampler.hidden,),
            buffer,
            (n, width),
            (n_steps, n_rows, obs_dim),
            (n_steps, n_rows, action_dim),
            (n_steps, n_rows, action_dim),
            (n_rows,),
            (n, width),
            (n, len(layers)),
            (1, n, action_dim),
            (n, 1, action_dim),
            (n,),
            *((n, width), (n, width), (n, 2), (n, 2)),
        )
        # A decision reads the state from one pair of buffers and writes the other.
        self._states = [(params, memory), (other_params, other_memory)]
        self._tensors = [tuple(map(torch.from_numpy, state)) for state in self._states]
        self._shapes = (n, width), (n, 2), (n, obs_dim), (horizon, models.sampler.steps, n, particles, obs_dim)
        self._rows, self._report = (horizon, models.sampler.steps, n_rows, obs_dim), (n, action_dim + len(NUMBERS))
        frozen = sampler.forward, sampler.backward, returns.reward.for_cpu, returns.critics.for_cpu
        rule = float(action_step), float(max_deviation)
        self._settings = particles, inner_steps, rule, layers, (*frozen, models.scales.numpy()), returns.for_cpu
        self._base, self._tape = base.numpy(), tuple(tape)
        self._cost = 2 * inner_steps * n_steps * particles * (layout.n_params + sampler.cost)

    def __call__(self, params: Tensor, memory: Tensor, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the inner steps, clip the action, and roll back the episodes in which something is not finite.

        params (B, P), memory (B, 2): the adapted policies, and the running statistics of `bound_step`.
        obs: (B, S), raw units.   noise: (E or 1, H, K, B, M, S), one bank for each inner step or for all.
        All float32 on the CPU and contiguous; nothing is changed in place.
        Returns the new params and memory, in memory that the call after the next one overwrites, and the report
        (B, A + 4): the action, and the `NUMBERS` of `commit`.
        The action equals that of the single operators to the bit; the objective is summed in another order.
        Raises ValueError on a wrong shape, stride or device, TypeError on a wrong dtype.
        """
        *shapes, bank = self._shapes
        named = zip(("params", "memory", "obs", "noise"), (params, memory, obs, noise), strict=True)
        for (name, value), shape in zip(named, (*shapes, (len(noise), *bank)), strict=True):
            check_tensor(name, value, shape)
        if params.data_ptr() == self._tensors[0][0].data_ptr():
            self._states.reverse()
            self._tensors.reverse()
        report = torch.empty(self._report, dtype=torch.float32, device="cpu")
        before = params.detach().numpy(), memory.numpy()
        banks = noise.numpy().reshape(len(noise), *self._rows)
        args = banks, obs.numpy(), self._base, before, self._states[0], self._tape, report.numpy()
        run(decide_rows, len(params), self._cost, *self._settings, *args, smallest=1)
        return *self._tensors[0], report


def prepare() -> None:
    """Compile the kernel, so that no decision waits for it."""
    entry(decide_rows)
