"""Tilt weights worked out by hand, their automatic strength, and training with strength zero."""

import math
from functools import partial

import pytest
import torch
from models import ACTION_DIM, HIDDEN, OBS_DIM, generator
from torch import Tensor

from fastdwm.models.config import MeanFlowConfig
from fastdwm.models.meanflow import build_meanflow, draw_times, meanflow_loss, meanflow_shapes
from fastdwm.models.nets import init_mlp, map_params
from fastdwm.models.policy import mlp_policy
from fastdwm.models.rebrac import Critics, critic_shapes, init_policy
from fastdwm.train import tilt as tilt_module
from fastdwm.train.tilt import (
    MAX_WEIGHT,
    MIN_ESS_SHARE,
    STRENGTHS,
    ess_share,
    largest_strength,
    outcome_value,
    policy_score,
    tilt,
    tilt_weights,
    value_score,
)


def test_weights_by_hand():
    # exp(2 score) = 1, 3, 4 has the mean 8 / 3; the effective sample size is 8^2 / (1 + 9 + 16).
    result = tilt(torch.tensor([0.0, math.log(3) / 2, math.log(4) / 2]), 2.0)
    torch.testing.assert_close(result.weights, torch.tensor([3 / 8, 9 / 8, 12 / 8]))
    assert result.weights.dtype == torch.float32 and result.strength == 2.0 and result.clipped_share == 0
    assert result.ess_share == pytest.approx(64 / 26 / 3)
    assert ess_share(torch.tensor([1.0, 3.0, 4.0])) == pytest.approx(64 / 26 / 3)
    assert result.metrics()["tilt_max_weight"] == pytest.approx(1.5)


def test_large_weights_are_capped_and_the_mean_restored():
    # One row of 99 has e^10 times the weight of the others, 99 e^10 / (98 + e^10) = 98.56 before the cap.
    exponent = torch.zeros(99).double()
    exponent[7] = 10.0
    weights, clipped_share = tilt_weights(exponent)
    rest = 99 / (98 + math.exp(10))
    mean = (MAX_WEIGHT + 98 * rest) / 99
    assert clipped_share == pytest.approx(1 / 99)
    assert float(weights[7]) == pytest.approx(MAX_WEIGHT / mean)
    torch.testing.assert_close(weights[:7], torch.full((7,), rest / mean).double())
    assert float(weights.mean()) == pytest.approx(1.0)


def test_exponents_of_any_size_are_finite():
    for shift in (-1e4, 1e4):
        weights, _ = tilt_weights(torch.tensor([shift, shift - math.log(2)], dtype=torch.float64))
        expected = torch.tensor([4 / 3, 2 / 3], dtype=torch.float64)
        torch.testing.assert_close(weights, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("n", [1, 3, 1000, 54_321])
def test_strength_zero_gives_weights_of_exactly_one(n):
    result = tilt(-10 * torch.rand(n, generator=generator()), 0.0)
    assert torch.equal(result.weights, torch.ones(n))
    assert result.ess_share == 1.0 and result.clipped_share == 0.0


def test_automatic_strength_is_the_largest_that_keeps_half_the_data():
    score = -0.8 * torch.rand(5000, generator=generator()).double()
    strength = largest_strength(score)
    shares = {s: ess_share(tilt_weights(s * score)[0]) for s in STRENGTHS}
    assert shares[strength] >= MIN_ESS_SHARE
    assert all(share < MIN_ESS_SHARE for s, share in shares.items() if s > strength)
    # Uniform scores in [-c, 0]: the share is 2 tanh(kc / 2) / kc, 0.83 and 0.48 for the strengths 2 and 5.
    assert strength == 2.0 and shares[2.0] == pytest.approx(math.tanh(0.8) / 0.8, rel=0.02)
    assert tilt(score, None).strength == strength
    assert largest_strength(1e9 * score) == 0.0


def make_actor():
    actor = init_policy(OBS_DIM, ACTION_DIM, HIDDEN, generator(0))
    actor["w2"] *= 300
    return actor


def test_policy_score_is_the_squared_distance_from_the_policy(monkeypatch):
    actor, obs = partial(mlp_policy, make_actor()), torch.randn(7, OBS_DIM, generator=generator(1))
    action = actor(obs) + torch.tensor([0.3, -0.4])
    torch.testing.assert_close(policy_score(actor, obs, action), torch.full((7,), -0.25))
    expected = policy_score(actor, obs, action)
    monkeypatch.setattr(tilt_module, "CHUNK_ROWS", 3)
    torch.testing.assert_close(policy_score(actor, obs, action), expected)


def test_value_score_is_the_standardised_surprise():
    actor, g = partial(mlp_policy, make_actor()), generator(2)
    critics = Critics(init_mlp(critic_shapes(OBS_DIM, ACTION_DIM, HIDDEN), g))
    next_obs, terminated = torch.randn(6, OBS_DIM, generator=g), torch.tensor([0, 0, 1, 0, 0, 0], dtype=torch.bool)
    value = outcome_value(actor, critics, next_obs, terminated)
    q = critics(next_obs, actor(next_obs))
    expected = [0.0 if end else float(min(a, b)) for end, a, b in zip(terminated, *q, strict=True)]
    torch.testing.assert_close(value, torch.tensor(expected))
    obs, action = torch.arange(6.0).unsqueeze(1), torch.ones(6, 1)
    surprise = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.5, -0.5])
    score = value_score(lambda s, a: (s + a).squeeze(1), obs, action, torch.arange(6.0) + 1 + surprise)
    torch.testing.assert_close(score, surprise / surprise.std())
    # A negative strength prefers values below the mean; a perfect baseline leaves nothing to tilt.
    weights = tilt(score, -0.5).weights
    assert (weights[1::2] > 1).all() and (weights[::2] < weights[1::2]).all()
    perfect = value_score(lambda s, a: s.squeeze(1), obs, action, torch.arange(6.0))
    assert torch.equal(tilt(perfect, -0.5).weights, torch.ones(6))


def toy_transitions(n: int) -> dict[str, torch.Tensor]:
    """Transitions of one coordinate whose change is a nonlinear function of the action."""
    g = generator(4)
    obs, action = torch.randn(n, 1, generator=g), torch.rand(n, 1, generator=g) * 2 - 1
    return {"obs": obs, "action": action, "next_obs": obs + torch.sin(4 * action) + 0.3 * obs * action}


CONFIG = MeanFlowConfig(hidden=(3,), time_features=4)
STATISTICS = {"obs_mean": torch.zeros(1), "obs_std": torch.ones(1), "delta_mean": torch.zeros(1)}
STATISTICS |= {"delta_std": torch.full((1,), 0.8)}


def toy_loss(params, data, weights, g):
    """`meanflow_loss` of a random batch."""
    n = 256
    rows = torch.randint(len(data["obs"]), (n,), generator=g)
    r, t = draw_times(CONFIG, n, g)
    batch, noise = map_params(lambda x: x[rows], data), torch.randn(n, 1, generator=g)
    model = build_meanflow(params, STATISTICS, CONFIG)
    return meanflow_loss(model, CONFIG, batch, r, t, noise, None if weights is None else weights[rows])


def train_toy(data, weights, updates: int):
    """Trained parameters, and the losses of all updates."""
    params, g = init_mlp(meanflow_shapes(1, 1, CONFIG), generator(5)), generator(6)
    for value in params.values():
        value.requires_grad_(True)
    optimiser = torch.optim.Adam(params.values(), 3e-2)
    losses = []
    for _ in range(updates):
        losses.append(toy_loss(params, data, weights, g))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    return map_params(Tensor.detach, params), [float(loss.detach()) for loss in losses]


def test_strength_zero_trains_bit_for_bit_as_without_a_tilt():
    data = toy_transitions(2000)
    score = -(data["action"] - 0.7).square().sum(-1)
    plain, tilted, strong = (
        train_toy(data, weights, 10) for weights in (None, tilt(score, 0.0).weights, tilt(score, 5.0).weights)
    )
    assert plain[1] == tilted[1] and plain[1] != strong[1]
    assert all(torch.equal(plain[0][name], tilted[0][name]) for name in plain[0])
