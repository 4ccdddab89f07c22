"""Gradient of an inner step against finite differences in the parameters and in the imagined actions."""

import pytest
import torch
from models import ACTION_DIM, make_noise, make_obs, make_policies, make_policy, make_world

from fastdwm.config import ITPOConfig
from fastdwm.itpo.fused import FusedObjective
from fastdwm.itpo.objective import ReferenceObjective
from fastdwm.itpo.rollout import scored_return

B, H, K, M = 3, 2, 4, 5
POLICY, WORLD = make_policy(), make_world()
KINDS = pytest.mark.parametrize("kind", [ReferenceObjective, FusedObjective])


def reached(world, states, actions):
    """Score that does not split into terms of single actions."""
    return (states[-1, ..., 0] - 0.1 * actions.square().sum((0, -1))).logsumexp(1)


SCORES = pytest.mark.parametrize("score", [None, reached], ids=["return", "score"])


def arguments():
    """Arguments params (B, P), obs (B, S) and noise (H, K, B, M, S)."""
    return POLICY.layout.pack(make_policies(B)), make_obs(B), make_noise(H, K, B, M)


@KINDS
@SCORES
def test_the_gradient_equals_differences_in_the_parameters(kind, score):
    params, obs, noise = arguments()
    objective, h = kind(POLICY, WORLD, ITPOConfig(), score), 1e-6
    result = objective.gradient(params, obs, noise)
    direction = torch.randn(params.shape, generator=torch.Generator().manual_seed(0)).double()
    ahead, behind = (objective.value(params + sign * h * direction, obs, noise) for sign in (1, -1))
    expected = (ahead - behind) / (2 * h)
    assert expected.abs().min() > 1e-2
    torch.testing.assert_close((result.grads * direction).sum(1), expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(result.returns, objective.value(params, obs, noise), rtol=1e-12, atol=0)
    torch.testing.assert_close(result.partial_sq_norms.sum(1), result.grads.square().sum(1), rtol=1e-12, atol=0)


def nudged_return(change, params, obs, noise, score):
    """J (B,) of a rollout whose imagined actions are changed by `change` (H + 1, B, M, A)."""
    views = POLICY.layout.views(params)
    states, actions = [obs.unsqueeze(1).expand(-1, M, -1)], []
    for j in range(H + 1):
        actions.append(POLICY.apply(views, states[j]) + change[j])
        if j < H:
            states.append(WORLD.dynamics.next_obs(states[j], actions[j], noise[j]))
    return scored_return(WORLD, torch.stack(states), torch.stack(actions), ITPOConfig(), score)


@KINDS
@SCORES
def test_action_grads_equal_differences_in_an_imagined_action(kind, score):
    """They are derivatives of the particle's own return; J is the mean over particles."""
    result, h = kind(POLICY, WORLD, ITPOConfig(), score).gradient(*arguments()).action_grads, 1e-6
    assert result.shape == (H + 1, B, M, ACTION_DIM)
    for j in range(H + 1):
        change = torch.zeros(H + 1, B, M, ACTION_DIM, dtype=torch.float64)
        change[j, :, j, -1] = h
        slope = M * (nudged_return(change, *arguments(), score) - nudged_return(-change, *arguments(), score)) / (2 * h)
        assert slope.abs().min() > 1e-4
        torch.testing.assert_close(result[j, :, j, -1], slope, rtol=1e-5, atol=1e-9)
