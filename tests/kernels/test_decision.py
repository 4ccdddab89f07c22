"""A decision in one call on a CPU equals that of the single operators to the bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import generator
from toy_bundles import ACTION_DIM, ALL, OBS_DIM, make_bundle

from fastdwm import Agent, ITPOConfig, Policy
from fastdwm.itpo.cpu_episodes import CpuEpisodes
from fastdwm.itpo.decision import Decision
from fastdwm.itpo.episodes import Episodes
from fastdwm.models.nets import init_mlp, mlp_shapes
from fastdwm.models.rebrac import Critics

CONFIG = ITPOConfig(horizon=3, particles=5, action_step=0.02)
CONFIGS = {
    "default": CONFIG,
    "three inner steps, noise of their own": replace(CONFIG, inner_steps=3, noise="step"),
    "noise by time": replace(CONFIG, noise="time", inner_steps=2),
    "soft termination": replace(CONFIG, termination="soft"),
    "mask, anew at every decision": replace(CONFIG, termination="mask", reset="decision"),
    "the critic alone": replace(CONFIG, horizon=0),
}


@pytest.fixture(scope="module")
def bundle():
    return make_bundle(*ALL)


def pair(bundle, config, n_episodes, world=None) -> tuple[CpuEpisodes, Episodes]:
    """The same episodes twice, for decisions in one call and by single operators."""
    return episodes_of(Agent.of(bundle, config, world=world), n_episodes)


def episodes_of(agent, n_episodes) -> tuple[CpuEpisodes, Episodes]:
    context = agent.context
    return CpuEpisodes(context, n_episodes, OBS_DIM), Episodes(context, n_episodes, OBS_DIM)


def assert_equal(one: CpuEpisodes, single: Episodes, obs) -> Decision:
    result, expected = one.decide(obs), single.decide(obs)
    for name in ("action", "grad_norm", "inner_steps", "discarded", "deviation"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), err_msg=name)
    torch.testing.assert_close(result.objective, expected.objective, equal_nan=True)
    for value, other in zip(one.adapted.tensors, single.adapted.tensors, strict=True):
        np.testing.assert_array_equal(value, other)
    return result


def observations(n_episodes, seed=0):
    return torch.randn(n_episodes, OBS_DIM, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n_episodes", [1, 3])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_decisions_are_those_of_the_single_operators(bundle, config, n_episodes):
    one, single = pair(bundle, config, n_episodes)
    for t in range(3):
        assert_equal(one, single, observations(n_episodes, t))
    assert not torch.equal(one.params, one.base)


def test_actions_within_the_bound_and_clipped_ones(bundle):
    one, single = pair(bundle, replace(CONFIG, max_deviation=0.03), 3)
    clipped = [assert_equal(one, single, observations(3, t)).deviation > 0.03 for t in range(5)]
    assert 0 < torch.stack(clipped).float().mean() < 1


@pytest.mark.parametrize("world", ALL)
def test_every_world_model(bundle, world):
    one, single = pair(bundle, CONFIG, 2, world)
    for t in range(3):
        assert_equal(one, single, observations(2, t))


@pytest.mark.parametrize("functions", [("tanh", "clip"), ("relu", "clip")], ids=str)
def test_policies_and_critics_of_other_libraries(bundle, functions):
    """Unequal widths, no layer norm, ten critics."""
    params = init_mlp(mlp_shapes((OBS_DIM, 40, 20, 33, ACTION_DIM)), generator())
    # Some of the actions are clipped.
    params["w3"] *= 10
    sizes = OBS_DIM + ACTION_DIM, 24, 31, 1
    critics = Critics(init_mlp(mlp_shapes(sizes, copies=10), generator(1)), functions[0])
    config = replace(CONFIG, max_deviation=0.05)
    agent = Agent(Policy.mlp(params, *functions), replace(bundle.world(), critic=critics), config)
    one, single = episodes_of(agent, 3)
    actions = torch.stack([assert_equal(one, single, observations(3, t)).action for t in range(3)])
    assert 0 < (actions.abs() == 1).float().mean() < 1 and not torch.equal(one.params, one.base)


def test_episodes_restart_and_leave(bundle):
    one, single = pair(bundle, CONFIG, 4)
    for mask in ([True, False, True, True], [False, True, True], [True, False]):
        n_episodes = len(mask)
        assert_equal(one, single, observations(n_episodes))
        for episodes in (one, single):
            episodes.restart(torch.tensor([True] + [False] * (n_episodes - 1)))
            episodes.keep(torch.tensor(mask))
        assert_equal(one, single, observations(len(one), 1))


@pytest.mark.parametrize("inner_steps", [1, 2])
@pytest.mark.parametrize("broken", ["obs", "params"])
def test_only_the_episode_that_is_not_finite_is_rolled_back(bundle, broken, inner_steps):
    one, single = pair(bundle, replace(CONFIG, inner_steps=inner_steps), 3)
    assert_equal(one, single, observations(3))
    obs = observations(3, 1)
    if broken == "obs":
        obs[1] = 3e38
    else:
        for episodes in (one, single):
            episodes.params[1, 20] = torch.nan
    before = one.params.clone()
    decision = assert_equal(one, single, obs)
    assert decision.discarded.tolist() == [False, True, False]
    np.testing.assert_array_equal(one.params[1], before[1])
    assert not torch.equal(one.params[0], before[0])


def test_threads_share_the_episodes(bundle, monkeypatch):
    from fastdwm_kernels import cpu

    monkeypatch.setattr(cpu, "MIN_PRODUCTS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    one, _ = pair(bundle, CONFIG, 5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone, _ = pair(bundle, CONFIG, 5)
    for t in range(3):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        decision = one.decide(observations(5, t))
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        np.testing.assert_array_equal(decision.action, alone.decide(observations(5, t)).action)


def test_the_default_decides_in_one_call(bundle):
    agent = Agent.of(bundle)
    agent.act(observations(1)[0])
    assert type(agent.episodes) is CpuEpisodes


@pytest.mark.parametrize(
    "changes, settings",
    [
        ({"optimiser": "sgd", "action_step": ITPOConfig().action_step}, {}),
        ({"inner_steps": 0}, {}),
        ({}, {"deadline_ms": 100.0}),
        ({}, {"backend": "reference"}),
    ],
)
def test_everything_else_is_decided_by_single_operators(bundle, changes, settings):
    agent = Agent.of(bundle, replace(CONFIG, **changes), **settings)
    agent.act(observations(1)[0])
    assert type(agent.episodes) is Episodes
