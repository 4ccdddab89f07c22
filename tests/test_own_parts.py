"""Wrong parts of the user's own are refused in one line before anything is executed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from toy_bundles import make_bundle

from fastdwm import Agent, InputError, ITPOConfig, World

CONFIG = ITPOConfig(horizon=2, max_deviation=0.05)
OBS = torch.zeros(11)


def policy(last: nn.Module | None = None, obs_dim: int = 11) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(obs_dim, 8), nn.ReLU(), nn.Linear(8, 3), last or nn.Tanh())


class Returns(nn.Module):
    """Policy that wraps its actions."""

    def __init__(self, wrap):
        super().__init__()
        self.body, self.wrap = policy(), wrap

    def forward(self, obs):
        return self.wrap(self.body(obs))


class Wrapped(nn.Module):
    """The same policy as a module that cannot be fused."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, obs):
        return self.body(obs)


class Slow:
    """World model that returns observations of another size."""

    noise_steps = 0

    def __init__(self, size):
        self.size = size

    def next_obs(self, obs, action, noise):
        return obs[..., : self.size]


def own_world(size: int = 11, discount: float = 0.9) -> World:
    return World(Slow(size), lambda obs, action: obs[..., 0], lambda obs, action: obs[..., 1], discount)


@pytest.fixture(autouse=True)
def quiet(recwarn):
    """Ignore warnings of slow parts."""


@pytest.mark.parametrize("wrap", [lambda a: {"action": a}, lambda a: (a, None)], ids=["dict", "tuple"])
def test_a_policy_that_returns_no_tensor_is_refused(wrap):
    agent = Agent(Returns(wrap), make_bundle().world(), CONFIG)
    with pytest.raises(InputError, match="policy: expected a module"):
        agent.act(OBS)


def test_a_torchscript_policy_is_refused():
    with pytest.raises(InputError, match="policy: expected a plain nn.Module, got a TorchScript module"):
        Agent(torch.jit.script(policy()), make_bundle().world(), CONFIG)


def test_a_world_that_returns_another_shape_is_refused():
    with pytest.raises(InputError, match=r"dynamics: expected observations of shape \(1, 2, 11\).*got \(1, 2, 10\)"):
        Agent(policy(), own_world(size=10), CONFIG).act(OBS)


@pytest.mark.parametrize("wrapped", [False, True], ids=["mlp", "module"])
@pytest.mark.parametrize(("obs_dim", "action_dim"), [(12, 3), (11, 4)])
def test_a_policy_of_other_sizes_is_refused_with_both(obs_dim, action_dim, wrapped):
    module = nn.Sequential(nn.Linear(obs_dim, 8), nn.ReLU(), nn.Linear(8, action_dim), nn.Tanh())
    match = f"policy: expected one from 11 numbers to 3, as the world model's, got one from {obs_dim} to {action_dim}"
    with pytest.raises(InputError, match=match):
        agent = Agent(Wrapped(module) if wrapped else module, make_bundle().world(), CONFIG)
        agent.act(torch.zeros(obs_dim))


@pytest.mark.parametrize("discount", [math.nan, 1.5, 0.0, -1.0])
def test_a_discount_is_in_its_range(discount):
    with pytest.raises(InputError, match=r"discount: expected a number in \(0, 1\]"):
        own_world(discount=discount)


@pytest.mark.parametrize(
    ("obs", "match"),
    [
        (torch.zeros(11, dtype=torch.complex64), "real numbers, got torch.complex64"),
        (np.zeros(11, dtype=complex), "real numbers, got complex128"),
        (np.array(["fast"] * 11), "real numbers"),
        (np.ma.masked_array(np.zeros(11), mask=[True] + [False] * 10), "a masked array"),
    ],
    ids=["complex tensor", "complex array", "text", "masked"],
)
def test_an_observation_is_an_array_of_real_numbers(obs, match):
    agent = Agent.of(make_bundle(), CONFIG)
    with pytest.raises(InputError, match=f"obs: expected .*{match}"):
        agent.act(obs)


@pytest.mark.parametrize("deadline_ms", ["5", 0, -1.0, math.nan])
def test_a_deadline_is_a_positive_number(deadline_ms):
    with pytest.raises(InputError, match="deadline_ms: expected a positive number"):
        Agent.of(make_bundle(), CONFIG, deadline_ms=deadline_ms)


@pytest.mark.parametrize("inner_steps", [0, 1])
def test_an_action_beyond_the_box_is_clipped(inner_steps):
    """A module without tanh has outputs far outside the box."""
    far = policy(nn.Identity())
    with torch.no_grad():
        far[2].bias.copy_(torch.tensor([20.0, -20.0, 0.5]))
    agent = Agent(far, make_bundle().world(), replace(CONFIG, inner_steps=inner_steps))
    action = agent.act(OBS)
    assert action[0] == 1 and action[1] == -1 and abs(action[2]) < 1


def test_a_slow_agent_gives_the_reason():
    world = make_bundle().world()
    own = World(world.dynamics, world.reward, lambda obs, action: obs[..., 0], world.discount)
    with pytest.warns(UserWarning, match="imagines in plain torch, which is slow: the critic is no Critics"):
        agent = Agent(policy(), own, CONFIG)
    assert agent.backend == "reference" and agent.why_reference == "the critic is no Critics"
    assert Agent(policy(), world, CONFIG).why_reference == ""
