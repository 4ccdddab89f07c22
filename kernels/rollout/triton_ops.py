"""The imagined return and its gradient by the Triton kernels: the derivation of `imagine.py` in a few launches.

Forward and backward, each imagined step is one launch and its sampler another. Reward and critics take one launch each
for the values and for the gradients at all states, the return takes one, and the weight gradient takes one, or two for
many rows. The policies' weights are rounded to the operands' dtype once for all launches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdwm_kernels.frozen_mlp.kernel import frozen_mlp_bwd, frozen_mlp_fwd
from fastdwm_kernels.launch import cdiv, mlp_options, operand_dtype, run
from fastdwm_kernels.policy.kernel import policy_launch, sizes
from fastdwm_kernels.policy.weight_kernel import policy_weight_bwd
from fastdwm_kernels.rollout.gradient import Gradient
from fastdwm_kernels.rollout.imagine import Return
from fastdwm_kernels.rollout.models import RolloutModels
from fastdwm_kernels.rollout.step_kernel import step_bwd_kernel, step_fwd_kernel
from fastdwm_kernels.rollout.terms_kernel import terms
from fastdwm_kernels.sampler.kernel import sampler_bwd, sampler_fwd

__all__ = ["Rollout", "gradient", "value"]


def value(models: RolloutModels, returns: Return, params: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
    """J (B,); arguments as in `op.rollout_value`."""
    rollout = Rollout(models, params, noise, save=False)
    rollout.imagine(obs)
    rewards = frozen_mlp_fwd(returns.reward, rollout.reward_inputs, False)[0] if rollout.horizon else None
    values, _ = frozen_mlp_fwd(returns.critics, rollout.critic_inputs, False)
    return terms(returns, rewards, values, rollout.tape_states)[0]


def gradient(models: RolloutModels, returns: Return, params: Tensor, obs: Tensor, noise: Tensor) -> Gradient:
    """J and its gradient; arguments as in `op.rollout_gradient`."""
    rollout = Rollout(models, params, noise, save=True)
    rollout.imagine(obs)
    rewards, saved = frozen_mlp_fwd(returns.reward, rollout.reward_inputs, True) if rollout.horizon else (None, None)
    values, saved_last = frozen_mlp_fwd(returns.critics, rollout.critic_inputs, True)
    objective, weights, extra = terms(returns, rewards, values, rollout.tape_states)
    reward_weights, terminal_weights = weights.tensor_split([rollout.horizon * rollout.n_rows])
    direct = [frozen_mlp_bwd(returns.critics, values, saved_last, terminal_weights)]
    if rollout.horizon:
        reward_grads = frozen_mlp_bwd(returns.reward, rewards, saved, reward_weights)
        direct = [*reward_grads.view(rollout.horizon, *direct[0].shape), *direct]
    grads, partial_sq_norms, action_grads = rollout.backpropagate(direct, extra, True, float(rollout.particles))
    return Gradient(objective, grads, action_grads.unflatten(1, (-1, rollout.particles)), partial_sq_norms)


class Rollout:
    """A rollout of B policies (B, P) with M particles each, N = B M rows.

    The rows of all steps share one tape (B, (H + 1) M, ..), so the weight gradient is one product.
    """

    def __init__(self, models: RolloutModels, params: Tensor, noise: Tensor, save: bool):
        """noise: (H, K, B, M, S).   save: a call of `backpropagate` or `backward` will follow."""
        self.models, self.flat, self.save = models, params, save
        self.horizon, denoise_steps, n_policies, self.particles, obs_dim = noise.shape
        self.n_rows, n_steps, layout = n_policies * self.particles, self.horizon + 1, models.policy
        self.noise = noise.view(self.horizon, denoise_steps, self.n_rows, obs_dim)
        self.precision = models.sampler.precision
        self.weights = params.to(operand_dtype(self.precision))
        tape, widths = (n_policies, n_steps * self.particles), sum(layout.sizes[1:-1])
        self.states = params.new_empty(*tape, obs_dim)
        self.hidden = params.new_empty(*tape, widths, dtype=operand_dtype(self.precision))
        self.actions = params.new_empty(n_steps, self.n_rows, layout.sizes[-1])
        self.inputs = params.new_empty(n_steps * self.n_rows, obs_dim + layout.sizes[-1])
        self.saved: list[Tensor | None] = []

    @property
    def tape_states(self) -> Tensor:
        """States (B, H + 1, M, S)."""
        return self.states.unflatten(1, (-1, self.particles))

    @property
    def reward_inputs(self) -> Tensor:
        """Inputs (H N, S + A) of the reward."""
        return self.inputs[: self.horizon * self.n_rows]

    @property
    def critic_inputs(self) -> Tensor:
        """Inputs (N, S + A) of the critics."""
        return self.inputs[self.horizon * self.n_rows :]

    def step(self, j: int, buffer: Tensor) -> Tensor:
        """View (B, M, ..) of the rows of step j in a tape."""
        return buffer[:, j * self.particles : (j + 1) * self.particles]

    def imagine(self, obs: Tensor) -> None:
        """Compute all states and actions from obs (B, S)."""
        before, y, sampler = obs, None, self.models.sampler
        norm_obs = obs.new_empty(self.n_rows, obs.shape[1])
        for j in range(self.horizon + 1):
            last = j == self.horizon
            self._act(j, before, y, None if last else norm_obs)
            if not last:
                before = self.step(j, self.states)
                y, saved = sampler_fwd(sampler, norm_obs, self.actions[j], self.noise[j], self.save)
                self.saved.append(saved)

    def _act(self, j: int, before: Tensor, y: Tensor | None, norm_obs: Tensor | None) -> None:
        inputs = self.inputs[j * self.n_rows :]
        results = self.step(j, self.states), self.step(j, self.hidden), self.actions[j], norm_obs, inputs
        self._launch(step_fwd_kernel, (before, y, self.models.scales, self.weights, self.flat, *results))

    def _launch(self, kernel, tensors: tuple[Tensor | None, ...], *scalars: float, **constants: bool) -> None:
        layout, n_rows = self.models.policy, self.particles
        launch = policy_launch(layout, self.precision, self.flat.device)
        options = sizes(layout, launch, kernel) | constants | mlp_options(launch)
        grid = cdiv(n_rows, launch.block_m), len(self.flat)
        run(kernel, grid, *tensors, n_rows, self.states.shape[1], *scalars, **options)

    def backpropagate(
        self, direct: Sequence[Tensor], extra: Tensor | None, normalised: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient (B, P), parts (B, tiles) of its squared norm, and the actions' gradients (H + 1, N, A) times scale.

        direct: H + 1 gradients (N, S + A) of the steps' own terms, with respect to the normalised state in all but the
        last if `normalised`.   extra: (H + 1, N, S), added to the gradients of all states but the first.
        """
        obs_dim = self.states.shape[2]
        dz = torch.empty_like(self.hidden)
        dz_out = dz.new_empty(*dz.shape[:2], self.actions.shape[2])
        action_grads, following = torch.empty_like(self.actions), (None, None, None)
        for j in range(self.horizon, -1, -1):
            after, dy = (direct[j].new_empty(self.n_rows, obs_dim) if j else None for _ in range(2))
            tapes = (self.step(j, tape) for tape in (self.hidden, dz, dz_out))
            read = direct[j], extra[j] if extra is not None and j else None, *following, self.models.scales
            tensors = *read, self.actions[j], self.weights, *tapes, action_grads[j], after, dy
            self._launch(step_bwd_kernel, tensors, scale, NORMALISED=normalised and j < self.horizon)
            if j:
                dobs, daction, _ = sampler_bwd(self.models.sampler, dy, self.saved[j - 1])
                following = after, dobs, daction
        grads, partial_sq_norms = policy_weight_bwd(
            self.models.policy, self.states, self.hidden, dz, dz_out, self.precision
        )
        return grads, partial_sq_norms, action_grads

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """States (H + 1, N, S) and actions (H + 1, N, A) from obs (B, S)."""
        self.imagine(obs)
        return self.tape_states.transpose(0, 1).flatten(1, 2), self.actions

    def backward(self, direct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `stepwise.Rollout.backward`."""
        return self.backpropagate(direct, None, False, 1.0)
