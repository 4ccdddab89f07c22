"""The imagined return and its gradient, derived by hand, without an autograd tape.

Forward, for j = 0..H-1:  a_j = pi(s_j),  s_{j+1} = s_j + m + d y(s_j, a_j, z_j),  W_{j+1} = W_j g c(s_{j+1}), W_0 = 1,
  J = 1/M sum_m [ sum_j W_j r(s_j, a_j) + W_H Q(s_H, pi(s_H)) ].
Backward, with lam_j = dJ/ds_j at fixed parameters and the return to go R_j = sum_{i>=j} W_i r_i + W_H Q:
  lam_H = W_H (Q_s + Pi_s' Q_a),   p_j = W_j r_a + F_a' lam_{j+1},   lam_j = W_j r_s + F_s' lam_{j+1} + Pi_s' p_j,
  lam_j += R_j c'(s_j) / c(s_j) for j > 0                                      (soft termination only)
and dJ/dpsi = sum_j Pi_psi(j)' p_j, one product over the rows of all steps.  Source: [ITPO] v1, Eq. 2-3.

Only policy and sampler are serial (`Rollout`). Their backward pass needs nothing else but the gradient of step j's own
terms with respect to (s_j, a_j). Reward and critics are scalar functions, whose values and gradients at all states come
from one call each. This module calls the torch references one by one; `triton_ops` and `cpu_gradient` execute the same
derivation by kernels.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fastdwm_kernels.frozen_mlp.reference import (
    FrozenMLP,
    frozen_mlp_backward_reference,
    frozen_mlp_forward_reference,
    frozen_mlp_reference,
)
from fastdwm_kernels.rollout.gradient import Gradient, backward
from fastdwm_kernels.rollout.models import RolloutModels
from fastdwm_kernels.rollout.stepwise import Rollout


@dataclass(frozen=True)
class Return:
    """Frozen models and settings of the imagined return.

    reward: of (normalised obs, action).   critics: of (obs, action).
    index, low, high: (L,), the coordinates at which an imagined episode terminates, and their limits.
    termination: "none", "mask" or "soft" with sigmoids of `width` (L,).
    """

    reward: FrozenMLP
    critics: FrozenMLP
    discount: float
    index: Tensor
    low: Tensor
    high: Tensor
    width: Tensor
    termination: str = "none"

    @cached_property
    def bounds(self) -> Tensor:
        """low, high, width, (3, L)."""
        return torch.stack([self.low, self.high, self.width])

    @cached_property
    def for_cpu(self) -> tuple:
        """discount, termination, index and bounds as the CPU kernels read them."""
        kind = ("none", "mask", "soft").index(self.termination)
        return self.discount, kind, self.index.numpy(), self.bounds.numpy()


@dataclass(frozen=True)
class Imagined:
    """Results of the forward pass; there are N = B M rows.

    rollout: holds the values for the backward pass.
    states (H + 1, N, S), actions (H + 1, N, A), survival (H, N), weights (H + 1, N).
    """

    rollout: Rollout
    states: Tensor
    actions: Tensor
    survival: Tensor
    weights: Tensor

    @property
    def horizon(self) -> int:
        return len(self.survival)


def imagine(models: RolloutModels, returns: Return, params: Tensor, obs: Tensor, noise: Tensor, save: bool) -> Imagined:
    """Roll out B policies (B, P) for H steps with M particles; noise (H, K, B, M, S)."""
    rollout = Rollout(models, params, noise, save)
    states, actions = rollout.forward(obs)
    alive = survival(returns, states[1:])
    weights = torch.cat([torch.ones_like(states[:1, :, 0]), (returns.discount * alive).cumprod(0)])
    return Imagined(rollout, states, actions, alive, weights)


def survival(returns: Return, states: Tensor) -> Tensor:
    """c (..., N) of states (..., N, S): 1, or 0 beyond a limit, or the product of sigmoids of the limits' distances."""
    if returns.termination == "none":
        return torch.ones_like(states[..., 0])
    x, low, high, width = states[..., returns.index], returns.low, returns.high, returns.width
    if returns.termination == "mask":
        return ((x > low) & (x < high)).all(-1).to(states.dtype)
    return (torch.sigmoid((x - low) / width) * torch.sigmoid((high - x) / width)).prod(-1)


def log_survival_gradient(returns: Return, states: Tensor) -> Tensor:
    """d log c / ds (..., N, S) of the soft termination: d log sigmoid(x) = sigmoid(-x)."""
    x, low, high, width = states[..., returns.index], returns.low, returns.high, returns.width
    grads = (torch.sigmoid((low - x) / width) - torch.sigmoid((x - high) / width)) / width
    return torch.zeros_like(states).index_add_(-1, returns.index, grads)


def inputs(models: RolloutModels, run: Imagined) -> tuple[Tensor, Tensor]:
    """Inputs of the reward (H N, S + A) and of the critics (N, S + A)."""
    norm_obs = (run.states[:-1] - models.obs_mean) / models.obs_std
    reward_inputs = torch.cat([norm_obs, run.actions[:-1]], -1).flatten(0, 1)
    return reward_inputs, torch.cat([run.states[-1], run.actions[-1]], -1)


def total(run: Imagined, rewards: Tensor, terminal: Tensor, n_policies: int) -> Tensor:
    """J (B,) from the rewards (H, N) and the terminal value (N,)."""
    returns = run.weights[-1] * terminal + (run.weights[:-1] * rewards).sum(0)
    return returns.view(n_policies, -1).mean(1)


def value(models: RolloutModels, returns: Return, params: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
    """J (B,)."""
    run = imagine(models, returns, params, obs, noise, save=False)
    reward_inputs, critic_inputs = inputs(models, run)
    terminal = frozen_mlp_reference(returns.critics, critic_inputs)
    rewards = frozen_mlp_reference(returns.reward, reward_inputs) if run.horizon else reward_inputs[:, 0]
    return total(run, rewards.view_as(run.survival), terminal, len(obs))


def gradient(
    models: RolloutModels,
    returns: Return,
    params: Tensor,
    obs: Tensor,
    noise: Tensor,
) -> Gradient:
    """J and its gradient."""
    run = imagine(models, returns, params, obs, noise, save=True)
    objective, direct = own_terms(models, returns, run, len(obs))
    return backward(run.rollout, noise, objective, direct)


def own_terms(models: RolloutModels, returns: Return, run: Imagined, n_policies: int) -> tuple[Tensor, Tensor]:
    """J (B,), and the gradient (H + 1, N, S + A) of each step's own terms."""
    # The weights contain the factor 1 / M of the mean over particles.
    weights = run.weights * (n_policies / run.weights.shape[1])
    reward_inputs, critic_inputs = inputs(models, run)
    terminal, saved = frozen_mlp_forward_reference(returns.critics, critic_inputs)
    direct = frozen_mlp_backward_reference(returns.critics, saved, weights[-1]).unsqueeze(0)
    rewards = reward_inputs[:, 0]
    if run.horizon:
        rewards, saved = frozen_mlp_forward_reference(returns.reward, reward_inputs)
        reward_grads = frozen_mlp_backward_reference(returns.reward, saved, weights[:-1].flatten())
        direct = torch.cat([reward_grads.view(run.horizon, *critic_inputs.shape), direct])
    rewards, state_grads = rewards.view_as(run.survival), direct[..., : len(models.obs_std)]
    state_grads[:-1] /= models.obs_std
    if returns.termination == "soft":
        weighted = weights * torch.cat([rewards, terminal.unsqueeze(0)])
        return_to_go = weighted.flip(0).cumsum(0).flip(0)[1:]
        state_grads[1:] += log_survival_gradient(returns, run.states[1:]) * return_to_go.unsqueeze(-1)
    return total(run, rewards, terminal, n_policies), direct
