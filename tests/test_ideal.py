"""Spread that the sampler itself loses: closed form against the model's samples and against Bayes' rule."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fastdwm.measure.ideal import sampler_std
from fastdwm.models.diffusion import respace, reverse_coefficients, vp_schedule
from fastdwm.models.sampler import Sampler

STDS = [0.03, 0.1, 0.3, 1.0]


@dataclass(frozen=True)
class Exact(Sampler):
    """Diffusion model with the optimal network for normal data."""

    target: str
    std: float

    def predict(self, y, abar, obs, action):
        clean = abar.sqrt() * self.std**2 / (abar * self.std**2 + 1 - abar) * y
        return clean if self.target == "x0" else (y - abar.sqrt() * clean) / (1 - abar).sqrt()


def exact(schedule, target, std):
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    steps = reverse_coefficients(schedule, target), schedule.abar.unsqueeze(1), schedule.steps
    return Exact({}, *steps, 1.0, zero, one, zero, one, target, std)


@pytest.mark.parametrize("target", ["x0", "eps"])
@pytest.mark.parametrize("std", STDS)
def test_closed_form_is_the_spread_of_the_models_own_samples(std, target):
    n, schedule = 100_000, vp_schedule(5)
    noise = torch.randn(5, n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = exact(schedule, target, std).next_obs(torch.zeros(n, 1, dtype=torch.float64), torch.zeros(n, 1), noise)
    expected = sampler_std(schedule, torch.tensor(std, dtype=torch.float64))
    # Five standard errors of the std of n normal samples.
    assert float(samples.std()) == pytest.approx(float(expected), rel=5 / (2 * n) ** 0.5)


def std_by_bayes(steps, std):
    """Std from the forward process: x0 given y_k, then y_{k-1} given both, each a product of normals."""
    k = np.arange(1, steps + 1)
    alpha = np.exp(-0.1 / steps - 0.5 * 9.9 * (2 * k - 1) / steps**2)
    abar, variance = np.cumprod(alpha), 1.0
    for i in reversed(range(steps)):
        gain = np.sqrt(abar[i]) / (1 - abar[i]) / (1 / std**2 + abar[i] / (1 - abar[i]))
        if i == 0:
            return np.sqrt(gain**2 * variance)
        prior, likelihood = 1 / (1 - abar[i - 1]), alpha[i] / (1 - alpha[i])
        slope = (np.sqrt(abar[i - 1]) * prior * gain + likelihood / np.sqrt(alpha[i])) / (prior + likelihood)
        variance = slope**2 * variance + 1 / (prior + likelihood)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_closed_form_agrees_with_bayes(steps):
    actual = sampler_std(vp_schedule(steps), torch.tensor(STDS, dtype=torch.float64))
    np.testing.assert_allclose(actual, [std_by_bayes(steps, std) for std in STDS], rtol=1e-10)


def test_small_spreads_need_many_steps():
    std = torch.tensor(STDS, dtype=torch.float64)
    few, many = (sampler_std(vp_schedule(steps), std) / std for steps in (5, 1000))
    assert (few.diff() > 0).all() and few[0] < 0.1
    assert (many > 0.8).all() and (many < 1.0).all()


def test_levels_that_are_left_out_cost_spread():
    std = torch.tensor([0.1], dtype=torch.float64)
    assert sampler_std(respace(vp_schedule(5), 2)[0], std) < sampler_std(vp_schedule(5), std)
