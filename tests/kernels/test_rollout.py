"""The hand-derived imagined return and gradient against autograd through the plain models."""

from dataclasses import replace

import pytest
import torch
from models import make_noise, make_obs, make_policies, make_world

from fastdwm.config import ITPOConfig
from fastdwm.fused import FusedObjective
from fastdwm.itpo import ReferenceObjective
from fastdwm.tasks import Limit

LIMITS = (Limit(0, -1.5, 1.2), Limit(2, low=-2.0))


def close(actual: dict, expected: dict) -> None:
    for name, value in expected.items():
        assert value.abs().max() > 1e-6, name
        torch.testing.assert_close(actual[name], value, rtol=1e-10, atol=1e-13, msg=name)


@pytest.mark.parametrize("target", ["eps", "x0"])
@pytest.mark.parametrize("terminal_value", ["min", "mean", "first"])
@pytest.mark.parametrize("horizon", [0, 1, 3])
def test_equals_autograd_in_float64(horizon, terminal_value, target):
    world, config = make_world(target), ITPOConfig(terminal_value=terminal_value)
    arguments = make_policies(3), make_policies(3, seed=11), make_obs(3), make_noise(horizon, 4, 3, 5)
    returns, grads = FusedObjective(world, config).gradient(*arguments)
    expected, expected_grads = ReferenceObjective(world, config).gradient(*arguments)
    torch.testing.assert_close(returns, expected, rtol=1e-12, atol=1e-12)
    close(grads, expected_grads)
    torch.testing.assert_close(FusedObjective(world, config).value(*arguments), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("anchor_coef", [0.0, 0.7])
@pytest.mark.parametrize("termination", ["none", "mask", "soft"])
def test_termination_and_anchor_equal_autograd(termination, anchor_coef):
    world = make_world(limits=LIMITS)
    config = ITPOConfig(termination=termination, anchor_coef=anchor_coef, termination_temperature=0.5)
    arguments = make_policies(4), make_policies(4, seed=11), make_obs(4), make_noise(3, 4, 4, 6)
    returns, grads = FusedObjective(world, config).gradient(*arguments)
    expected, expected_grads = ReferenceObjective(world, config).gradient(*arguments)
    plain = ReferenceObjective(world, replace(config, termination="none", anchor_coef=0.0)).value(*arguments)
    # The limits cut through the visited states, so the settings matter.
    assert (termination, anchor_coef) == ("none", 0.0) or (expected - plain).abs().max() > 1e-3
    torch.testing.assert_close(returns, expected, rtol=1e-12, atol=1e-12)
    close(grads, expected_grads)
    torch.testing.assert_close(FusedObjective(world, config).value(*arguments), expected, rtol=1e-12, atol=1e-12)


def test_one_particle_one_episode():
    world, config = make_world(), ITPOConfig()
    arguments = make_policies(1), make_policies(1), make_obs(1), make_noise(2, 4, 1, 1)
    grads = FusedObjective(world, config).gradient(*arguments)[1]
    close(grads, ReferenceObjective(world, config).gradient(*arguments)[1])


def test_noise_of_another_shape_raises():
    objective = FusedObjective(make_world(), ITPOConfig())
    with pytest.raises(ValueError, match="noise: expected shape"):
        objective.value(make_policies(2), make_policies(2), make_obs(2), make_noise(2, 5, 2, 3))
    with pytest.raises(TypeError, match="obs: expected torch.float64"):
        objective.value(make_policies(2), make_policies(2), make_obs(2).float(), make_noise(2, 4, 2, 3))
