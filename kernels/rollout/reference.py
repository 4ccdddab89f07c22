"""The imagined return and its gradient, derived by hand: no autograd tape, every operator called a few times.

Forward, for j = 0..H-1:  a_j = pi(s_j),  s_{j+1} = s_j + m + d y(s_j, a_j, z_j),  W_{j+1} = W_j g c(s_{j+1}), W_0 = 1,
  J = 1/M sum_m [ sum_j W_j (r(s_j, a_j) - l |a_j - pi_0(s_j)|^2) + W_H Q(s_H, pi(s_H)) ].
Backward, with lam_j = M dJ/ds_j at fixed parameters and V_j the return from step j on per unit of weight:
  V_H = Q,  lam_H = W_H (Q_s + Pi_s' Q_a),
  lam_{j+1} += W_j g V_{j+1} c'(s_{j+1})                                       (soft termination only)
  p_j = W_j r_a + F_a' lam_{j+1},   lam_j = W_j r_s + F_s' lam_{j+1} + Pi_s' p_j,   V_j = r_j + g c(s_{j+1}) V_{j+1}
and dJ/dpsi = 1/M sum_j Pi_psi(j)' p_j, one product over the rows of all steps.  Source: [ITPO] v1, Eq. 2-3.

Reward and critics are scalar functions off the serial chain: their values and gradients at all visited states come from
one call each.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdwm.kernels.frozen_mlp.reference import (
    FrozenMLP,
    frozen_mlp_backward_reference,
    frozen_mlp_forward_reference,
    frozen_mlp_reference,
)
from fastdwm.kernels.layout import Params
from fastdwm.kernels.policy.reference import (
    policy_backward_reference,
    policy_forward_reference,
    policy_weight_grads_reference,
)
from fastdwm.kernels.reverse_chain.reference import reverse_chain_backward_reference, reverse_chain_reference
from fastdwm.kernels.reverse_step.weights import ChainWeights


@dataclass(frozen=True)
class RolloutModels:
    """The frozen models and the settings of the objective; all tensors of one dtype and device.

    chain: sampler of the normalised change.   reward: of (normalised obs, action).   critics: of (obs, action).
    obs_mean, obs_std, delta_mean, delta_std: (S,).   limits: (index, low, high) of the bounded coordinates.
    termination: "none", "mask" or "soft" with sigmoids of `width` (one for each limit).
    anchor_coef: weight l of the squared distance from the base policy's action.
    """

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


@dataclass
class Imagined:
    """What the forward pass leaves for the gradient; lists over steps, rows (B, M, .), rewards per row (B M)."""

    states: list[Tensor]
    actions: list[Tensor]
    hidden: list[list[Tensor]]
    chains: list
    survival: list[Tensor]
    weights: list[Tensor]
    drift: list[tuple[Tensor, Tensor, list[Tensor]]]


def imagine(models: RolloutModels, params: Params, base: Params, obs: Tensor, noise: Tensor, save: bool) -> Imagined:
    """Roll B policies out for H steps with M particles; noise (H, K, B, M, S)."""
    horizon, steps, n_policies, particles, obs_dim = noise.shape
    state = obs.unsqueeze(1).repeat(1, particles, 1)
    run = Imagined([], [], [], [], [], [state.new_ones(n_policies * particles)], [])
    for j in range(horizon + 1):
        action, hidden = policy_forward_reference(params, state)
        run.states.append(state)
        run.actions.append(action)
        run.hidden.append(hidden)
        if j == horizon:
            break
        if models.anchor_coef:
            anchor, anchor_hidden = policy_forward_reference(base, state)
            run.drift.append((action - anchor, anchor, anchor_hidden))
        rows = ((state - models.obs_mean) / models.obs_std).view(-1, obs_dim)
        y, saved = reverse_chain_reference(
            models.chain, rows, action.view(len(rows), -1), noise[j].reshape(steps, -1, obs_dim), save
        )
        run.chains.append(saved)
        state = state + (y * models.delta_std).add_(models.delta_mean).view_as(state)
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
    if len(run.states) == 1:
        return None, last
    states, actions = torch.stack(run.states[:-1]), torch.stack(run.actions[:-1])
    return torch.cat([(states - models.obs_mean) / models.obs_std, actions], -1).flatten(0, 2), last


def rollout_value_reference(models: RolloutModels, params: Params, base: Params, obs: Tensor, noise: Tensor) -> Tensor:
    """J (B,) alone."""
    run = imagine(models, params, base, obs, noise, save=False)
    visited, last = inputs(models, run)
    value = run.weights[-1] * frozen_mlp_reference(models.critics, last)
    if visited is not None:
        rewards = frozen_mlp_reference(models.reward, visited).view(len(run.chains), -1)
        rewards = rewards - anchor_charge(models, run)
        value = value + (torch.stack(run.weights[:-1]) * rewards).sum(0)
    return value.view(len(obs), -1).mean(1)


def anchor_charge(models: RolloutModels, run: Imagined) -> Tensor | float:
    """l |a_j - pi_0(s_j)|^2, (H, N)."""
    if not models.anchor_coef:
        return 0.0
    return models.anchor_coef * torch.stack([drift.square().sum(-1).flatten() for drift, _, _ in run.drift])


def rollout_gradient_reference(
    models: RolloutModels, params: Params, base: Params, obs: Tensor, noise: Tensor
) -> tuple[Tensor, Params]:
    """J (B,) and its gradient (B, ...) with respect to every policy parameter."""
    run = imagine(models, params, base, obs, noise, save=True)
    n_policies, particles, obs_dim = run.states[0].shape
    horizon = len(run.chains)
    # The mean over particles enters once, as a share of every weight.
    weights = torch.stack(run.weights) / particles
    visited, last = inputs(models, run)
    value, saved = frozen_mlp_forward_reference(models.critics, last)
    dlast = frozen_mlp_backward_reference(models.critics, saved, weights[-1])
    if visited is not None:
        rewards, saved = frozen_mlp_forward_reference(models.reward, visited)
        dvisited = frozen_mlp_backward_reference(models.reward, saved, weights[:-1].flatten())
        rewards = rewards.view(horizon, -1) - anchor_charge(models, run)
        dvisited = dvisited.view(horizon, -1, dlast.shape[1])
    lam, p = dlast[:, :obs_dim], dlast[:, obs_dim:]
    dz_steps = []
    for j in range(horizon, -1, -1):
        if j < horizon:
            weight = weights[j].unsqueeze(1)
            if models.termination == "soft":
                rows = run.states[j + 1].flatten(0, 1)
                slope = survival_gradient(models, rows, run.survival[j])
                lam = lam + weight * models.discount * value.unsqueeze(1) * slope
            value = rewards[j] + models.discount * run.survival[j] * value
            dobs, daction = reverse_chain_backward_reference(models.chain, lam * models.delta_std, run.chains[j])
            lam = lam + (dobs + dvisited[j, :, :obs_dim]) / models.obs_std
            p = daction + dvisited[j, :, obs_dim:]
        grad = p.reshape(n_policies, particles, -1)
        if models.anchor_coef and j < horizon:
            drift, anchor, anchor_hidden = run.drift[j]
            pull = drift * (2 * models.anchor_coef * weight).view(n_policies, particles, 1)
            grad = grad - pull
            lam = lam + policy_backward_reference(base, anchor_hidden, anchor, pull)[0].flatten(0, 1)
        ds, dz = policy_backward_reference(params, run.hidden[j], run.actions[j], grad, need_dx=j > 0)
        dz_steps.append(dz)
        if j > 0:
            lam = lam + ds.flatten(0, 1)
    return value.view(n_policies, -1).mean(1), weight_gradient(run, dz_steps[::-1])


def weight_gradient(run: Imagined, dz_steps: list[list[Tensor]]) -> Params:
    """Gradient (B, ...) of all parameters from the rows of all steps, one batched product for each layer."""
    hidden = [torch.cat(layer, 1) for layer in zip(*run.hidden, strict=True)]
    dz = [torch.cat(layer, 1) for layer in zip(*dz_steps, strict=True)]
    return policy_weight_grads_reference(torch.cat(run.states, 1), hidden, dz)
