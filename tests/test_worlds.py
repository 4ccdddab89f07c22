"""World models of a saved and loaded bundle in the agent, on both backends."""

import dataclasses

import numpy as np
import pytest
from toy_agents import RULES, SGD, observations
from toy_bundles import ALL, make_bundle

from fastdwm import Agent, Bundle, InputError


def make_full(steps=1, tau=1.0):
    """Random bundle with all three world models."""
    return make_bundle(*ALL, settings={"meanflow": {"steps": steps, "temperature": tau}})


@RULES
@pytest.mark.parametrize(
    "world,steps,tau",
    [("meanflow", 1, 1.0), ("meanflow", 2, 0.5), ("meanflow", 4, 0.0), ("mlp", 1, 1.0), ("diffusion", 1, 1.0)],
)
def test_saved_world_models_adapt_alike_on_both_backends(tmp_path, world, steps, tau, config):
    make_full(steps, tau).save(tmp_path / "b")
    bundle = Bundle.load(tmp_path / "b")
    assert tuple(bundle.worlds) == ALL
    agents = [Agent.of(bundle, config, backend=b, world=world) for b in ("reference", "fused")]
    base = Agent.of(bundle, dataclasses.replace(config, inner_steps=0))
    for obs in observations(4, 2):
        a, b = (agent.act(obs) for agent in agents)
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.abs(a - base.act(obs)).max() > 1e-4


@pytest.mark.parametrize("world,steps,tau", [("meanflow", 2, 0.5), ("meanflow", 4, 0.0), ("diffusion", 2, None)])
def test_settings_of_a_world_override_the_bundles_on_both_backends(world, steps, tau):
    bundle, asked = make_full(), {"world": world, "world_steps": steps, "temperature": tau}
    agents = [Agent.of(bundle, SGD, backend=b, **asked) for b in ("reference", "fused")]
    plain = Agent.of(bundle, SGD, world=world)
    for obs in observations(3, 2):
        a, b = (agent.act(obs) for agent in agents)
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert np.abs(a - plain.act(obs)).max() > 1e-5
    if world == "meanflow":
        own, obs = Agent.of(make_full(steps, tau), SGD, world=world), observations(1, 2)[0]
        assert np.array_equal(own.act(obs), Agent.of(bundle, SGD, **asked).act(obs))


@pytest.mark.parametrize(
    "world,steps,tau,message",
    [
        ("meanflow", 3, None, "world_steps: expected 1, 2 or 4 for meanflow, got 3"),
        ("meanflow", None, 1.5, r"temperature: expected a number in \[0, 1\], got 1.5"),
        ("diffusion", 4, None, "world_steps: expected 1 to 3 for diffusion, got 4"),
        ("diffusion", 0, None, "world_steps: expected 1 to 3 for diffusion, got 0"),
        ("mlp", 2, None, "world_steps: expected 1 for mlp, got 2"),
        ("mlp", None, 0.5, "temperature: expected none for mlp, got 0.5"),
    ],
)
def test_settings_that_the_world_model_lacks(world, steps, tau, message):
    with pytest.raises(InputError, match=message):
        Agent.of(make_full(), world=world, world_steps=steps, temperature=tau)


def test_a_bundle_without_the_world_model_says_what_it_holds():
    with pytest.raises(InputError, match="world: the bundle holds diffusion, got 'meanflow'"):
        Agent.of(make_bundle(), world="meanflow")
