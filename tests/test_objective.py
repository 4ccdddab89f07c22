"""What an inner step is given, against its meaning: the anchored gradient, and the slopes of the return."""

import pytest
import torch
from models import ACTION_DIM, make_noise, make_obs, make_policies, make_policy, make_world

from fastdwm.config import ITPOConfig
from fastdwm.itpo.fused import FusedObjective
from fastdwm.itpo.objective import ReferenceObjective
from fastdwm.itpo.rollout import scored_return
from fastdwm.kernels.rollout import Anchor

B, H, K, M = 3, 2, 4, 5
POLICY, WORLD = make_policy(), make_world()
KINDS = pytest.mark.parametrize("kind", [ReferenceObjective, FusedObjective])


def reached(world, states, actions):
    """A score in which no action stands alone."""
    return (states[-1, ..., 0] - 0.1 * actions.square().sum((0, -1))).logsumexp(1)


SCORES = pytest.mark.parametrize("score", [None, reached], ids=["return", "score"])


def given():
    """params (B, P), obs (B, S), noise (H, K, B, M, S)."""
    return POLICY.layout.pack(make_policies(B)), make_obs(B), make_noise(H, K, B, M)


def make_anchor() -> Anchor:
    action = torch.linspace(-0.9, 0.8, B * ACTION_DIM).double().view(B, ACTION_DIM)
    return Anchor(action, torch.tensor([0.5, 0.0, 3.0]).double())


@KINDS
@SCORES
def test_the_anchored_gradient_is_that_of_the_return_less_a_penalty_on_the_real_states_action(kind, score):
    params, obs, noise = given()
    anchor, objective = make_anchor(), kind(POLICY, WORLD, ITPOConfig(), score)

    def charged(params):
        distance = (POLICY.act(params, obs) - anchor.action).square().sum(1)
        return objective.value(params, obs, noise) - anchor.weight * distance

    found, h = objective.gradient(params, obs, noise, anchor), 1e-6
    direction = torch.randn(params.shape, generator=torch.Generator().manual_seed(0)).double()
    expected = (charged(params + h * direction) - charged(params - h * direction)) / (2 * h)
    torch.testing.assert_close((found.grads * direction).sum(1), expected, rtol=1e-6, atol=1e-9)
    # The return itself is free of it.
    free = objective.gradient(params, obs, noise)
    torch.testing.assert_close(found.returns, free.returns, rtol=1e-12, atol=0)
    assert ((found.grads - free.grads).norm(dim=1) > 0.1).tolist() == [True, False, True]


def nudged_return(change, params, obs, noise, score):
    """J (B,) when every imagined action is changed by so much (H + 1, B, M, A), and the rest follows from it."""
    views = POLICY.layout.views(params)
    states, actions = [obs.unsqueeze(1).expand(-1, M, -1)], []
    for j in range(H + 1):
        actions.append(POLICY.apply(views, states[j]) + change[j])
        if j < H:
            states.append(WORLD.dynamics.next_obs(states[j], actions[j], noise[j]))
    return scored_return(WORLD, torch.stack(states), torch.stack(actions), ITPOConfig(), score)


@KINDS
@SCORES
@pytest.mark.parametrize("anchor", [None, make_anchor()], ids=["free", "anchored"])
def test_slopes_are_what_nudging_an_imagined_action_does(kind, score, anchor):
    """To its particle's own return, of which J is the mean; whether or not there is an anchor."""
    found, h = kind(POLICY, WORLD, ITPOConfig(), score).gradient(*given(), anchor), 1e-6
    assert found.slopes.shape == (H + 1, B, M, ACTION_DIM)
    for j in range(H + 1):
        change = torch.zeros(H + 1, B, M, ACTION_DIM, dtype=torch.float64)
        change[j, :, j, -1] = h
        slope = M * (nudged_return(change, *given(), score) - nudged_return(-change, *given(), score)) / (2 * h)
        assert slope.abs().min() > 1e-4
        torch.testing.assert_close(found.slopes[j, :, j, -1], slope, rtol=1e-5, atol=1e-9)
