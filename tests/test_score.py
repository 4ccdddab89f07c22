"""Objectives of the user's own, in plain torch on imagined states and actions, on both backends."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import make_noise, make_obs, make_policies, make_policy, make_world
from toy_agents import BOUND, CONFIG, SGD, Gated, observations
from toy_bundles import make_bundle

from fastdwm import Agent, InputError, ITPOConfig, Policy, imagined_return
from fastdwm.itpo.fused import FusedObjective
from fastdwm.itpo.objective import ReferenceObjective

pytestmark = pytest.mark.filterwarnings("ignore:the agent imagines in plain torch")

POLICY = make_policy()


def default(world, states, actions):
    """Default objective as a score."""
    powers = world.discount ** torch.arange(len(states), dtype=states.dtype).view(-1, 1, 1)
    total = (powers[-1] * world.critic(states[-1], actions[-1]).amin(0)).mean(1)
    if len(states) > 1:
        total = total + (powers[:-1] * world.reward(states[:-1], actions[:-1])).sum(0).mean(1)
    return total


def spread(world, states, actions):
    """Score that is no sum over steps: the best particle, less the distance between particles."""
    reached = states[-1, ..., 0] - 0.1 * actions.square().sum((0, -1))
    return reached.amax(1) - states[-1].var(1, correction=0).sum(-1)


def arguments(horizon, dtype=torch.float64):
    params = POLICY.layout.pack(make_policies(3, seed=11))
    return [x.to(dtype) for x in (params, make_obs(3), make_noise(horizon, 4, 3, 5))]


@pytest.mark.parametrize("horizon", [0, 1, 3])
@pytest.mark.parametrize("kind", [ReferenceObjective, FusedObjective])
def test_the_default_spelled_out_is_the_default(kind, horizon):
    world, args = make_world(), arguments(horizon)
    own, expected = kind(POLICY, world, ITPOConfig(), default), ReferenceObjective(POLICY, world, ITPOConfig())
    theirs = expected.gradient(*args)
    assert theirs.grads.abs().max() > 1e-3 and theirs.action_grads.abs().max() > 1e-3
    torch.testing.assert_close(own.gradient(*args)[:3], theirs[:3], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(own.value(*args), expected.value(*args), rtol=1e-12, atol=1e-12)


def first_actions(world, states, actions):
    """Score of the first actions alone."""
    return actions[0].sum((1, 2))


@pytest.mark.parametrize("score", [spread, first_actions])
def test_any_score_has_its_gradient_on_both_paths(score):
    world, args = make_world(), arguments(3)
    returns, grads, *_ = FusedObjective(POLICY, world, ITPOConfig(), score).gradient(*args)
    leaves = {name: value.clone().requires_grad_() for name, value in POLICY.layout.views(args[0]).items()}
    expected = imagined_return(POLICY, leaves, world, *args[1:], score=score)
    expected_grads = torch.autograd.grad(expected.sum(), list(leaves.values()))
    torch.testing.assert_close(returns, expected.detach(), rtol=1e-12, atol=1e-12)
    for name, theirs in zip(leaves, expected_grads, strict=True):
        torch.testing.assert_close(POLICY.layout.views(grads)[name], theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("config", [CONFIG, replace(SGD, inner_lr=1e-3)], ids=["bound", "sgd"])
def test_an_agent_raises_the_score_on_both_backends(config):
    bundle = make_bundle()
    agents = [Agent.of(bundle, config, score=spread, backend=backend) for backend in ("auto", "reference")]
    assert [agent.backend for agent in agents] == ["fused", "reference"]
    for obs in observations(4, 2):
        first, second = (agent.act(obs) for agent in agents)
        np.testing.assert_allclose(first, second, atol=1e-5)
        diagnosis = agents[0].diagnose()
        assert (diagnosis["objective_after"] > diagnosis["objective_before"]).all()
    assert np.abs(first - Agent.of(bundle, config).act(obs)).max() > 1e-4


def test_a_score_needs_neither_reward_nor_critic_of_ours_to_run_fused():
    """A policy of the user's own takes such a score too."""
    world = replace(make_bundle().world(), reward=None, critic=None)
    fused = Agent(Policy.mlp(make_bundle().policy), world, BOUND, score=spread, backend="fused")
    agent = Agent(Gated().eval(), world, BOUND, score=spread)
    for obs in observations(2, 2):
        assert np.isfinite(fused.act(obs)).all()
        agent.act(obs)
    assert (agent.diagnose()["policy_distance"] > 1e-4).all()


@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_a_score_that_is_not_finite_is_discarded_in_its_episode_alone(backend):
    def broken(world, states, actions):
        values = spread(world, states, actions)
        return values / torch.tensor([1.0, 0.0, 1.0])

    agent, base = (
        Agent.of(make_bundle(), replace(SGD, inner_steps=steps), score=broken, backend=backend) for steps in (1, 0)
    )
    obs = observations(1, 3)[0]
    actions, unadapted = agent.act(obs), base.act(obs)
    assert agent.discarded.tolist() == [0, 1, 0]
    assert (actions == unadapted).all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize(
    ("score", "actual"),
    [
        (lambda world, states, actions: states[-1, ..., 0], r"got \(2, 3\)"),
        (lambda world, states, actions: states.sum(), r"got \(\)"),
        (lambda world, states, actions: 1.0, "got float"),
        (lambda world, states, actions: states[-1, :, 0, 0].detach(), "got a constant"),
    ],
    ids=["particles", "one number", "no tensor", "constant"],
)
def test_a_wrong_score_says_so_in_one_line(backend, score, actual):
    agent = Agent.of(make_bundle(), CONFIG, score=score, backend=backend)
    with pytest.raises(InputError, match=rf"^score: expected [^\n]*{actual}$"):
        agent.act(observations(1, 2)[0])


@pytest.mark.parametrize("change", [{"termination": "soft"}, {"terminal_value": "mean"}], ids=str)
@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_settings_of_the_default_objective_beside_a_score_are_refused(backend, change):
    with pytest.raises(InputError, match=f"^{next(iter(change))}: expected .* beside a score"):
        Agent.of(make_bundle(), replace(CONFIG, **change), score=spread, backend=backend)


def test_a_score_is_differentiated_whatever_the_callers_grad_mode_is():
    agents = [Agent.of(make_bundle(), SGD, score=spread, backend=backend) for backend in ("reference", "fused")]
    for agent in agents:
        expected = agent.act(observations(1, 2)[0])
        agent.reset()
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                np.testing.assert_array_equal(agent.act(observations(1, 2)[0]), expected)
            agent.reset()
