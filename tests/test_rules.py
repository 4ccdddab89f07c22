"""The rules of an update as objects: what each remembers, its step, and what of the policy it lets act and go on."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from models import make_noise, make_obs, make_policies, make_policy, make_world
from toy_bundles import make_bundle

from fastdwm import Agent, ITPOConfig
from fastdwm.itpo.objective import ReferenceObjective
from fastdwm.itpo.rules import SGD, Adam, Bound, PolicyState, make_rule

B, H, K, M, A = 4, 2, 4, 3, 2
POLICY = make_policy()
EVERY = {"bound": Bound(0.012, 0.05), "sgd": SGD(0.01), "adam": Adam(0.01)}
RULES = pytest.mark.parametrize("rule", EVERY.values(), ids=EVERY)


def base_policies():
    """Base parameters (B, P)."""
    return POLICY.layout.pack(make_policies(B))


def objective(score=None):
    return ReferenceObjective(POLICY, make_world(), ITPOConfig(), score)


def gradient(params, rows=slice(None), seed=7):
    """Of these episodes' policies, each on its own noise."""
    return objective().gradient(params, make_obs(B)[rows], make_noise(H, K, B, M, seed)[:, :, rows])


def lived(rule, params, rows=slice(None), steps=3):
    """The state after some steps and after acting with it, the action and its deviation."""
    state, obs = rule.init(params), make_obs(B)[rows]
    for i in range(steps):
        state, _ = rule.step(state, gradient(state.params, rows, seed=i))
    return rule.act(state, params, POLICY.act(state.params, obs), POLICY.act(params, obs))


def test_the_settings_name_the_rule():
    assert make_rule(ITPOConfig(max_deviation=0.1, action_step=0.03)) == Bound(action_step=0.03, max_deviation=0.1)
    assert make_rule(ITPOConfig(optimiser="sgd", inner_lr=0.1)) == SGD(0.1)
    assert make_rule(ITPOConfig(optimiser="adam", inner_lr=0.1)) == Adam(0.1)


@RULES
def test_a_step_leaves_the_state_before_it_as_it_was(rule):
    start = rule.init(base_policies())
    before = [value.clone() for value in start.tensors]
    found = gradient(start.params)
    state, norm = rule.step(start, found)
    assert all(map(torch.equal, start.tensors, before))
    assert (state.params != start.params).any(1).all()
    torch.testing.assert_close(norm, found.grads.norm(dim=1))


@RULES
def test_every_episode_is_alone(rule):
    """Its steps, its limit and what it remembers do not depend on who else is there."""
    together, *others = lived(rule, base_policies())
    for rows in (slice(0, 1), slice(1, 4)):
        alone, *own = lived(rule, base_policies()[rows], rows)
        for whole, part in zip((*together.tensors, *others), (*alone.tensors, *own), strict=True):
            torch.testing.assert_close(whole[rows], part, rtol=1e-9, atol=1e-12)


@RULES
def test_restarted_and_kept_episodes_take_their_memory_along(rule):
    base, mask = base_policies(), torch.tensor([True, False, True, False])
    state, start = lived(rule, base)[0], rule.init(base)
    mixed, kept = state.where(mask, start), state.keep(mask)
    for value, ours, theirs, some in zip(mixed.tensors, state.tensors, start.tensors, kept.tensors, strict=True):
        assert torch.equal(value[mask], ours[mask]) and torch.equal(value[~mask], theirs[~mask])
        assert torch.equal(some, ours[mask]) and not torch.equal(ours[mask], theirs[mask])
    # The two begin anew: their next step is that of a new episode.
    found = gradient(mixed.params)
    after, fresh = rule.step(mixed, found)[0], rule.step(start, found)[0]
    for ours, theirs in zip(after.tensors, fresh.tensors, strict=True):
        assert torch.equal(ours[~mask], theirs[~mask])


# SGD and Adam.
def test_sgd_adds_the_gradient_times_the_step_size():
    base, found = base_policies(), gradient(base_policies())
    state, _ = SGD(0.1).step(SGD(0.1).init(base), found)
    assert state.memory == ()
    torch.testing.assert_close(state.params, base + 0.1 * found.grads, rtol=1e-14, atol=1e-14)


def test_adam_is_torchs_with_a_count_for_each_episode():
    """The last two episodes begin two steps later."""
    base, rule = base_policies(), Adam(0.01)
    grads = [gradient(base, seed=i) for i in range(5)]
    state = rule.init(base)
    for i, found in enumerate(grads):
        if i == 2:
            state = state.where(torch.tensor([True, True, False, False]), rule.init(base))
        state, _ = rule.step(state, found)
    for rows, given in ((slice(0, 2), grads), (slice(2, 4), grads[2:])):
        leaf = base[rows].clone().requires_grad_()
        optimiser = torch.optim.Adam([leaf], 0.01, maximize=True)
        for found in given:
            leaf.grad = found.grads[rows]
            optimiser.step()
        torch.testing.assert_close(state.params[rows], leaf.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", [SGD(0.1), Adam(0.1)], ids=["sgd", "adam"])
def test_the_papers_rules_let_every_action_pass(rule):
    state = rule.init(base_policies() + 1)
    action, base_action = torch.ones(B, A).double(), -torch.ones(B, A).double()
    base_action[1] = 1
    after, executed, deviation = rule.act(state, base_policies(), action, base_action)
    assert after is state and executed is action and deviation.tolist() == [2, 0, 2, 2]


# The bound.
def test_the_first_step_gains_what_the_actions_would():
    """The return of a small step, as the objective itself has it: action_step along the slope for every number."""
    base, obs, noise = base_policies(), make_obs(B), make_noise(H, K, B, M)
    rule, found = Bound(1e-7, math.inf), objective().gradient(base, obs, noise)
    state, _ = rule.step(rule.init(base), found)
    gain = objective().value(state.params, obs, noise) - objective().value(base, obs, noise)
    slope = found.action_grads.transpose(0, 1).flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(gain, 1e-7 * (H + 1) * A * slope, rtol=1e-4, atol=0)


@pytest.mark.parametrize("scale", [1e-4, 1e6])
def test_the_unit_of_rewards_and_values_does_not_matter(scale):
    """Several steps with all that is remembered: rewards and values in another unit give the same policies."""
    rule, states = EVERY["bound"], []
    for unit in (1.0, scale):

        def score(world, states, actions, unit=unit):
            return unit * (states[-1, ..., 0] - 0.1 * actions.square().sum((0, -1))).mean(1)

        state = rule.init(base_policies())
        for i in range(3):
            found = objective(score).gradient(state.params, make_obs(B), make_noise(H, K, B, M, seed=i))
            state, _ = rule.step(state, found)
        states.append(state)
    assert (states[0].params - base_policies()).norm(dim=1).min() > 1e-4
    for ours, theirs in zip(*(state.tensors for state in states), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_what_is_not_executed_is_not_remembered():
    base, obs = base_policies(), make_obs(B)
    start = POLICY.act(base, obs)
    state = PolicyState(base + 0.1 * torch.randn(base.shape, generator=torch.Generator().manual_seed(0)).double())
    action = POLICY.act(state.params, obs)
    bound = float((action - start).square().mean(1).sqrt().median())
    after, executed, deviation = Bound(0.012, bound).act(state, base, action, start)
    share = (bound / deviation).clamp(max=1).unsqueeze(1)
    assert (share < 1).sum() == 2
    torch.testing.assert_close(executed - start, share * (action - start))
    torch.testing.assert_close(after.params - base, share * (state.params - base))


def root_mean_square(values):
    return np.sqrt(np.square(values).mean(-1))


def played(config, n_decisions=100):
    """Distances (decisions, B) of the executed actions and of the adapted parameters from the base policy's.

    Three episodes in the toy world, which is its own simulator, and damped lest it diverges."""
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
    # The actions of one state say little about those of another: what is not remembered shows in the parameters.
    assert params[50:].max() < 2 * params[10:50].max() and params[50:].max() < 0.2 * free_params[50:].min()
    assert (free_params[99] > 1.3 * free_params[49]).all()
