"""All world models of a bundle through disk, agent and both backends."""

import dataclasses

import numpy as np
import pytest
from models import HIDDEN, generator
from test_agent import ACTION_DIM, CONFIG, OBS_DIM, make_bundle, observations

from fastdwm import Agent, Bundle, InputError
from fastdwm.config import DeterministicConfig, MeanFlowConfig
from fastdwm.models.meanflow import meanflow_shapes
from fastdwm.models.mlp import deterministic_shapes
from fastdwm.models.nets import init_mlp


def make_full(steps=1, tau=1.0):
    """The random bundle with all three world models."""
    m = MeanFlowConfig(hidden=HIDDEN, time_features=4, sample_steps=steps, temperature=tau)
    d = DeterministicConfig(hidden=HIDDEN)
    return dataclasses.replace(
        make_bundle(),
        meanflow=init_mlp(meanflow_shapes(OBS_DIM, ACTION_DIM, m), generator(8)),
        meanflow_config=m,
        deterministic=init_mlp(deterministic_shapes(OBS_DIM, ACTION_DIM, d), generator(9)),
        deterministic_config=d,
    )


@pytest.mark.parametrize(
    "sampler,steps,tau",
    [("meanflow", 1, 1.0), ("meanflow", 2, 0.5), ("meanflow", 4, 0.0), ("mlp", 1, 1.0), ("diffusion", 1, 1.0)],
)
def test_saved_samplers_adapt_alike_on_both_backends(tmp_path, sampler, steps, tau):
    make_full(steps, tau).save(tmp_path / "b")
    bundle = Bundle.load(tmp_path / "b")
    assert bundle.samplers == ("diffusion", "meanflow", "mlp")
    agents = [Agent.of(bundle, CONFIG, backend=b, world=sampler) for b in ("reference", "fused")]
    base = Agent.of(bundle, dataclasses.replace(CONFIG, inner_steps=0))
    for obs in observations(3, 2):
        a, b = (agent.act(obs) for agent in agents)
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert np.abs(a - base.act(obs)).max() > 1e-5


@pytest.mark.parametrize("sampler,steps,tau", [("meanflow", 2, 0.5), ("meanflow", 4, 0.0), ("diffusion", 2, None)])
def test_sampler_settings_override_the_bundles_on_both_backends(sampler, steps, tau):
    bundle, asked = make_full(), {"world": sampler, "world_steps": steps, "temperature": tau}
    agents = [Agent.of(bundle, CONFIG, backend=b, **asked) for b in ("reference", "fused")]
    plain = Agent.of(bundle, CONFIG, world=sampler)
    for obs in observations(3, 2):
        a, b = (agent.act(obs) for agent in agents)
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert np.abs(a - plain.act(obs)).max() > 1e-5
    if sampler == "meanflow":
        own, obs = Agent.of(make_full(steps, tau), CONFIG, world=sampler), observations(1, 2)[0]
        assert np.array_equal(own.act(obs), Agent.of(bundle, CONFIG, **asked).act(obs))


@pytest.mark.parametrize(
    "sampler,steps,tau,message",
    [
        ("meanflow", 3, None, "sample_steps: expected one of 1, 2, 4, got 3"),
        ("meanflow", None, 1.5, r"temperature: expected a number in \[0, 1\], got 1.5"),
        ("diffusion", 4, None, "sample_steps: expected 1 to 3 for diffusion, got 4"),
        ("diffusion", 0, None, "sample_steps: expected 1 to 3 for diffusion, got 0"),
        ("mlp", 2, None, "sample_steps: expected 1 for mlp, got 2"),
        ("mlp", None, 0.5, "temperature: expected none for mlp, got 0.5"),
    ],
)
def test_settings_that_the_sampler_lacks(sampler, steps, tau, message):
    with pytest.raises(InputError, match=message):
        Agent.of(make_full(), world=sampler, world_steps=steps, temperature=tau)


def test_a_bundle_without_the_sampler_says_what_it_holds():
    with pytest.raises(InputError, match="sampler: the bundle holds diffusion, got 'meanflow'"):
        Agent.of(make_bundle(), world="meanflow")
