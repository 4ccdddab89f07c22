"""The imagined return J(psi) of a policy in the world model: the reference path, plain torch autograd."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.errors import InputError
from fastdwm.models.nets import Params
from fastdwm.models.policy import Policy
from fastdwm.models.world import World, terminal_value

Score = Callable[[World, Tensor, Tensor], Tensor]
"""score(world, states, actions) -> (B,): states (H + 1, B, M, S), actions (H + 1, B, M, A)"""


def imagined_return(
    policy: Policy,
    params: Params,
    world: World,
    obs: Tensor,
    noise: Tensor,
    config: ITPOConfig = ITPOConfig(),
    *,
    score: Score | None = None,
) -> Tensor:
    """J of B policies, each in its own real state: mean over M imagined rollouts of H steps and a terminal value.

    params: B copies of the policy's parameters, (B, ...).   obs: (B, S) raw units.
    noise: (H, noise_steps, B, M, S) standard normal; its shape alone sets H and M.
    Returns (B,), in units of the reward that the critic was trained on; differentiable in `params`.
        J = 1/M sum_m [ sum_{j<H} g^j C_j r(s_j, pi(s_j)) + g^H C_H Q(s_H, pi(s_H)) ],   s_{j+1} = f(s_j, pi(s_j), z_j)
    with C_0 = 1 and C_{j+1} = C_j survival(s_{j+1}).
    score(world, states, actions): your own J (B,), of all states (H + 1, B, M, S) and the actions in them
    (H + 1, B, M, A), differentiable. Raises InputError for another shape, or beside settings of the default J.
    Source: [ITPO] v1, Eq. 2-3. Deviation: the continuation C_j, which is 1 throughout with termination "none".
    """
    require_plain(config, score)
    states, actions = map(torch.stack, imagine(policy, params, world, obs, noise))
    return scored_return(world, states, actions, config, score)


def scored_return(world: World, states: Tensor, actions: Tensor, config: ITPOConfig, score: Score | None) -> Tensor:
    """J (B,) of states (H + 1, B, M, S) and actions (H + 1, B, M, A), or the user's score in its place."""
    return default_return(world, states, actions, config) if score is None else scored(score, world, states, actions)


def require_plain(config: ITPOConfig, score: Score | None) -> None:
    """Raise InputError if a score is given together with settings of the default objective."""
    for name in ("termination", "terminal_value") if score is not None else ():
        value, default = getattr(config, name), getattr(ITPOConfig, name)
        if value != default:
            raise InputError(f"{name}: expected {default} beside a score, which has its own objective, got {value}")


def scored(score: Score, world: World, states: Tensor, actions: Tensor) -> Tensor:
    """The user's score (B,); raises InputError for another shape, or for a score that autograd cannot differentiate."""
    values, expected = score(world, states, actions), (states.shape[1],)
    if not isinstance(values, Tensor) or values.shape != expected:
        actual = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"score: expected a tensor of shape {expected}, one value for each episode, got {actual}")
    if actions.requires_grad and torch.is_grad_enabled() and not values.requires_grad:
        raise InputError("score: expected differentiable operations on states or actions, got a constant")
    return values.to(states.dtype)


def imagine(
    policy: Policy, params: Params, world: World, obs: Tensor, noise: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Imagine H + 1 states (B, M, S), and the actions (B, M, A) of B policies in them."""
    states = [obs.unsqueeze(1).expand(-1, noise.shape[3], -1)]
    actions = [policy.apply(params, states[0])]
    for z in noise:
        next_obs = world.dynamics.next_obs(states[-1], actions[-1], z)
        if next_obs.shape != states[0].shape:
            expected = f"observations of shape {tuple(states[0].shape)}"
            raise InputError(f"dynamics: expected {expected} from next_obs, got {tuple(next_obs.shape)}")
        states.append(next_obs)
        actions.append(policy.apply(params, next_obs))
    return states, actions


def default_return(world: World, states: Tensor, actions: Tensor, config: ITPOConfig) -> Tensor:
    """J (B,) of `imagined_return`."""
    weights = world.discount * survival(world, states[1:], config)
    weights = torch.cat([torch.ones_like(states[:1, ..., 0]), weights]).cumprod(0)
    total = weights[-1] * terminal_value(world, states[-1], actions[-1], config.terminal_value)
    if len(states) > 1:
        rewards = world.reward(states[:-1], actions[:-1])
        if rewards.shape != weights[:-1].shape:
            raise InputError(f"reward: expected shape {tuple(weights[:-1].shape)}, got {tuple(rewards.shape)}")
        total = total + (weights[:-1] * rewards).sum(0)
    return total.mean(1)


def survival(world: World, obs: Tensor, config: ITPOConfig) -> Tensor:
    """Probability (...) that the episode goes on in obs (..., S), raw units, by config.termination.

    none: 1.   mask: 0 or 1, no gradient.   soft: product of sigmoids of the distances to the bounds, differentiable.
    Always 0 where world.terminates holds.   Raises InputError if that returns no bool of shape (...).
    """
    alive = torch.ones_like(obs[..., 0])
    if world.terminates is not None:
        ended = world.terminates(obs.detach())
        valid = isinstance(ended, Tensor) and ended.dtype == torch.bool and ended.shape == alive.shape
        if not valid:
            actual = f"{ended.dtype} of {tuple(ended.shape)}" if isinstance(ended, Tensor) else type(ended).__name__
            raise InputError(f"terminates: expected bool of shape {tuple(alive.shape)}, got {actual}")
        alive = alive * ~ended
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
