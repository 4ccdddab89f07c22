"""The imagined return and its gradient, derived by hand: no autograd tape, every operator called a few times.

Forward, for j = 0..H-1:  a_j = pi(s_j),  s_{j+1} = s_j + m + d y(s_j, a_j, z_j),  W_{j+1} = W_j g c(s_{j+1}), W_0 = 1,
  J = 1/M sum_m [ sum_j W_j (r(s_j, a_j) - l |a_j - pi_0(s_j)|^2) + W_H Q(s_H, pi(s_H)) ].
Backward, with lam_j = dJ/ds_j at fixed parameters and R_j = sum_{i>=j} W_i r_i + W_H Q what is still to come:
  lam_H = W_H (Q_s + Pi_s' Q_a),   p_j = W_j r_a + F_a' lam_{j+1},   lam_j = W_j r_s + F_s' lam_{j+1} + Pi_s' p_j,
  lam_j += R_j c'(s_j) / c(s_j) for j > 0                                      (soft termination only)
and dJ/dpsi = sum_j Pi_psi(j)' p_j, one product over the rows of all steps.  Source: [ITPO] v1, Eq. 2-3.

Only policy and sampler are serial (`ops.Rollout`): its backward pass needs of everything else just the gradient of step
j's own terms with respect to (s_j, a_j). Reward and critics are scalar functions: their values and gradients at all
visited states come from one call each. `ops` is `torch_ops`, `compiled_ops` or `triton_ops`: one derivation, three
executions.
"""

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastdwm.kernels.frozen_mlp.reference import FrozenMLP
from fastdwm.kernels.layout import MLPLayout
from fastdwm.kernels.reverse_step.weights import ChainWeights


@dataclass(frozen=True)
class RolloutModels:
    """What is rolled out; all tensors of one dtype and device.

    policy: layout of the flat policy parameters.   chain: sampler of the normalised change.
    obs_mean, obs_std, delta_mean, delta_std: (S,).
    """

    policy: MLPLayout
    chain: ChainWeights
    obs_mean: Tensor
    obs_std: Tensor
    delta_mean: Tensor
    delta_std: Tensor

    @cached_property
    def scales(self) -> Tensor:
        """obs_mean, obs_std, delta_mean, delta_std, (4, S)."""
        return torch.stack([self.obs_mean, self.obs_std, self.delta_mean, self.delta_std])


@dataclass(frozen=True)
class Return:
    """The objective that is differentiated by hand: frozen models, and settings.

    reward: of (normalised obs, action).   critics: of (obs, action).
    index, low, high: (L,), the coordinates that are bounded, and how.
    termination: "none", "mask" or "soft" with sigmoids of `width` (L,).
    anchor_coef: weight l of the squared distance from the base policy's action.
    """

    reward: FrozenMLP
    critics: FrozenMLP
    discount: float
    index: Tensor
    low: Tensor
    high: Tensor
    width: Tensor
    termination: str = "none"
    anchor_coef: float = 0.0


@dataclass(frozen=True)
class Imagined:
    """What the forward pass leaves behind; rows are N = B M.

    rollout: what its gradient needs.   base: the tape of the base policy, none without an anchor.
    states (H + 1, N, S), actions (H + 1, N, A), survival (H, N), weights (H + 1, N).
    drift: a_j - pi_0(s_j), (H, N, A), none without an anchor.
    """

    rollout: Any
    base: Any
    states: Tensor
    actions: Tensor
    survival: Tensor
    weights: Tensor
    drift: Tensor | None

    @property
    def horizon(self) -> int:
        return len(self.survival)


def imagine(
    ops: ModuleType,
    models: RolloutModels,
    returns: Return,
    params: Tensor,
    base: Tensor,
    obs: Tensor,
    noise: Tensor,
    save: bool,
) -> Imagined:
    """Roll B policies (B, P) out for H steps with M particles; noise (H, K, B, M, S)."""
    horizon, _, n_policies, particles, _ = noise.shape
    rollout = ops.Rollout(models, params, noise, save)
    states, actions = rollout.forward(obs)
    alive = survival(returns, states[1:])
    weights = torch.cat([torch.ones_like(states[:1, :, 0]), (returns.discount * alive).cumprod(0)])
    tape = drift = None
    if returns.anchor_coef and horizon:
        tape = ops.PolicyTape(models.policy, base, horizon, particles, models.chain.precision)
        anchored = [tape.forward(j, states[j].view(n_policies, particles, -1)) for j in range(horizon)]
        drift = actions[:-1] - torch.stack(anchored).flatten(1, 2)
    return Imagined(rollout, tape, states, actions, alive, weights, drift)


def survival(returns: Return, states: Tensor) -> Tensor:
    """c (..., N) of states (..., N, S): 1, or 0 beyond a limit, or the product of sigmoids of the distances to them."""
    if returns.termination == "none":
        return torch.ones_like(states[..., 0])
    x, low, high, width = states[..., returns.index], returns.low, returns.high, returns.width
    if returns.termination == "mask":
        return ((x > low) & (x < high)).all(-1).to(states.dtype)
    return (torch.sigmoid((x - low) / width) * torch.sigmoid((high - x) / width)).prod(-1)


def log_survival_gradient(returns: Return, states: Tensor) -> Tensor:
    """d log c / ds (..., N, S) of the soft termination: d log sigmoid(x) = sigmoid(-x)."""
    x, low, high, width = states[..., returns.index], returns.low, returns.high, returns.width
    slope = (torch.sigmoid((low - x) / width) - torch.sigmoid((x - high) / width)) / width
    return torch.zeros_like(states).index_add_(-1, returns.index, slope)


def inputs(models: RolloutModels, run: Imagined) -> tuple[Tensor, Tensor]:
    """Inputs of the reward (H N, S + A) and of the critics (N, S + A)."""
    seen = (run.states[:-1] - models.obs_mean) / models.obs_std
    visited = torch.cat([seen, run.actions[:-1]], -1).flatten(0, 1)
    return visited, torch.cat([run.states[-1], run.actions[-1]], -1)


def total(run: Imagined, rewards: Tensor, terminal: Tensor, n_policies: int) -> Tensor:
    """J (B,) from the rewards (H, N) and the terminal value (N,)."""
    returns = run.weights[-1] * terminal + (run.weights[:-1] * rewards).sum(0)
    return returns.view(n_policies, -1).mean(1)


def charged(returns: Return, run: Imagined, rewards: Tensor) -> Tensor:
    """The rewards (H N,), (H, N), less the anchor penalty l |a_j - pi_0(s_j)|^2."""
    rewards = rewards.view_as(run.survival)
    return rewards if run.drift is None else rewards - returns.anchor_coef * run.drift.square().sum(-1)


def value(
    ops: ModuleType, models: RolloutModels, returns: Return, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor
) -> Tensor:
    """J (B,) alone."""
    run = imagine(ops, models, returns, params, base, obs, noise, save=False)
    visited, last = inputs(models, run)
    terminal = ops.scalar_value(returns.critics, last)
    rewards = ops.scalar_value(returns.reward, visited) if run.horizon else visited[:, 0]
    return total(run, charged(returns, run, rewards), terminal, len(obs))


def gradient(
    ops: ModuleType, models: RolloutModels, returns: Return, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """J (B,) and its gradient (B, P)."""
    run = imagine(ops, models, returns, params, base, obs, noise, save=True)
    return backward(ops, models, returns, run, len(obs))


def backward(
    ops: ModuleType, models: RolloutModels, returns: Return, run: Imagined, n_policies: int
) -> tuple[Tensor, Tensor]:
    """J (B,) and its gradient (B, P) from what the forward pass left."""
    # The mean over particles enters once, as a share of every weight.
    weights = run.weights * (n_policies / run.weights.shape[1])
    visited, last = inputs(models, run)
    terminal, saved = ops.scalar_forward(returns.critics, last)
    direct = ops.scalar_backward(returns.critics, saved, weights[-1]).unsqueeze(0)
    rewards = visited[:, 0]
    if run.horizon:
        rewards, saved = ops.scalar_forward(returns.reward, visited)
        of_rewards = ops.scalar_backward(returns.reward, saved, weights[:-1].flatten())
        direct = torch.cat([of_rewards.view(run.horizon, *last.shape), direct])
    obs_dim = len(models.obs_std)
    rewards, of_states, of_actions = charged(returns, run, rewards), direct[..., :obs_dim], direct[..., obs_dim:]
    of_states[:-1] /= models.obs_std
    if returns.termination == "soft":
        add_survival(returns, run, weights, rewards, terminal, of_states)
    if run.drift is not None:
        add_anchor(returns, run, weights, n_policies, of_states, of_actions)
    return total(run, rewards, terminal, n_policies), run.rollout.backward(direct)


def add_survival(
    returns: Return, run: Imagined, weights: Tensor, rewards: Tensor, terminal: Tensor, of_states: Tensor
) -> None:
    """Add R_j c'(s_j) / c(s_j) to the gradient of the states (H + 1, N, S), j > 0."""
    earned = weights * torch.cat([rewards, terminal.unsqueeze(0)])
    to_come = earned.flip(0).cumsum(0).flip(0)[1:]
    of_states[1:] += log_survival_gradient(returns, run.states[1:]) * to_come.unsqueeze(-1)


def add_anchor(
    returns: Return, run: Imagined, weights: Tensor, n_policies: int, of_states: Tensor, of_actions: Tensor
) -> None:
    """Add the gradient of the anchor penalty, through the actions and through the base policy's."""
    pull = run.drift * (2 * returns.anchor_coef * weights[:-1]).unsqueeze(-1)
    of_actions[:-1] -= pull
    for j in range(1, run.horizon):
        of_states[j] += run.base.backward(j, pull[j].reshape(n_policies, -1, pull.shape[-1])).flatten(0, 1)
