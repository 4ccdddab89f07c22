"""Update rules: their steps, their memory, and the bound on actions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import make_noise, make_obs, make_policies, make_policy, make_world
from toy_bundles import make_bundle

from fastdwm import Agent, ITPOConfig
from fastdwm.itpo.objective import ReferenceObjective
from fastdwm.itpo.rules import SGD, Adam, Bound

B, H, K, M, A = 4, 2, 4, 3, 2
POLICY = make_policy()
EVERY = {"bound": Bound(0.012, 0.05), "sgd": SGD(0.01), "adam": Adam(0.01)}


def base_policies():
    """Base parameters (B, P)."""
    return POLICY.layout.pack(make_policies(B))


def objective(score=None):
    return ReferenceObjective(POLICY, make_world(), ITPOConfig(), score)


def gradient(params, rows=slice(None), seed=7):
    """Gradients of these episodes' policies, each on its own noise."""
    return objective().gradient(params, make_obs(B)[rows], make_noise(H, K, B, M, seed)[:, :, rows])


def test_adam_is_torchs_with_a_count_for_each_episode():
    """The last two episodes begin two steps later."""
    base, rule = base_policies(), Adam(0.01)
    grads = [gradient(base, seed=i) for i in range(5)]
    state = rule.init(base)
    for i, result in enumerate(grads):
        if i == 2:
            state = state.where(torch.tensor([True, True, False, False]), rule.init(base))
        state, _ = rule.step(state, result)
    for rows, own_grads in ((slice(0, 2), grads), (slice(2, 4), grads[2:])):
        leaf = base[rows].clone().requires_grad_()
        optimiser = torch.optim.Adam([leaf], 0.01, maximize=True)
        for result in own_grads:
            leaf.grad = result.grads[rows]
            optimiser.step()
        torch.testing.assert_close(state.params[rows], leaf.detach(), rtol=1e-9, atol=1e-12)


def test_the_first_step_gains_what_the_actions_would():
    """A small step gains as much return as action_step along the slope of every number."""
    base, obs, noise = base_policies(), make_obs(B), make_noise(H, K, B, M)
    rule, result = Bound(1e-7, math.inf), objective().gradient(base, obs, noise)
    state, _ = rule.step(rule.init(base), result)
    gain = objective().value(state.params, obs, noise) - objective().value(base, obs, noise)
    slope = result.action_grads.transpose(0, 1).flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(gain, 1e-7 * (H + 1) * A * slope, rtol=1e-4, atol=0)


@pytest.mark.parametrize("scale", [1e-4, 1e6])
def test_the_unit_of_rewards_and_values_does_not_matter(scale):
    """Rewards and values in another unit give the same policies after several steps."""
    rule, states = EVERY["bound"], []
    for unit in (1.0, scale):

        def score(world, states, actions, unit=unit):
            return unit * (states[-1, ..., 0] - 0.1 * actions.square().sum((0, -1))).mean(1)

        state = rule.init(base_policies())
        for i in range(3):
            result = objective(score).gradient(state.params, make_obs(B), make_noise(H, K, B, M, seed=i))
            state, _ = rule.step(state, result)
        states.append(state)
    assert (states[0].params - base_policies()).norm(dim=1).min() > 1e-4
    for ours, theirs in zip(*(state.tensors for state in states), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def root_mean_square(values):
    return np.sqrt(np.square(values).mean(-1))


def played(config, n_decisions=100):
    """Distances (decisions, B) of executed actions and adapted parameters from the base policy's.

    Three episodes run in the toy world model itself, damped so that it does not diverge.
    """
    bundle = make_bundle()
    agent, base = Agent.of(bundle, config), Agent.of(bundle, replace(config, inner_steps=0))
    dynamics, generator = bundle.world().dynamics, torch.Generator().manual_seed(1)
    obs, actions, params = torch.randn(3, bundle.obs_dim, generator=generator), [], []
    for _ in range(n_decisions):
        action = agent.act(obs)
        actions.append(root_mean_square(action - base.act(obs)))
        params.append(agent.diagnose()["policy_distance"])
        noise = torch.randn(dynamics.noise_steps, *obs.shape, generator=generator)
        obs = 0.8 * dynamics.next_obs(obs, torch.from_numpy(action), noise)
    assert agent.discarded.sum() == 0
    return np.array(actions), np.array(params)


@pytest.mark.parametrize("inner_steps", [1, 4])
def test_over_a_hundred_decisions_nothing_leaves_the_bound_or_runs_away(inner_steps):
    config, bound = ITPOConfig(horizon=2, particles=2, inner_steps=inner_steps), 0.04
    actions, params = played(replace(config, max_deviation=bound))
    free_actions, free_params = played(replace(config, max_deviation=math.inf))
    assert actions.max() <= bound * (1 + 1e-5) and actions[50:].min() > 0.2 * bound
    assert free_actions[50:].min() > 2 * bound
    # Actions in one state say little about other states; the parameters show that clipped updates are forgotten.
    assert params[50:].max() < 2 * params[10:50].max() and params[50:].max() < 0.2 * free_params[50:].min()
    assert (free_params[99] > 1.3 * free_params[49]).all()
