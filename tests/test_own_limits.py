"""Termination of one's own: a TOML file of limits, and a condition in the library."""

import dataclasses

import pytest
import torch
from commands import input_error
from models import make_noise, make_obs, make_policy, make_world
from toy_bundles import make_bundle

from fastdwm import Agent, InputError, ITPOConfig, Policy, imagined_return
from fastdwm.data.task import read_limits, resolve
from fastdwm.env_config import EnvConfig
from fastdwm.tasks import Limit


def write(path, text):
    path.write_text(text)
    return path


def test_limits_are_read_from_toml_into_the_task(tmp_path):
    path = write(
        tmp_path / "limits.toml", "[[limits]]\nindex = 1\nlow = -0.5\nhigh = 2\n[[limits]]\nindex = 0\nhigh = 3.0\n"
    )
    expected = Limit(1, -0.5, 2), Limit(0, high=3.0)
    assert read_limits(path) == expected
    assert resolve("hopper-medium", EnvConfig(), limits=path).limits == expected


BAD = {
    "expected tables": "index = 1",
    "expected tables .*got": "[limits]\nindex = 1",
    "'hihg' is not a setting": "[[limits]]\nindex = 1\nhihg = 2",
    "index is missing": "[[limits]]\nhigh = 2",
    "cannot be read as TOML": "[[limits",
    "index: expected int": "[[limits]]\nindex = 'x'",
    "limits: expected low < high": "[[limits]]\nindex = 1\nlow = 3\nhigh = 2",
    "limits: expected low < high of a coordinate below 11": "[[limits]]\nindex = 11\nlow = 3",
}


@pytest.mark.parametrize("message", BAD)
def test_a_file_without_limits_is_refused_in_one_line(tmp_path, message):
    path = write(tmp_path / "limits.toml", BAD[message])
    with input_error(message):
        resolve("hopper-medium", EnvConfig(), limits=path)


def test_a_missing_file_is_refused(tmp_path):
    with input_error("no.toml: no such file"):
        read_limits(tmp_path / "no.toml")


def test_terminates_is_the_mask_of_the_same_limits():
    """A condition of one's own ends imagined rollouts as `termination="mask"` does, without that setting."""
    limits = (Limit(1, -1.0, 1.0),)
    obs, noise, policy = make_obs(3), make_noise(4, 4, 3, 5), make_policy()
    leaf = policy.base.repeat(3, 1).requires_grad_()

    def gradient(world, config):
        returns = imagined_return(policy, policy.layout.views(leaf), world, obs, noise, config)
        return returns, *torch.autograd.grad(returns.sum(), leaf)

    masked = gradient(make_world(limits=limits), ITPOConfig(termination="mask"))
    own = dataclasses.replace(make_world(), terminates=lambda obs: obs[..., 1].abs() >= 1.0)
    for ours, theirs in zip(gradient(own, ITPOConfig()), masked, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(masked[0], gradient(make_world(), ITPOConfig())[0])


@pytest.mark.filterwarnings("ignore:the agent imagines in plain torch")
def test_an_agent_says_that_terminates_runs_on_the_reference_path():
    bundle = make_bundle()
    world = dataclasses.replace(bundle.world(), terminates=lambda obs: obs[..., 0] > 3)
    agent = Agent(Policy.mlp(bundle.policy), world, ITPOConfig(max_deviation=0.1))
    assert (agent.backend, agent.why_reference) == ("reference", "the world has a `terminates` of its own")
    assert agent.act(torch.zeros(2, 11)).shape == (2, 3)


@pytest.mark.filterwarnings("ignore:the agent imagines in plain torch")
@pytest.mark.parametrize("terminates", [lambda obs: obs[..., 0], lambda obs: obs > 3, lambda obs: True])
def test_terminates_that_is_no_condition_is_refused(terminates):
    bundle = make_bundle()
    world = dataclasses.replace(bundle.world(), terminates=terminates)
    agent = Agent(Policy.mlp(bundle.policy), world, ITPOConfig(max_deviation=0.1))
    with pytest.raises(InputError, match="terminates: expected bool of shape"):
        agent.act(torch.zeros(2, 11))
