"""The hand-derived imagined return and gradient against autograd through the plain models."""

from dataclasses import replace

import pytest
import torch
from models import make_noise, make_obs, make_policies, make_policy, make_world
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.itpo.fused import FusedObjective
from fastdwm.itpo.objective import ReferenceObjective
from fastdwm.kernels.rollout import Anchor, Gradient
from fastdwm.models.rebrac import Critics
from fastdwm.models.world import World
from fastdwm.tasks import Limit

LIMITS = (Limit(0, -1.5, 1.2), Limit(2, low=-2.0))
POLICY = make_policy()
LAYOUT = POLICY.layout


def arguments(n_episodes: int, horizon: int, particles: int) -> tuple[Tensor, ...]:
    """params (B, P), obs (B, S), noise (H, K, B, M, S), float64."""
    params = LAYOUT.pack(make_policies(n_episodes))
    return params, make_obs(n_episodes), make_noise(horizon, 4, n_episodes, particles)


def make_anchor(n_episodes: int, dtype: torch.dtype = torch.float64) -> Anchor:
    """In every episode another action and another weight."""
    action = torch.linspace(-0.9, 0.8, 2 * n_episodes).view(n_episodes, 2)
    return Anchor(action.to(dtype), torch.linspace(0.2, 2.0, n_episodes).to(dtype))


def compare(world: World, config: ITPOConfig, given: tuple[Tensor, ...], anchor: Anchor | None = None) -> Tensor:
    """Fused against reference; returns J."""
    fused, reference = FusedObjective(POLICY, world, config), ReferenceObjective(POLICY, world, config)
    found, expected = fused.gradient(*given, anchor), reference.gradient(*given, anchor)
    assert expected.grads.abs().amax(1).min() > 1e-4 and expected.slopes.abs().amax((0, 2, 3)).min() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(fused.value(*given), expected.returns, rtol=1e-12, atol=1e-12)
    return found.returns


@pytest.mark.parametrize("target", ["eps", "x0"])
@pytest.mark.parametrize("terminal_value", ["min", "mean", "first"])
@pytest.mark.parametrize("horizon", [0, 1, 3])
def test_equals_autograd_in_float64(horizon, terminal_value, target):
    compare(make_world(target), ITPOConfig(terminal_value=terminal_value), arguments(3, horizon, 5))


ANCHORED = pytest.mark.parametrize("anchored", [False, True], ids=["free", "anchored"])


@ANCHORED
@pytest.mark.parametrize("termination", ["none", "mask", "soft"])
def test_termination_and_anchor_equal_autograd(termination, anchored):
    world, given = make_world(limits=LIMITS), arguments(4, 3, 6)
    config = ITPOConfig(termination=termination, termination_temperature=0.5)
    returns = compare(world, config, given, make_anchor(4) if anchored else None)
    plain = ReferenceObjective(POLICY, world, replace(config, termination="none")).value(*given)
    # The limits cut through the visited states, so the setting matters.
    assert termination == "none" or (returns - plain).abs().max() > 1e-3


@pytest.mark.parametrize("horizon", [0, 1])
def test_an_anchor_on_a_short_rollout(horizon):
    compare(make_world(), ITPOConfig(), arguments(3, horizon, 5), make_anchor(3))


def test_one_particle_one_episode():
    compare(make_world(), ITPOConfig(), arguments(1, 2, 1))


def on_kernels(models, returns, anchor: Anchor | None, *given: Tensor) -> tuple[Tensor, Gradient]:
    """Value and gradient by the Triton kernels; runs in the interpreter's process."""
    from fastdwm.kernels.rollout import triton_ops

    return triton_ops.value(models, returns, *given), triton_ops.gradient(models, returns, *given, anchor)


@pytest.mark.parametrize(
    ("horizon", "particles", "termination", "terminal_value", "anchored"),
    [
        (2, 17, "none", "min", False),
        (2, 17, "soft", "mean", True),
        (1, 1, "mask", "first", True),
        (0, 3, "none", "min", True),
        (2, 70, "soft", "min", False),
    ],
)
def test_kernels_in_the_interpreter_equal_the_reference(
    interpreted, horizon, particles, termination, terminal_value, anchored
):
    world, given = make_world(limits=LIMITS), arguments(2, horizon, particles)
    anchor = make_anchor(2) if anchored else None
    config = ITPOConfig(termination=termination, termination_temperature=0.5, terminal_value=terminal_value)
    expected = ReferenceObjective(POLICY, world, config).gradient(*given, anchor)
    fused, rounded = FusedObjective(POLICY, single_precision(world), config), [x.float() for x in given]
    rounded_anchor = make_anchor(2, torch.float32) if anchored else None
    value, found = interpreted(on_kernels, fused.models, fused.returns, rounded_anchor, *rounded)
    torch.testing.assert_close(value.double(), expected.returns, rtol=1e-5, atol=1e-5)
    norms = expected.grads.norm(dim=1)
    torch.testing.assert_close(found.squares.sum(1).sqrt().double(), norms, rtol=1e-5, atol=0)
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        scale = theirs.abs().max()
        torch.testing.assert_close(ours.double() / scale, theirs / scale, rtol=0, atol=1e-5)
    if anchor is None:
        assert found.anchored is None
    else:
        _, value = ReferenceObjective(POLICY, world, config).outcome(given[1], anchor.action, anchor.action)
        torch.testing.assert_close(found.anchored.double(), value, rtol=1e-5, atol=1e-5)


def test_the_outcome_by_kernels_in_the_interpreter_equals_the_reference(interpreted):
    world, config, (_, obs, _) = make_world(), ITPOConfig(), arguments(3, 1, 1)
    action, last = make_anchor(3).action, -make_anchor(3).action
    expected = ReferenceObjective(POLICY, world, config).outcome(obs, action, last)
    fused = FusedObjective(POLICY, single_precision(world), config)
    given = fused.models, fused.returns, *(x.float() for x in (obs, action, last))
    found = interpreted(outcome_on_kernels, *given)
    assert all(map(torch.equal, interpreted(outcome_on_kernels, *given, found[1]), found))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def outcome_on_kernels(*given) -> tuple[Tensor, Tensor]:
    from fastdwm.kernels.rollout import triton_ops

    return triton_ops.outcome(*given)


def scored_on_kernels(models, anchor: Anchor, *given: Tensor) -> tuple[Tensor, Gradient]:
    """The same of a score; runs in the interpreter's process."""
    from fastdwm.kernels.rollout import score, triton_ops

    value = score.value(triton_ops, models, bent, *given)
    return value, score.gradient(triton_ops, models, bent, *given, anchor)


def bent(states: Tensor, actions: Tensor) -> Tensor:
    """A score (B,) with a slope of its own in every state and action."""
    return (states.sin().sum(-1) + actions.square().sum(-1)).mean((0, 2))


def test_a_score_on_kernels_in_the_interpreter_equals_the_reference(interpreted):
    world, given, config = make_world(), arguments(2, 2, 5), ITPOConfig()
    score = lambda world, states, actions: bent(states, actions)  # noqa: E731
    expected = ReferenceObjective(POLICY, world, config, score).gradient(*given, make_anchor(2))
    fused = FusedObjective(POLICY, single_precision(world), config, score)
    rounded = [x.float() for x in given]
    value, found = interpreted(scored_on_kernels, fused.models, make_anchor(2, torch.float32), *rounded)
    torch.testing.assert_close(value.double(), expected.returns, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        scale = theirs.abs().max()
        torch.testing.assert_close(ours.double() / scale, theirs / scale, rtol=0, atol=1e-5)


def single_precision(world: World) -> World:
    """The same models in float32."""

    def convert(model):
        fields = {k: v.float() if isinstance(v, Tensor) else v for k, v in vars(model).items()}
        return type(model)(**fields | {"params": {k: v.float() for k, v in model.params.items()}})

    critic = Critics({name: value.float() for name, value in world.critic.params.items()})
    return replace(world, dynamics=convert(world.dynamics), reward=convert(world.reward), critic=critic)


def test_wrong_arguments_raise():
    objective = FusedObjective(POLICY, make_world(), ITPOConfig())
    (params, obs, noise), anchor = arguments(2, 2, 3), make_anchor(2)
    with pytest.raises(ValueError, match="noise: expected shape"):
        objective.value(params, obs, noise[:, :3])
    with pytest.raises(ValueError, match="params: expected shape"):
        objective.gradient(params[:, 1:], obs, noise)
    with pytest.raises(TypeError, match="obs: expected torch.float64"):
        objective.value(params, obs.float(), noise)
    with pytest.raises(ValueError, match="anchor: expected shape"):
        objective.gradient(params, obs, noise, Anchor(anchor.action[:, :1], anchor.weight))
    with pytest.raises(TypeError, match="weight: expected torch.float64"):
        objective.gradient(params, obs, noise, Anchor(anchor.action, anchor.weight.float()))
