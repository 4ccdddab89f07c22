"""The imagined return J(psi) of a policy in the world model: the reference path, plain torch autograd."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.models.nets import Params
from fastdwm.models.rebrac import critics, policy
from fastdwm.models.reward import RewardModel
from fastdwm.tasks import Limit


class Dynamics(Protocol):
    """A transition model to imagine with: `Diffusion`, `MeanFlow` or `MLPDynamics`."""

    obs_mean: Tensor
    obs_std: Tensor
    delta_mean: Tensor
    delta_std: Tensor

    @property
    def noise_steps(self) -> int:
        """Gaussian vectors that one transition consumes."""

    @property
    def stochastic(self) -> bool:
        """Whether the noise changes anything."""

    def next_obs(self, obs: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """Next observation (..., S) of obs (..., S), action (..., A) and noise (noise_steps, ..., S)."""

    def chain(self) -> tuple[Params, Tensor, Tensor]:
        """The same as a reverse chain: parameters, embedding and coefficients for `pack_chain`."""

    def chain_noise(self, noise: Tensor) -> Tensor:
        """Noise (H, noise_steps, B, M, S) as that chain reads it, (H, K, B, M, S)."""


@dataclass(frozen=True)
class World:
    """The frozen models that imagination runs in; all tensors of one dtype and device, none requiring gradients."""

    dynamics: Dynamics
    reward: RewardModel
    critics: Params
    discount: float
    limits: tuple[Limit, ...] = ()


def terminal_value(world: World, obs: Tensor, action: Tensor, kind: str = "min") -> Tensor:
    """Value (...) of obs (..., S) and action (..., A): the smaller, the mean or the first of the critics."""
    q = critics(world.critics, obs, action)
    return {"min": lambda: q.amin(0), "mean": lambda: q.mean(0), "first": lambda: q[0]}[kind]()


def survival(world: World, obs: Tensor, config: ITPOConfig) -> Tensor:
    """Probability (...) that the episode goes on in obs (..., S), raw units: one minus d of method `termination`.

    mask: 0 or 1, without gradient.   soft: product of sigmoids of the distance to each bound, differentiable.
    """
    alive = torch.ones_like(obs[..., 0])
    if config.termination == "none":
        return alive
    for limit in world.limits:
        x = obs[..., limit.index]
        if config.termination == "mask":
            alive = alive * ((x > limit.low) & (x < limit.high))
        else:
            width = config.termination_temperature * world.dynamics.obs_std[limit.index]
            alive = alive * torch.sigmoid((x - limit.low) / width) * torch.sigmoid((limit.high - x) / width)
    return alive


def imagined_return(
    params: Params, base: Params, world: World, obs: Tensor, noise: Tensor, config: ITPOConfig
) -> Tensor:
    """J of B policies, each in its own real state: mean over M imagined rollouts of H steps and a terminal value.

    params: policy parameters (B, ...); base: the unadapted policy's (B, ...), used by the anchor penalty alone.
    obs: (B, S) raw units.   noise: (H, K, B, M, S) standard normal.
    Returns (B,), in units of the reward the critics were trained on; differentiable in `params`.
        J = 1/M sum_m [ sum_{j<H} g^j C_j r(s_j, pi(s_j)) + g^H C_H Q(s_H, pi(s_H)) ],   s_{j+1} = f(s_j, pi(s_j), z_j)
    with C_0 = 1 and C_{j+1} = C_j survival(s_{j+1}).
    Source: [ITPO] v1, Eq. 2-3. Deviation: the continuation C_j, which is 1 throughout with termination "none".
    """
    horizon, n_particles = noise.shape[0], noise.shape[3]
    state = obs.unsqueeze(1).expand(-1, n_particles, -1)
    weight = torch.ones_like(state[..., 0])
    total = torch.zeros_like(weight)
    for j in range(horizon):
        action = policy(params, state)
        total = total + weight * world.reward(state, action)
        if config.anchor_coef:
            drift = (action - policy(base, state)).square().sum(-1)
            total = total - weight * config.anchor_coef * drift
        state = world.dynamics.next_obs(state, action, noise[j])
        weight = weight * world.discount * survival(world, state, config)
    value = terminal_value(world, state, policy(params, state), config.terminal_value)
    return (total + weight * value).mean(1)
