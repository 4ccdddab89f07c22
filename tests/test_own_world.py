"""World models of the user's own, with only `noise_steps` and `next_obs`."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_agents import BOUND, OWN_RULES, SGD, observations
from toy_bundles import OBS_DIM, make_bundle

from fastdwm import Agent, InputError, Policy, World
from fastdwm.models.rebrac import Critics
from fastdwm.models.world import terminal_value
from fastdwm.tasks import Limit

pytestmark = pytest.mark.filterwarnings("ignore:the agent imagines in plain torch")


class Linear:
    """World model without noise: s' = s + G a."""

    noise_steps = 0

    def __init__(self, gain: Tensor):
        self.gain = gain

    def next_obs(self, obs, action, noise):
        assert noise.shape == (0, *obs.shape)
        return obs + action @ self.gain


class Learned(nn.Module):
    """Network whose parameters require gradients, with its own use of noise."""

    noise_steps = 2

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(OBS_DIM + 3, 16), nn.Tanh(), nn.Linear(16, OBS_DIM))

    def next_obs(self, obs, action, noise):
        return obs + self.net(torch.cat([obs, action], -1)) + 0.1 * noise[0] * noise[1].abs()


def reward(obs, action):
    return obs[..., 0] - 0.1 * action.square().sum(-1)


def value(obs, action):
    return 10 * obs[..., 1]


def gain():
    return torch.linspace(-1, 1, 3 * OBS_DIM).view(3, OBS_DIM)


def policy():
    return Policy.mlp(make_bundle().policy)


def test_the_gradient_is_that_of_the_closed_form():
    """J = r(s, a) + g 10 (s_1 + a G_1)."""
    world = World(Linear(gain()), reward, value, 0.9)
    agent = Agent(policy(), world, replace(SGD, horizon=1, particles=1, inner_lr=1e-4))
    obs = observations(1, 2)[0]
    agent.act(obs)
    start = policy()
    leaf = start.base.repeat(2, 1).requires_grad_()
    rows = torch.tensor(obs)
    action = start.act(leaf, rows)
    returns = reward(rows, action) + 0.9 * 10 * (rows[:, 1] + action @ gain()[:, 1])
    (grads,) = torch.autograd.grad(returns.sum(), leaf)
    torch.testing.assert_close(agent.episodes.params, leaf.detach() + 1e-4 * grads)
    torch.testing.assert_close(torch.tensor(agent.diagnose()["objective_before"]), returns.detach())


@OWN_RULES
@pytest.mark.parametrize("dynamics", [lambda: Linear(gain()), Learned])
@pytest.mark.parametrize("noise", ["decision", "step", "time"])
def test_any_model_runs_on_the_reference_path(dynamics, noise, config):
    world = World(dynamics(), reward, value, 0.9)
    agent = Agent(policy(), world, replace(config, noise=noise, inner_steps=2))
    assert agent.backend == "reference"
    for obs in observations(4, 2):
        agent.act(obs)
    assert (agent.diagnose()["policy_distance"] > 1e-3).all() and (agent.discarded == 0).all()


def test_the_users_tensors_are_left_alone():
    dynamics = Learned()
    agent = Agent(policy(), World(dynamics, reward, value, 0.9), SGD)
    agent.act(observations(1, 2)[0])
    assert agent.world.dynamics is dynamics
    assert all(p.requires_grad and p.grad is None for p in dynamics.parameters())


class Halved:
    """Sampler around another one; it runs fused because it has the methods for that."""

    def __init__(self, inner):
        self.inner = inner
        self.noise_steps, self.obs_mean, self.obs_std = inner.noise_steps, inner.obs_mean, inner.obs_std
        self.delta_mean, self.delta_std = inner.delta_mean / 2, inner.delta_std / 2

    def next_obs(self, obs, action, noise):
        return obs + (self.inner.next_obs(obs, action, noise) - obs) / 2

    def sampler(self):
        return self.inner.sampler()

    def sampler_noise(self, noise):
        return self.inner.sampler_noise(noise)


def test_a_model_with_a_sampler_runs_fused_and_alike():
    world = make_bundle().world()
    world = replace(world, dynamics=Halved(world.dynamics))
    agents = [Agent(policy(), world, BOUND, backend=backend) for backend in ("auto", "reference")]
    assert [agent.backend for agent in agents] == ["fused", "reference"]
    for obs in observations(5, 2):
        first, second = (agent.act(obs) for agent in agents)
        np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"dynamics": Linear(gain())},
            "the dynamics has no sampler, sampler_noise, obs_mean, obs_std, delta_mean, delta_std",
        ),
        ({"reward": reward}, "the reward is no RewardModel with the dynamics' obs_mean and obs_std"),
        ({"critic": value}, "the critic is no Critics"),
        (
            {"critic": Critics({"w0": torch.ones(2, OBS_DIM + 3, 1), "b0": torch.zeros(2, 1)})},
            "the critic has another form than the operators take: params: expected hidden layers .* widths .14, 1.",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_part_that_cannot_be_fused_is_named(change, reason):
    world = replace(make_bundle().world(), **change)
    with pytest.raises(InputError, match=f"^backend: fused is not possible: {reason}$"):
        Agent(policy(), world, BOUND, backend="fused")
    assert Agent(policy(), world, BOUND).backend == "reference"


def test_a_reward_with_other_statistics_is_not_fused():
    """The fused operators normalise once, for world model and reward."""
    world = make_bundle().world()
    other = replace(world, reward=replace(world.reward, obs_std=2 * world.reward.obs_std))
    assert Agent(policy(), other, BOUND).backend == "reference"


def test_a_critic_may_be_one_or_an_ensemble():
    world, (obs, action) = make_bundle().world(), (torch.randn(4, OBS_DIM), torch.randn(4, 3))
    one = replace(world, critic=value)
    many = replace(world, critic=lambda obs, action: torch.stack([value(obs, action), value(obs, action) + 1]))
    for kind, expected in (("min", 0.0), ("mean", 0.5), ("first", 0.0)):
        torch.testing.assert_close(terminal_value(one, obs, action, kind), value(obs, action))
        torch.testing.assert_close(terminal_value(many, obs, action, kind), value(obs, action) + expected)
    assert isinstance(world.critic, Critics) and world.critic(obs, action).shape == (2, 4)


@pytest.mark.parametrize("part", ["reward", "critic"])
def test_a_column_of_values_is_refused(part):
    world = World(Linear(gain()), reward, value, 0.9)
    column = {"reward": lambda obs, action: reward(obs, action).unsqueeze(-1)}
    column["critic"] = column["reward"]
    agent = Agent(policy(), replace(world, **{part: column[part]}), BOUND)
    with pytest.raises(InputError, match=rf"^{part}: expected shape \(.*3\).*, got \(.*2, 3, 1\)$"):
        agent.act(observations(1, 2)[0])


def test_settings_that_the_model_cannot_serve():
    world = World(Linear(gain()), reward, value, 0.9, (Limit(0, -1.0, 1.0),))
    with pytest.raises(InputError, match="termination: soft needs a dynamics with obs_std"):
        Agent(policy(), world, replace(BOUND, termination="soft"))
    Agent(policy(), world, replace(BOUND, termination="mask")).act(observations(1, 2)[0])
