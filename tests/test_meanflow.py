"""MeanFlow against a flow with a closed form, its loss against automatic differentiation, its steps as a sampler."""

import math
from itertools import product

import pytest
import torch
from models import ACTION_DIM, HIDDEN, OBS_DIM, double, generator

from fastdwm.errors import InputError
from fastdwm.models.config import MeanFlowConfig, MLPConfig
from fastdwm.models.meanflow import (
    T_FLOOR,
    average_velocity,
    build_meanflow,
    draw_times,
    meanflow_loss,
    meanflow_shapes,
    time_features,
)
from fastdwm.models.mlp import build_mlp, mlp_loss, mlp_world_shapes
from fastdwm.models.nets import init_mlp
from fastdwm.models.sampler import Sampler
from fastdwm_kernels.sampler import pack_sampler, sample

TARGETS = ("x", "u")
STATISTICS = {
    "obs_mean": torch.linspace(-0.5, 0.5, OBS_DIM),
    "obs_std": torch.linspace(0.5, 2.0, OBS_DIM),
    "delta_mean": torch.linspace(0.1, -0.1, OBS_DIM),
    "delta_std": torch.linspace(0.1, 0.4, OBS_DIM),
}
DATA_STD = 0.3


def make_config(**kwargs) -> MeanFlowConfig:
    return MeanFlowConfig(**{"hidden": HIDDEN, "time_features": 4} | kwargs)


def make_model(config: MeanFlowConfig, kind: type[Sampler] = Sampler) -> Sampler:
    params = double(init_mlp(meanflow_shapes(OBS_DIM, ACTION_DIM, config), generator()))
    return kind(**vars(build_meanflow(params, STATISTICS, config, torch.float64)))


def make_rows(n: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """obs, action and noise (n, ...)."""
    g = generator(1)
    obs, noise = torch.randn(2, n, OBS_DIM, generator=g, dtype=torch.float64)
    return obs, torch.rand(n, ACTION_DIM, generator=g, dtype=torch.float64) * 2 - 1, noise


def make_batch(model: Sampler, n: int = 12) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Batch, its clean targets y and its noise."""
    obs, action, noise = make_rows(n)
    clean = torch.randn(n, OBS_DIM, generator=generator(2), dtype=torch.float64)
    next_obs = obs + model.delta_mean + model.delta_std * clean
    return {"obs": obs, "action": action, "next_obs": next_obs}, clean, noise


def make_times(config: MeanFlowConfig, n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Drawn times above the floor of t."""
    r, t = (x.double() for x in draw_times(config, n, generator(3)))
    return 0.1 + 0.9 * r, 0.1 + 0.9 * t


# A flow with a closed form: y ~ N(m, DATA_STD^2) with a mean m that is linear in the condition. Then z_t is Gaussian
# with mean (1 - t) m and std s_t, and the flow keeps (z_t - mean) / s_t.
def mean_of(obs, action):
    return 0.5 * obs - 0.3 + 0.2 * action.sum(-1, keepdim=True)


def std_at(t):
    return ((1 - t) ** 2 * DATA_STD**2 + t**2).sqrt()


def flow(z, r, t, m):
    """State z_r of the flow from z_t."""
    return (1 - r) * m + std_at(r) / std_at(t) * (z - (1 - t) * m)


def marginal_velocity(z, t, m):
    rate = (t - (1 - t) * DATA_STD**2) / std_at(t)
    return -m + rate / std_at(t) * (z - (1 - t) * m)


def exact_velocity(z, r, t, m):
    gap = t - r
    return torch.where(gap == 0, marginal_velocity(z, t, m), (z - flow(z, r, t, m)) / torch.where(gap == 0, 1.0, gap))


class GaussianFlow(Sampler):
    """Exact model, which gets the times back from the features sin and cos of t and t - r, with frequency 1."""

    target = "x"

    def predict(self, z, features, obs, action):
        sin_t, sin_gap, cos_t, cos_gap = features.split(1, -1)
        t = torch.atan2(sin_t, cos_t)
        u = exact_velocity(z, t - torch.atan2(sin_gap, cos_gap), t, mean_of(obs, action))
        return {"x": z - t * u, "u": u}[self.target]


EXACT = {name: type(name, (GaussianFlow,), {"target": name}) for name in TARGETS}


@torch.no_grad()
def total_derivative(u, z, r, t, direction):
    """du/dt (N, S) along the flow by torch.func: the derivative of u along (direction, 0, 1) in (z, r, t)."""
    return torch.func.jvp(u, (z, r, t), (direction, torch.zeros_like(r), torch.ones_like(t)))[1]


def reference_loss(model, config, batch, r, t, noise, weights=None):
    """Loss by its definition: with u, its derivative and the error in it."""
    clean = (batch["next_obs"] - batch["obs"] - model.delta_mean) / model.delta_std
    condition, action = (batch["obs"] - model.obs_mean) / model.obs_std, batch["action"]
    z, velocity = clean + t.unsqueeze(-1) * (noise - clean), noise - clean
    u = average_velocity(model, config, condition, action)
    with torch.no_grad():
        direction = u(z, t, t) if config.objective == "imf" else velocity
    rate = total_derivative(u, z, r, t, direction)
    error = u(z, r, t) + (t - r).unsqueeze(-1) * rate - velocity
    if config.target == "x":
        error = error * t.clamp(min=T_FLOOR).unsqueeze(-1)
    rows = error.square().mean(-1)
    return (rows if weights is None else rows * weights).mean()


OPTIONS = list(product(TARGETS, ("imf", "mf"), ("uniform", "logit_normal"), (0, 0.5, 1)))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("target, objective, law, share", OPTIONS)
def test_loss_and_gradient_are_those_of_automatic_differentiation(target, objective, law, share, weighted):
    config = make_config(time_features=16, target=target, objective=objective, time_law=law, equal_share=share)
    model, n = make_model(config), 101
    batch, _, noise = make_batch(model, n)
    r, t = (x.double() for x in draw_times(config, n, generator(3)))
    t[-2:] = torch.tensor([T_FLOOR / 2, T_FLOOR])
    r[-2:] = share * t[-2:]
    weights = torch.rand(n, generator=generator(4)).double() if weighted else None
    params = list(model.params.values())
    for value in params:
        value.requires_grad_(True)
    losses = [loss(model, config, batch, r, t, noise, weights) for loss in (meanflow_loss, reference_loss)]
    torch.testing.assert_close(*losses, rtol=1e-10, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, params) for loss in losses), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("objective", ["imf", "mf"])
@pytest.mark.parametrize("target", TARGETS)
def test_reference_loss_of_the_exact_flow_is_that_of_its_velocity(target, objective):
    # With its own velocity as the direction, V is the marginal velocity v* in every row. The direction e - y adds
    # (t - r) du/dz (e - y - v*) = (1 - s_r / s_t) (e - y - v*), so that s_r / s_t of the error v* - (e - y) is left.
    config = make_config(target=target, objective=objective)
    model = make_model(config, EXACT[target])
    batch, clean, noise = make_batch(model)
    r, t = make_times(config)
    m = mean_of((batch["obs"] - model.obs_mean) / model.obs_std, batch["action"])
    column, z = t.unsqueeze(-1), clean + t.unsqueeze(-1) * (noise - clean)
    error = marginal_velocity(z, column, m) - (noise - clean)
    if objective == "mf":
        error = error * std_at(r.unsqueeze(-1)) / std_at(column)
    if target == "x":
        error = error * column
    actual = reference_loss(model, config, batch, r, t, noise)
    torch.testing.assert_close(actual, error.square().mean(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("target", TARGETS)
def test_any_number_of_steps_composes_to_the_exact_flow(target, steps):
    config = make_config(target=target, steps=steps)
    model = make_model(config, EXACT[target])
    obs, action, noise = make_rows()
    m = mean_of((obs - model.obs_mean) / model.obs_std, action)
    # From time 1, where z is the noise, to time 0, where it is m + DATA_STD times the noise.
    expected = obs + model.delta_mean + model.delta_std * (m + DATA_STD * noise)
    torch.testing.assert_close(model.next_obs(obs, action, noise.unsqueeze(0)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("target", TARGETS)
def test_time_zero_trains(target):
    config = make_config(target=target)
    model = make_model(config)
    batch, _, noise = make_batch(model)
    model.params["w0"].requires_grad_(True)
    loss = meanflow_loss(model, config, batch, torch.zeros(12).double(), torch.zeros(12).double(), noise)
    (grad,) = torch.autograd.grad(loss, [model.params["w0"]])
    assert loss.isfinite() and grad.isfinite().all() and grad.abs().max() > 0


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("target", TARGETS)
def test_reverse_sampler_gives_the_models_numbers(target, steps):
    model = make_model(make_config(target=target, steps=steps, temperature=0.7))
    obs, action, noise = make_rows()
    weights = pack_sampler(*model.sampler(), OBS_DIM, ACTION_DIM)
    bank = model.sampler_noise(noise.reshape(1, 1, 3, 4, OBS_DIM)).reshape(steps, -1, OBS_DIM)
    y = sample(weights, (obs - model.obs_mean) / model.obs_std, action, bank)
    expected = model.next_obs(obs, action, noise.unsqueeze(0))
    torch.testing.assert_close(obs + model.delta_mean + model.delta_std * y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2])
def test_temperature_scales_the_noise(steps):
    hot, warm, cold = (make_model(make_config(steps=steps, temperature=tau)) for tau in (1.0, 0.5, 0.0))
    obs, action, noise = make_rows()
    noise = noise.unsqueeze(0)
    assert torch.equal(warm.next_obs(obs, action, noise), hot.next_obs(obs, action, 0.5 * noise))
    assert torch.equal(cold.next_obs(obs, action, noise), cold.next_obs(obs, action, noise.flip(1)))
    assert not torch.equal(hot.next_obs(obs, action, noise), hot.next_obs(obs, action, noise.flip(1)))


@pytest.mark.parametrize("law", ["logit_normal", "uniform"])
def test_times_follow_their_law(law):
    config = MeanFlowConfig(time_law=law, equal_share=0.25)
    r, t = draw_times(config, 40_000, generator())
    n_equal = config.equal_rows(40_000)
    assert n_equal == 10_000 and torch.equal(r[:n_equal], t[:n_equal])
    assert (r[n_equal:] < t[n_equal:]).float().mean() > 0.999 and (r <= t).all() and (r >= 0).all() and (t <= 1).all()
    # A sorted pair has the law of two draws, whose median is sigmoid(-0.4) or 1 / 2.
    median = torch.cat([r[n_equal:], t[n_equal:]]).median()
    assert abs(median - (1 / (1 + math.exp(0.4)) if law == "logit_normal" else 0.5)) < 0.01
    # The distribution function of the later of two is the square of that of one.
    below = (t < median).float().mean()
    assert abs(below - 0.25) < 0.02


def test_time_features_are_slow():
    # The largest angular frequency amplifies du/dt, which the loss contains.
    t = torch.linspace(0, 1, 101).double().requires_grad_(True)
    for feature in time_features(torch.zeros_like(t), t, 16).unbind(-1):
        slope = torch.autograd.grad(feature.sum(), t, retain_graph=True)[0]
        assert slope.abs().max() <= 2 * math.pi + 1e-6


@pytest.mark.parametrize(
    "field",
    [
        {"steps": 3},
        {"temperature": 1.1},
        {"temperature": -0.1},
        {"tilt": "sideways"},
        {"time_features": 6},
        {"equal_share": 2.0},
    ],
)
def test_bad_settings_are_refused(field):
    with pytest.raises(InputError, match=next(iter(field))):
        MeanFlowConfig(**field)


def make_mlp():
    config = MLPConfig(hidden=HIDDEN)
    params = double(init_mlp(mlp_world_shapes(OBS_DIM, ACTION_DIM, config), generator()))
    return build_mlp(params, STATISTICS, config, torch.float64), params


def test_plain_regression_is_a_sampler_that_ignores_its_noise():
    model, _ = make_mlp()
    obs, action, noise = make_rows()
    expected = model.next_obs(obs, action, noise.unsqueeze(0))
    assert torch.equal(model.next_obs(obs, action, 2 * noise.unsqueeze(0)), expected)
    weights = pack_sampler(*model.sampler(), OBS_DIM, ACTION_DIM)
    y = sample(weights, (obs - model.obs_mean) / model.obs_std, action, noise.unsqueeze(0))
    torch.testing.assert_close(obs + model.delta_mean + model.delta_std * y, expected, rtol=1e-12, atol=1e-12)


def test_the_loss_of_plain_regression_is_zero_for_the_right_answer_only():
    model, params = make_mlp()
    obs, action, noise = make_rows()
    right = {"obs": obs, "action": action, "next_obs": model.next_obs(obs, action, noise.unsqueeze(0))}
    assert mlp_loss(model, params, right) < 1e-25
    wrong = right | {"next_obs": right["next_obs"] + 2 * model.delta_std}
    assert mlp_loss(model, params, wrong) == pytest.approx(4.0)
    assert mlp_loss(model, params, wrong, torch.full((12,), 0.5)) == pytest.approx(2.0)
