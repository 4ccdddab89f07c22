"""All world models of a bundle through disk, agent and both backends."""

import dataclasses

import numpy as np
import pytest
from models import HIDDEN, generator
from test_agent import ACTION_DIM, CONFIG, OBS_DIM, make_bundle, observations

from fastdwm import Agent, Bundle, InputError
from fastdwm.config import DeterministicConfig, MeanFlowConfig
from fastdwm.deterministic import deterministic_shapes
from fastdwm.meanflow import meanflow_shapes
from fastdwm.nets import init_mlp


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
    agents = [Agent(bundle, CONFIG, backend=b, sampler=sampler) for b in ("reference", "fused")]
    base = Agent(bundle, dataclasses.replace(CONFIG, inner_steps=0))
    for obs in observations(3, 2):
        a, b = (agent.act(obs) for agent in agents)
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert np.abs(a - base.act(obs)).max() > 1e-5


def test_a_bundle_without_the_sampler_says_what_it_holds():
    with pytest.raises(InputError, match="sampler: the bundle holds diffusion, got 'meanflow'"):
        Agent(make_bundle(), sampler="meanflow")
