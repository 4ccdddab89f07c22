"""The hand-derived imagined return and gradient against autograd through the plain models."""

from dataclasses import replace

import pytest
import torch
from models import make_noise, make_obs, make_policies, make_policy, make_world
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.itpo.decision import ReferenceObjective
from fastdwm.itpo.fused import FusedObjective
from fastdwm.kernels.rollout import imagine
from fastdwm.models.rebrac import Critics
from fastdwm.models.world import World
from fastdwm.tasks import Limit

LIMITS = (Limit(0, -1.5, 1.2), Limit(2, low=-2.0))
POLICY = make_policy()
LAYOUT = POLICY.layout


def arguments(n_episodes: int, horizon: int, particles: int) -> tuple[Tensor, ...]:
    """params, base (B, P), obs (B, S), noise (H, K, B, M, S), float64."""
    policies = [LAYOUT.pack(make_policies(n_episodes, seed=seed)) for seed in (5, 11)]
    return *policies, make_obs(n_episodes), make_noise(horizon, 4, n_episodes, particles)


def compare(world: World, config: ITPOConfig, given: tuple[Tensor, ...]) -> Tensor:
    """Fused against reference; returns J."""
    fused, reference = FusedObjective(POLICY, world, config), ReferenceObjective(POLICY, world, config)
    returns, grads = fused.gradient(*given)
    expected, expected_grads = reference.gradient(*given)
    assert expected_grads.abs().amax(1).min() > 1e-4
    torch.testing.assert_close(returns, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(fused.value(*given), expected, rtol=1e-12, atol=1e-12)
    return returns


@pytest.mark.parametrize("target", ["eps", "x0"])
@pytest.mark.parametrize("terminal_value", ["min", "mean", "first"])
@pytest.mark.parametrize("horizon", [0, 1, 3])
def test_equals_autograd_in_float64(horizon, terminal_value, target):
    compare(make_world(target), ITPOConfig(terminal_value=terminal_value), arguments(3, horizon, 5))


@pytest.mark.parametrize("anchor_coef", [0.0, 0.7])
@pytest.mark.parametrize("termination", ["none", "mask", "soft"])
def test_termination_and_anchor_equal_autograd(termination, anchor_coef):
    world, given = make_world(limits=LIMITS), arguments(4, 3, 6)
    config = ITPOConfig(termination=termination, anchor_coef=anchor_coef, termination_temperature=0.5)
    returns = compare(world, config, given)
    plain = ReferenceObjective(POLICY, world, replace(config, termination="none", anchor_coef=0.0)).value(*given)
    # The limits cut through the visited states and the base is another policy, so the settings matter.
    assert (termination, anchor_coef) == ("none", 0.0) or (returns - plain).abs().max() > 1e-3


def test_one_particle_one_episode():
    compare(make_world(), ITPOConfig(), arguments(1, 2, 1))


def on_kernels(models, returns, *given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, J and gradient by the Triton kernels; runs in the interpreter's process."""
    from fastdwm.kernels.rollout import triton_ops

    return imagine.value(triton_ops, models, returns, *given), *imagine.gradient(triton_ops, models, returns, *given)


@pytest.mark.parametrize(("termination", "anchor_coef"), [("none", 0.0), ("soft", 0.7)])
def test_kernels_in_the_interpreter_equal_the_reference(interpreted, termination, anchor_coef):
    world, given = make_world(limits=LIMITS), arguments(2, 2, 17)
    config = ITPOConfig(termination=termination, anchor_coef=anchor_coef, termination_temperature=0.5)
    expected, expected_grads = ReferenceObjective(POLICY, world, config).gradient(*given)
    fused = FusedObjective(POLICY, single_precision(world), config)
    value, returns, grads = interpreted(on_kernels, fused.models, fused.returns, *(x.float() for x in given))
    torch.testing.assert_close(returns.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
    scale = expected_grads.abs().max()
    torch.testing.assert_close(grads.double() / scale, expected_grads / scale, rtol=0, atol=1e-5)


def single_precision(world: World) -> World:
    """The same models in float32."""

    def convert(model):
        fields = {k: v.float() if isinstance(v, Tensor) else v for k, v in vars(model).items()}
        return type(model)(**fields | {"params": {k: v.float() for k, v in model.params.items()}})

    critic = Critics({name: value.float() for name, value in world.critic.params.items()})
    return replace(world, dynamics=convert(world.dynamics), reward=convert(world.reward), critic=critic)


def test_wrong_arguments_raise():
    objective = FusedObjective(POLICY, make_world(), ITPOConfig())
    params, base, obs, noise = arguments(2, 2, 3)
    with pytest.raises(ValueError, match="noise: expected shape"):
        objective.value(params, base, obs, noise[:, :3])
    with pytest.raises(ValueError, match="params: expected shape"):
        objective.gradient(params[:, 1:], base, obs, noise)
    with pytest.raises(TypeError, match="obs: expected torch.float64"):
        objective.value(params, base, obs.float(), noise)
