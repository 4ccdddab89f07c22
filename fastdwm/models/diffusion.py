"""Conditional diffusion model of the transition: next_obs = obs + delta, delta sampled by K reverse steps.

The model lives in normalised units: it denoises y = (delta - delta_mean) / delta_std given (normalised obs, action).
Deviation from [ITPO]: the target is the change of the observation (as in MBPO and MOPO), not the next observation,
because one step changes little. The paper prints the reverse step without 1 / sqrt(1 - abar_k) and with noise on the
last step; neither samples the data distribution, so the standard DDPM posterior is used (K network calls, k = K..1).
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdwm.checks import require
from fastdwm.models.config import DiffusionConfig
from fastdwm.models.nets import Loss, Params, mean_squared_error, mlp_shapes
from fastdwm.models.sampler import Sampler


@dataclass(frozen=True)
class Schedule:
    """Constants of the K diffusion steps, each (K,) float64; entry k - 1 belongs to step k = 1..K."""

    beta: Tensor
    abar: Tensor
    abar_prev: Tensor

    @property
    def steps(self) -> int:
        return len(self.beta)


def vp_schedule(steps: int) -> Schedule:
    """Variance-preserving schedule: alpha_k = exp(-0.1 / K - 0.5 * 9.9 (2 k - 1) / K^2), as in Diffusion-QL.

    Its last step is close to pure noise for every K (sqrt(abar_K) = 0.08), unlike the linear DDPM-1000 constants.
    """
    k = torch.arange(1, steps + 1, dtype=torch.float64)
    alpha = torch.exp(-0.1 / steps - 0.5 * 9.9 * (2 * k - 1) / steps**2)
    abar = alpha.cumprod(0)
    return Schedule(1 - alpha, abar, torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]]))


def respace(schedule: Schedule, steps: int) -> tuple[Schedule, Tensor]:
    """Thin the schedule to `steps` evenly spaced noise levels, with the last of the K; return it and their indices.

    steps: 1 to K.   The network was trained on these levels, so it needs no change.
    Source: improved DDPM, 2102.09672, section 4.
    """
    index = (torch.arange(1, steps + 1, dtype=torch.float64) * schedule.steps / steps).round().long() - 1
    if steps == schedule.steps:
        return schedule, index
    abar = schedule.abar[index]
    abar_prev = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    return Schedule(1 - abar / abar_prev, abar, abar_prev), index


def reverse_coefficients(schedule: Schedule, target: str) -> Tensor:
    """(K, 3) float64 rows (c_y, c_out, sigma): y_{k-1} = c_y y_k + c_out net(y_k, k, c) + sigma z, sigma_1 = 0.

    eps:  (y_k - beta_k / sqrt(1 - abar_k) eps) / sqrt(alpha_k);   x0: the posterior mean given x0 and y_k.
    Both network targets give the same affine step, so models and kernels need only these three numbers.
    """
    beta, abar, abar_prev = schedule.beta, schedule.abar, schedule.abar_prev
    alpha = 1 - beta
    sigma = (beta * (1 - abar_prev) / (1 - abar)).sqrt()
    if target == "eps":
        c_y = alpha.rsqrt()
        c_out = -beta / (1 - abar).sqrt() * c_y
    else:
        c_y = (1 - abar_prev) * alpha.sqrt() / (1 - abar)
        c_out = beta * abar_prev.sqrt() / (1 - abar)
    return torch.stack([c_y, c_out, sigma], 1)


def time_embedding(steps: int, features: int) -> Tensor:
    """(K, features) float64 sinusoids of k / K, frequencies from 1 to 2 pi: low, so that the net stays smooth."""
    k = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    frequency = torch.linspace(0, math.log(2 * math.pi), features // 2, dtype=torch.float64).exp()
    angle = k[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)


def build_diffusion(
    params: Params,
    statistics: dict[str, Tensor],
    config: DiffusionConfig,
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    temperature: float | None = None,
) -> Sampler:
    """Assemble the model from denoiser parameters and the statistics obs_mean, obs_std, delta_mean, delta_std.

    steps: network calls, 1 to K; none: K.   Raises InputError for another number, or if a temperature is given.
    """
    max_steps = config.denoise_steps
    require(temperature is None, f"temperature: expected none for diffusion, got {temperature}")
    in_range = steps is None or 1 <= steps <= max_steps
    require(in_range, f"world_steps: expected 1 to {max_steps} for diffusion, got {steps}")
    schedule, index = respace(vp_schedule(max_steps), steps or max_steps)
    coefficients = reverse_coefficients(schedule, config.target)
    embedding = time_embedding(max_steps, config.time_features)[index]
    return Sampler.of(params, coefficients, embedding, statistics, dtype, noise_steps=len(coefficients))


def denoiser_shapes(obs_dim: int, action_dim: int, config: DiffusionConfig) -> dict[str, tuple]:
    """Parameter shapes of the denoiser: (noisy target, obs, action, time features) -> target."""
    return mlp_shapes((2 * obs_dim + action_dim + config.time_features, *config.hidden, obs_dim))


@lru_cache
def abar_of(steps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """abar (K,) of the schedule, cached because a captured update cannot copy it from the host."""
    return vp_schedule(steps).abar.to(device, dtype)


def diffusion_loss(
    model: Sampler, config: DiffusionConfig, batch: dict[str, Tensor], index: Tensor, noise: Tensor
) -> Tensor:
    """Mean squared error of the predicted noise (or clean target) at diffusion steps index + 1.

    batch: obs, next_obs (N, S), action (N, A), raw units.   index: (N,) int64 in [0, K).   noise: (N, S) std normal.
    """
    condition, clean = model.normalise(batch)
    abar = abar_of(config.denoise_steps, clean.dtype, clean.device)[index].unsqueeze(-1)
    noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    inputs = torch.cat([noisy, condition, batch["action"], model.embedding[index]], -1)
    target = noise if config.target == "eps" else clean
    return mean_squared_error(model.params, inputs, target, F.silu)[0]


def diffusion_objective(config: DiffusionConfig, statistics: dict[str, Tensor]) -> Loss:
    """`diffusion_loss` at random diffusion steps with random noise."""

    def loss(params: Params, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        obs = batch["obs"]
        index = torch.randint(config.denoise_steps, (len(obs),), generator=generator, device=obs.device)
        noise = torch.randn(obs.shape, generator=generator, device=obs.device)
        return diffusion_loss(replace(model, params=params), config, batch, index, noise)

    model = build_diffusion({}, statistics, config)
    return loss
