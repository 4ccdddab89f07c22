"""Shipped bundles: size, world models, actions."""

import numpy as np
import pytest
import torch

from fastdwm import Agent, Bundle, ITPOConfig
from fastdwm.shipped import shipped, shipped_folder


@pytest.fixture(scope="module")
def bundle():
    return Bundle.load("hopper-medium")


@pytest.mark.parametrize("world", ["diffusion", "meanflow", "mlp"])
def test_its_world_models_predict_the_simulator(bundle, world):
    # A prediction of no change has an error of about one standard deviation.
    env, agent = bundle.task.env.make(), Agent.of(bundle, ITPOConfig(inner_steps=0))
    visited, actions = [env.reset(seed=5)[0]], []
    for _ in range(100):
        actions.append(agent.act(visited[-1]))
        visited.append(env.step(actions[-1])[0])
    states, action = torch.tensor(np.array(visited)).float(), torch.tensor(np.array(actions))
    dynamics = bundle.world(world).dynamics
    noise = torch.randn(dynamics.noise_steps, *states[:-1].shape, generator=torch.Generator().manual_seed(0))
    error = (dynamics.next_obs(states[:-1], action, noise) - states[1:]) / dynamics.delta_std
    still = (states[:-1] - states[1:]) / dynamics.delta_std
    assert error.square().mean().sqrt() < 0.1 * still.square().mean().sqrt()


@pytest.mark.slow
def test_reference_and_fused_backends_act_alike(bundle):
    env = bundle.task.env.make()
    obs, _ = env.reset(seed=1)
    agents = [Agent.of(bundle, ITPOConfig(), backend=backend) for backend in ("reference", "fused")]
    for _ in range(10):
        actions = [agent.act(obs) for agent in agents]
        np.testing.assert_allclose(*actions, atol=1e-4)
        obs, *_ = env.step(actions[0])


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_bundle_acts_in_its_own_simulator(name):
    bundle = Bundle.load(name)
    # The walker of the data has the foot friction of D4RL's, not of Gymnasium's v5.
    own = {"xml_file": "walker2d.xml"} if name.startswith("walker2d") else {}
    assert (bundle.task.name, bundle.task.env.kwargs) == (name, own)
    assert bundle.dataset["transitions"] >= 400_000 and bundle.versions["mujoco"].split(".")[:2] < ["3", "5"]
    assert {"diffusion", "meanflow"} <= bundle.worlds.keys()
    env = bundle.task.env.make()
    obs = np.stack([env.reset(seed=seed)[0] for seed in range(2)])
    for world in ("diffusion", "meanflow"):
        agent = Agent.of(bundle, ITPOConfig(), world=world)
        base = Agent.of(bundle, ITPOConfig(inner_steps=0)).act(obs)
        actions = [agent.act(obs) for _ in range(30)]
        assert np.isfinite(actions).all() and (actions[-1] != base).any()


def test_the_shipped_bundles_are_small_together():
    sizes = {name: sum(path.stat().st_size for path in shipped_folder(name).iterdir()) for name in shipped()}
    assert max(size for name, size in sizes.items() if name != "hopper-medium") < 1.5 * 2**20
    assert len(sizes) == 18 and sum(sizes.values()) < 28.5 * 2**20
