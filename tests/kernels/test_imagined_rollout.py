"""The hand-derived imagined return and gradient against autograd through the plain models."""

from dataclasses import replace

import pytest
import torch
from models import (
    ACTION_DIM,
    OBS_DIM,
    double,
    generator,
    make_noise,
    make_obs,
    make_policies,
    make_policy,
    make_world,
)
from numerics import Products, assert_within_twice
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.itpo.fused import FusedObjective
from fastdwm.itpo.objective import ReferenceObjective
from fastdwm.models.nets import init_mlp, map_params, mlp_shapes
from fastdwm.models.policy import Policy
from fastdwm.models.rebrac import Critics
from fastdwm.models.world import World
from fastdwm.tasks import Limit
from fastdwm_kernels.rollout import Gradient

LIMITS = (Limit(0, -1.5, 1.2), Limit(2, low=-2.0))
POLICY = make_policy()
LAYOUT = POLICY.layout


def arguments(n_episodes: int, horizon: int, particles: int) -> tuple[Tensor, ...]:
    """params (B, P), obs (B, S), noise (H, K, B, M, S), float64."""
    params = LAYOUT.pack(make_policies(n_episodes))
    return params, make_obs(n_episodes), make_noise(horizon, 4, n_episodes, particles)


def foreign(activation: str, output: str, copies: int = 3) -> tuple[Policy, World]:
    """A policy as other libraries train it, with three hidden layers of unequal widths, and a world with such critics,
    which have no layer norm."""
    params = make_policies(1, hidden=(24, 40, 16))
    # Larger actions, so that some are clipped.
    params["w3"] *= 12
    critics = double(init_mlp(mlp_shapes((OBS_DIM + ACTION_DIM, 20, 12, 1), copies=copies), generator(8)))
    policy = Policy.mlp(map_params(lambda value: value[0], params), activation, output)
    return policy, replace(make_world(), critic=Critics(critics, activation))


def compare(world: World, config: ITPOConfig, args: tuple[Tensor, ...], policy: Policy = POLICY) -> Tensor:
    """Compare the fused objective with the reference; returns J."""
    fused, reference = FusedObjective(policy, world, config), ReferenceObjective(policy, world, config)
    result, expected = fused.gradient(*args), reference.gradient(*args)
    assert expected.grads.abs().amax(1).min() > 1e-4 and expected.action_grads.abs().amax((0, 2, 3)).min() > 1e-4
    torch.testing.assert_close(result[:3], expected[:3], rtol=1e-10, atol=1e-12)
    for gradient in (result, expected):
        torch.testing.assert_close(gradient.partial_sq_norms.sum(1).sqrt(), expected.grads.norm(dim=1))
    torch.testing.assert_close(fused.value(*args), expected.returns, rtol=1e-12, atol=1e-12)
    return result.returns


@pytest.mark.parametrize("target", ["eps", "x0"])
@pytest.mark.parametrize("terminal_value", ["min", "mean", "first"])
@pytest.mark.parametrize("horizon", [0, 1, 3])
def test_equals_autograd_in_float64(horizon, terminal_value, target):
    compare(make_world(target), ITPOConfig(terminal_value=terminal_value), arguments(3, horizon, 5))


@pytest.mark.parametrize("termination", ["none", "mask", "soft"])
def test_termination_equals_autograd(termination):
    world, args = make_world(limits=LIMITS), arguments(4, 3, 6)
    config = ITPOConfig(termination=termination, termination_temperature=0.5)
    returns = compare(world, config, args)
    plain = ReferenceObjective(POLICY, world, replace(config, termination="none")).value(*args)
    # The limits cut through the visited states, so the setting matters.
    assert termination == "none" or (returns - plain).abs().max() > 1e-3


def test_one_particle_one_episode():
    compare(make_world(), ITPOConfig(), arguments(1, 2, 1))


@pytest.mark.parametrize("functions", [("relu", "clip"), ("tanh", "tanh"), ("tanh", "clip")], ids=str)
def test_other_functions_widths_and_copies_equal_autograd(functions):
    policy, world = foreign(*functions, copies=10)
    _, *rest = arguments(3, 2, 5)
    compare(world, ITPOConfig(), (policy.base.repeat(3, 1), *rest), policy)
    clipped = policy.act(policy.base.repeat(3, 1), rest[0]).abs() == 1
    assert clipped.any() == (functions[1] == "clip") and not clipped.all()


def on_kernels(models, returns, *args: Tensor) -> tuple[Tensor, Gradient]:
    """Value and gradient by the Triton kernels; runs in the interpreter's process."""
    from fastdwm_kernels.rollout import triton_ops

    return triton_ops.value(models, returns, *args), triton_ops.gradient(models, returns, *args)


def assert_single_precision(value: Tensor, result: Gradient, expected: Gradient) -> None:
    """Compare a value and a gradient in float32 with the gradient in float64."""
    torch.testing.assert_close(value.double(), expected.returns, rtol=1e-5, atol=1e-5)
    norms = expected.grads.norm(dim=1)
    torch.testing.assert_close(result.partial_sq_norms.sum(1).sqrt().double(), norms, rtol=1e-5, atol=0)
    for ours, theirs in zip(result[:3], expected[:3], strict=True):
        scale = theirs.abs().max()
        torch.testing.assert_close(ours.double() / scale, theirs / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("horizon", "particles", "termination", "terminal_value"),
    [
        (2, 17, "none", "min"),
        (2, 17, "soft", "mean"),
        (1, 1, "mask", "first"),
        (0, 3, "none", "min"),
        (2, 70, "soft", "min"),
    ],
)
def test_kernels_in_the_interpreter_equal_the_reference(interpreted, horizon, particles, termination, terminal_value):
    world, args = make_world(limits=LIMITS), arguments(2, horizon, particles)
    config = ITPOConfig(termination=termination, termination_temperature=0.5, terminal_value=terminal_value)
    expected = ReferenceObjective(POLICY, world, config).gradient(*args)
    fused, rounded = FusedObjective(POLICY, single_precision(world), config), [x.float() for x in args]
    assert_single_precision(*interpreted(on_kernels, fused.models, fused.returns, *rounded), expected)


@pytest.mark.parametrize(("horizon", "particles", "termination"), [(2, 17, "soft"), (3, 5, "none")])
def test_kernels_in_fp16_err_at_most_twice_as_much_as_torch(interpreted, horizon, particles, termination):
    world, args = make_world(limits=LIMITS), arguments(2, horizon, particles)
    config = ITPOConfig(termination=termination, termination_temperature=0.5, terminal_value="mean")
    expected = ReferenceObjective(POLICY, world, config).gradient(*args)
    single, rounded = single_precision(world), [x.float() for x in args]
    with Products("fp16"):
        eager = ReferenceObjective(POLICY, single, config).gradient(*rounded)
    fused = FusedObjective(POLICY, single, config, precision="fp16")
    value, gradient = interpreted(on_kernels, fused.models, fused.returns, *rounded)
    assert torch.equal(value, gradient.returns)
    for ours, theirs, truth in zip(gradient[:3], eager[:3], expected[:3], strict=True):
        assert_within_twice(ours, theirs, truth, "fp16")


def test_kernels_of_other_functions_in_the_interpreter_equal_the_reference(interpreted):
    policy, world = foreign("tanh", "clip")
    _, *rest = arguments(2, 1, 5)
    args = policy.base.repeat(2, 1), *rest
    expected = ReferenceObjective(policy, world, ITPOConfig()).gradient(*args)
    fused, rounded = FusedObjective(policy, single_precision(world), ITPOConfig()), [x.float() for x in args]
    assert_single_precision(*interpreted(on_kernels, fused.models, fused.returns, *rounded), expected)


def scored_on_kernels(models, *args: Tensor) -> tuple[Tensor, Gradient]:
    """Value and gradient of a score by the Triton kernels; runs in the interpreter's process."""
    from fastdwm_kernels.rollout import score, triton_ops

    value = score.value(triton_ops, models, nonlinear, *args)
    return value, score.gradient(triton_ops, models, nonlinear, *args)


def nonlinear(states: Tensor, actions: Tensor) -> Tensor:
    """A score (B,) with a different gradient in every state and action."""
    return (states.sin().sum(-1) + actions.square().sum(-1)).mean((0, 2))


def test_a_score_on_kernels_in_the_interpreter_equals_the_reference(interpreted):
    world, args, config = make_world(), arguments(2, 2, 5), ITPOConfig()
    score = lambda world, states, actions: nonlinear(states, actions)  # noqa: E731
    expected = ReferenceObjective(POLICY, world, config, score).gradient(*args)
    fused = FusedObjective(POLICY, single_precision(world), config, score)
    assert_single_precision(*interpreted(scored_on_kernels, fused.models, *(x.float() for x in args)), expected)


def single_precision(world: World) -> World:
    """The same models in float32."""

    def convert(model):
        fields = {k: v.float() if isinstance(v, Tensor) else v for k, v in vars(model).items()}
        return type(model)(**fields | {"params": {k: v.float() for k, v in model.params.items()}})

    parts = {name: convert(getattr(world, name)) for name in ("dynamics", "reward", "critic")}
    return replace(world, **parts)


def test_wrong_arguments_raise():
    objective = FusedObjective(POLICY, make_world(), ITPOConfig())
    params, obs, noise = arguments(2, 2, 3)
    with pytest.raises(ValueError, match="noise: expected shape"):
        objective.value(params, obs, noise[:, :3])
    with pytest.raises(ValueError, match="params: expected shape"):
        objective.gradient(params[:, 1:], obs, noise)
    with pytest.raises(TypeError, match="obs: expected torch.float64"):
        objective.value(params, obs.float(), noise)
