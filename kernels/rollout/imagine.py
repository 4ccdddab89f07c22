"""The imagined return and its gradient, derived by hand: no autograd tape, every operator called a few times.

Forward, for j = 0..H-1:  a_j = pi(s_j),  s_{j+1} = s_j + m + d y(s_j, a_j, z_j),  W_{j+1} = W_j g c(s_{j+1}), W_0 = 1,
  J = 1/M sum_m [ sum_j W_j (r(s_j, a_j) - l |a_j - pi_0(s_j)|^2) + W_H Q(s_H, pi(s_H)) ].
Backward, with lam_j = dJ/ds_j at fixed parameters and V_j the return from step j on per unit of weight:
  V_H = Q,  lam_H = W_H (Q_s + Pi_s' Q_a),
  lam_{j+1} += W_j g V_{j+1} c'(s_{j+1})                                       (soft termination only)
  p_j = W_j r_a + F_a' lam_{j+1},   lam_j = W_j r_s + F_s' lam_{j+1} + Pi_s' p_j,   V_j = r_j + g c(s_{j+1}) V_{j+1}
and dJ/dpsi = sum_j Pi_psi(j)' p_j, one product over the rows of all steps.  Source: [ITPO] v1, Eq. 2-3.

Reward and critics are scalar functions off the serial chain: their values and gradients at all visited states come from
one call each. `ops` is `torch_ops`, `compiled_ops` or `triton_ops`: one derivation, three executions.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastdwm.kernels.frozen_mlp.reference import FrozenMLP
from fastdwm.kernels.layout import Layout
from fastdwm.kernels.reverse_step.weights import ChainWeights


@dataclass(frozen=True)
class RolloutModels:
    """The frozen models and the settings of the objective; all tensors of one dtype and device.

    policy: layout of the flat policy parameters.   chain: sampler of the normalised change.
    reward: of (normalised obs, action).   critics: of (obs, action).
    obs_mean, obs_std, delta_mean, delta_std: (S,).   limits: (index, low, high) of the bounded coordinates.
    termination: "none", "mask" or "soft" with sigmoids of `width` (one for each limit).
    anchor_coef: weight l of the squared distance from the base policy's action.
    """

    policy: Layout
    chain: ChainWeights
    reward: FrozenMLP
    critics: FrozenMLP
    obs_mean: Tensor
    obs_std: Tensor
    delta_mean: Tensor
    delta_std: Tensor
    discount: float
    limits: tuple[tuple[int, float, float], ...] = ()
    termination: str = "none"
    width: tuple[float, ...] = ()
    anchor_coef: float = 0.0


@dataclass(frozen=True)
class Imagined:
    """What the forward pass leaves behind; per step, rows (B, M, .) or (B M,).

    states, weights: H + 1.   chains, survival, drift (a_j - pi_0(s_j), empty without an anchor): H.
    """

    policy: Any
    base: Any
    states: list[Tensor]
    actions: list[Tensor]
    chains: list[Any]
    survival: list[Tensor]
    weights: list[Tensor]
    drift: list[Tensor]


def imagine(
    ops: ModuleType, models: RolloutModels, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor, save: bool
) -> Imagined:
    """Roll B policies (B, P) out for H steps with M particles; noise (H, K, B, M, S)."""
    horizon, steps, n_policies, particles, obs_dim = noise.shape
    tapes = [
        ops.PolicyTape(models.policy, flat, n_steps, particles, models.chain.precision)
        for flat, n_steps in ((params, horizon + 1), (base, horizon if models.anchor_coef else 0))
    ]
    state = obs.unsqueeze(1).repeat(1, particles, 1)
    run = Imagined(*tapes, [], [], [], [], [state.new_ones(n_policies * particles)], [])
    for j in range(horizon + 1):
        action = run.policy.forward(j, state)
        run.states.append(state)
        run.actions.append(action)
        if j == horizon:
            break
        if models.anchor_coef:
            run.drift.append(action - run.base.forward(j, state))
        rows = ((state - models.obs_mean) / models.obs_std).view(-1, obs_dim)
        y, saved = ops.chain_forward(
            models.chain, rows, action.reshape(len(rows), -1), noise[j].reshape(steps, -1, obs_dim), save
        )
        state = state + (y * models.delta_std).add_(models.delta_mean).view_as(state)
        run.chains.append(saved)
        run.survival.append(survival(models, state.view(-1, obs_dim)))
        run.weights.append(run.weights[-1] * models.discount * run.survival[-1])
    return run


def survival(models: RolloutModels, rows: Tensor) -> Tensor:
    """c (N,) of states (N, S): 1, or 0 beyond a limit, or the product of sigmoids of the distances to the limits."""
    alive = rows.new_ones(len(rows))
    if models.termination == "mask":
        for index, low, high in models.limits:
            alive *= (rows[:, index] > low) & (rows[:, index] < high)
    elif models.termination == "soft":
        for (index, low, high), width in zip(models.limits, models.width, strict=True):
            x = rows[:, index]
            alive *= torch.sigmoid((x - low) / width) * torch.sigmoid((high - x) / width)
    return alive


def survival_gradient(models: RolloutModels, rows: Tensor, alive: Tensor) -> Tensor:
    """dc/ds (N, S) of the soft termination: d log sigmoid(x) = sigmoid(-x)."""
    slope = torch.zeros_like(rows)
    for (index, low, high), width in zip(models.limits, models.width, strict=True):
        x = rows[:, index]
        slope[:, index] += (torch.sigmoid((low - x) / width) - torch.sigmoid((x - high) / width)) / width
    return slope * alive.unsqueeze(1)


def inputs(models: RolloutModels, run: Imagined) -> tuple[Tensor | None, Tensor]:
    """Inputs of the reward (H N, S + A), or None without steps, and of the critics (N, S + A)."""
    last = torch.cat([run.states[-1], run.actions[-1]], -1).flatten(0, 1)
    if not run.chains:
        return None, last
    states, actions = torch.stack(run.states[:-1]), torch.stack(run.actions[:-1])
    return torch.cat([(states - models.obs_mean) / models.obs_std, actions], -1).flatten(0, 2), last


def charge(models: RolloutModels, run: Imagined) -> Tensor | float:
    """Anchor penalty l |a_j - pi_0(s_j)|^2, (H, N)."""
    if not models.anchor_coef:
        return 0.0
    return models.anchor_coef * torch.stack([drift.square().sum(-1).flatten() for drift in run.drift])


def value(ops: ModuleType, models: RolloutModels, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor) -> Tensor:
    """J (B,) alone."""
    run = imagine(ops, models, params, base, obs, noise, save=False)
    visited, last = inputs(models, run)
    total = run.weights[-1] * ops.scalar_value(models.critics, last)
    if visited is not None:
        rewards = ops.scalar_value(models.reward, visited).view(len(run.chains), -1) - charge(models, run)
        total = total + (torch.stack(run.weights[:-1]) * rewards).sum(0)
    return total.view(len(obs), -1).mean(1)


def gradient(
    ops: ModuleType, models: RolloutModels, params: Tensor, base: Tensor, obs: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """J (B,) and its gradient (B, P)."""
    return backward(ops, models, imagine(ops, models, params, base, obs, noise, save=True))


def backward(ops: ModuleType, models: RolloutModels, run: Imagined) -> tuple[Tensor, Tensor]:
    """J (B,) and its gradient (B, P) from what the forward pass left, the last step first."""
    horizon, (n_policies, particles, obs_dim) = len(run.chains), run.states[0].shape
    # The mean over particles enters once, as a share of every weight.
    weights = torch.stack(run.weights) / particles
    visited, last = inputs(models, run)
    to_go, saved = ops.scalar_forward(models.critics, last)
    dlast = ops.scalar_backward(models.critics, saved, weights[-1])
    if visited is not None:
        rewards, saved = ops.scalar_forward(models.reward, visited)
        dvisited = ops.scalar_backward(models.reward, saved, weights[:-1].flatten()).view(horizon, *dlast.shape)
        rewards = rewards.view(horizon, -1) - charge(models, run)
    lam, p = dlast[:, :obs_dim], dlast[:, obs_dim:]
    for j in range(horizon, -1, -1):
        if j < horizon:
            if models.termination == "soft":
                slope = survival_gradient(models, run.states[j + 1].view(-1, obs_dim), run.survival[j])
                lam = lam + slope * (weights[j] * models.discount * to_go).unsqueeze(1)
            to_go = rewards[j] + models.discount * run.survival[j] * to_go
            dobs, daction = ops.chain_backward(models.chain, lam * models.delta_std, run.chains[j])
            lam = lam + (dobs + dvisited[j, :, :obs_dim]) / models.obs_std
            p = daction + dvisited[j, :, obs_dim:]
        grad = p.reshape(n_policies, particles, -1)
        if models.anchor_coef and j < horizon:
            pull = run.drift[j] * (2 * models.anchor_coef * weights[j]).view(n_policies, particles, 1)
            grad = grad - pull
            lam = lam + run.base.backward(j, pull).flatten(0, 1)
        ds = run.policy.backward(j, grad, need_dx=j > 0)
        if j > 0:
            lam = lam + ds.flatten(0, 1)
    return to_go.view(n_policies, -1).mean(1), run.policy.weight_gradient()
