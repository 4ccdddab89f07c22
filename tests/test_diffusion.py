"""Diffusion model against distributions that it must reproduce."""

import math

import pytest
import torch
from models import ACTION_DIM, OBS_DIM, make_dynamics

from fastdwm.models.config import DiffusionConfig
from fastdwm.models.diffusion import (
    build_diffusion,
    denoiser_shapes,
    diffusion_loss,
    respace,
    reverse_coefficients,
    vp_schedule,
)


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_schedule_ends_near_pure_noise(steps):
    schedule = vp_schedule(steps)
    # sum_k (2k - 1) = K^2, so abar_K = exp(-0.1 - 4.95) whatever K is.
    assert math.isclose(schedule.abar[-1], math.exp(-5.05), rel_tol=1e-12)
    torch.testing.assert_close(schedule.abar, schedule.abar_prev * (1 - schedule.beta))


@pytest.mark.parametrize("target", ["eps", "x0"])
@pytest.mark.parametrize("steps", [1, 5, 10])
def test_optimal_denoiser_of_a_point_mass_samples_the_point(target, steps):
    # The data are always 0.7. The optimal denoiser knows x0 = 0.7 and eps = (y - sqrt(abar) 0.7) / sqrt(1 - abar).
    schedule, y = vp_schedule(steps), torch.randn(1000).double()
    for k in reversed(range(steps)):
        c_y, c_out, sigma = reverse_coefficients(schedule, target)[k]
        eps = (y - schedule.abar[k].sqrt() * 0.7) / (1 - schedule.abar[k]).sqrt()
        output = eps if target == "eps" else torch.full_like(y, 0.7)
        y = c_y * y + c_out * output + sigma * torch.randn(1000).double()
    torch.testing.assert_close(y, torch.full_like(y, 0.7), rtol=1e-9, atol=1e-9)


def test_reverse_step_is_bayes_rule():
    # Prior y_{k-1} | x0 ~ N(sqrt(abar_prev) x0, 1 - abar_prev)
    # likelihood y_k | y_{k-1} ~ N(sqrt(alpha) y_{k-1}, beta).
    schedule = vp_schedule(6)
    for k in range(1, 6):
        beta, abar_prev = schedule.beta[k], schedule.abar_prev[k]
        variance = 1 / (1 / (1 - abar_prev) + (1 - beta) / beta)
        per_y, per_x0 = variance * (1 - beta).sqrt() / beta, variance * abar_prev.sqrt() / (1 - abar_prev)
        expected = torch.stack([per_y, per_x0, variance.sqrt()])
        torch.testing.assert_close(reverse_coefficients(schedule, "x0")[k], expected)


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_eps_and_x0_coefficients_describe_the_same_step(steps):
    schedule, y, x0 = vp_schedule(steps), 1.3, -0.4
    for k in range(steps):
        eps = (y - schedule.abar[k].sqrt() * x0) / (1 - schedule.abar[k]).sqrt()
        rows = {target: reverse_coefficients(schedule, target)[k] for target in ("eps", "x0")}
        torch.testing.assert_close(
            rows["eps"] @ torch.stack([eps * 0 + y, eps, eps * 0]), rows["x0"] @ torch.tensor([y, x0, 0.0]).double()
        )
        assert rows["eps"][2] == rows["x0"][2]


def test_every_second_level_is_the_schedule_of_half_the_steps():
    # abar is a function of k / K alone.
    schedule, index = respace(vp_schedule(10), 5)
    assert index.tolist() == [1, 3, 5, 7, 9]
    for name in ("beta", "abar", "abar_prev"):
        torch.testing.assert_close(getattr(schedule, name), getattr(vp_schedule(5), name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("total", "steps"), [(5, 1), (5, 2), (5, 3), (5, 4), (10, 7), (3, 3)])
def test_any_number_of_levels_ends_in_noise_and_visits_none_twice(total, steps):
    schedule, index = respace(vp_schedule(total), steps)
    assert len(set(index.tolist())) == steps
    assert schedule.abar[-1] == vp_schedule(total).abar[-1]
    torch.testing.assert_close(schedule.abar, (1 - schedule.beta).cumprod(0))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_chain_with_fewer_steps_still_samples_the_point(steps):
    # A network that is right at every level: zero weights, the point as the last bias.
    config = DiffusionConfig(denoise_steps=5, target="x0", hidden=(4,), time_features=2)
    params = {name: torch.zeros(shape).double() for name, shape in denoiser_shapes(3, 2, config).items()}
    params["b1"] += 0.7
    one = {name: torch.ones(3).double() for name in ("obs_mean", "obs_std", "delta_mean", "delta_std")}
    dynamics = build_diffusion(params, one, config, torch.float64, steps)
    assert dynamics.noise_steps == steps
    noise = torch.randn(steps, 8, 3).double()
    sample = dynamics.next_obs(torch.zeros(8, 3).double(), torch.zeros(8, 2).double(), noise)
    torch.testing.assert_close(sample, torch.full_like(sample, 1.7))


def test_sample_is_in_raw_units_and_repeats_with_its_noise():
    dynamics = make_dynamics()
    obs, action = torch.randn(7, OBS_DIM).double(), torch.rand(7, ACTION_DIM).double()
    noise = torch.randn(dynamics.noise_steps, 7, OBS_DIM).double()
    sample = dynamics.next_obs(obs, action, noise)
    torch.testing.assert_close(sample, dynamics.next_obs(obs, action, noise), rtol=0, atol=0)
    assert not torch.equal(sample, dynamics.next_obs(obs, action, noise.flip(1)))
    # A denoiser that returns zero leaves c_y-scaled noise; delta statistics must then be added once.
    silent = {name: torch.zeros_like(value) for name, value in dynamics.params.items()}
    still = type(dynamics)(**{**vars(dynamics), "params": silent})
    torch.testing.assert_close(still.next_obs(obs, action, 0 * noise), obs + dynamics.delta_mean)


@pytest.mark.parametrize("target", ["eps", "x0"])
def test_loss_is_zero_for_the_right_answer_only(target):
    # A silent x0 model is right when the target's change equals delta_mean; a silent eps model when the noise is zero.
    dynamics = make_dynamics(target)
    silent = {name: torch.zeros_like(value) for name, value in dynamics.params.items()}
    model = type(dynamics)(**{**vars(dynamics), "params": silent})
    config = DiffusionConfig(denoise_steps=4, target=target)
    obs = torch.randn(6, OBS_DIM).double()
    batch = {"obs": obs, "action": torch.zeros(6, ACTION_DIM).double(), "next_obs": obs + model.delta_mean}
    index, zero, noise = torch.tensor([0, 1, 2, 3, 0, 1]), torch.zeros(6, OBS_DIM).double(), torch.randn(6, OBS_DIM)
    right = {"x0": (batch, noise.double()), "eps": (batch, zero)}[target]
    assert diffusion_loss(model, config, right[0], index, right[1]) == 0
    moved = batch | {"next_obs": obs + model.delta_mean + 2 * model.delta_std}
    wrong = {"x0": (moved, zero), "eps": (batch, zero + 2)}[target]
    assert diffusion_loss(model, config, wrong[0], index, wrong[1]) == pytest.approx(4.0)
