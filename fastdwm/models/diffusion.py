"""Conditional diffusion model of the transition: next_obs = obs + delta, delta sampled by K reverse steps.

The model lives in normalised units: it denoises y = (delta - delta_mean) / delta_std given (normalised obs, action).
Deviation from [ITPO]: the target is the change of the observation, not the next observation, as in MBPO and MOPO,
since one step changes little. The paper prints the reverse step without 1 / sqrt(1 - abar_k) and with noise on the last
step; neither samples the data distribution, so the standard DDPM posterior is used (K network calls, k = K..1).
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdwm.checks import require
from fastdwm.models.config import DiffusionConfig
from fastdwm.models.nets import Loss, Params, mlp, mlp_shapes


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
    """The schedule that visits `steps` of the K noise levels, evenly, the last one included; and their indices.

    steps: 1 to K.   The network has seen these levels in training, so it serves unchanged.
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
    Both network targets give the same affine step, so models and kernels know only these three numbers.
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


@dataclass(frozen=True)
class Diffusion:
    """A transition model ready to imagine with: denoiser, step constants and normalisation statistics.

    params      denoiser MLP (S + S + A + features -> S) with SiLU
    coefficients (K, 3), embedding (K, features)
    obs_mean, obs_std, delta_mean, delta_std (S,)
    """

    params: Params
    coefficients: Tensor
    embedding: Tensor
    obs_mean: Tensor
    obs_std: Tensor
    delta_mean: Tensor
    delta_std: Tensor

    @property
    def noise_steps(self) -> int:
        """Gaussian vectors that one transition consumes: the start y_K and z_{K-1}..z_1 (z_0 is never used)."""
        return len(self.coefficients)

    def predict(self, y: Tensor, index: int | Tensor, obs: Tensor, action: Tensor) -> Tensor:
        """Network output at diffusion step `index + 1` for y (..., S), normalised obs (..., S), action (..., A)."""
        features = self.embedding[index].expand(*y.shape[:-1], -1)
        return mlp(self.params, torch.cat([y, obs, action, features], -1), F.silu)

    def next_obs(self, obs: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """Sample the next observation; differentiable in obs and action, deterministic given the noise.

        obs: (..., S) raw units.   action: (..., A) in [-1, 1].   noise: (K, ..., S) standard normal, noise[0] is y_K.
        Returns (..., S), raw units.
        Source: [ITPO] v1 section 3 with the corrected reverse step (module docstring).
        """
        condition = (obs - self.obs_mean) / self.obs_std
        steps = self.noise_steps
        y = noise[0]
        for i in range(steps):
            k = steps - 1 - i
            c_y, c_out, sigma = self.coefficients[k]
            y = c_y * y + c_out * self.predict(y, k, condition, action)
            if k > 0:
                y = y + sigma * noise[i + 1]
        return obs + self.delta_mean + self.delta_std * y

    def chain(self) -> tuple[Params, Tensor, Tensor]:
        """Parameters, embedding and coefficients of this chain, for `pack_chain`."""
        return self.params, self.embedding, self.coefficients

    def chain_noise(self, noise: Tensor) -> Tensor:
        """Noise (H, K, B, M, S) as that chain reads it."""
        return noise


def build_diffusion(
    params: Params,
    statistics: dict[str, Tensor],
    config: DiffusionConfig,
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    temperature: float | None = None,
) -> Diffusion:
    """Assemble the model from denoiser parameters and the statistics obs_mean, obs_std, delta_mean, delta_std.

    steps: network calls, at most those trained for (K); none: K.   Raises InputError for others, or a temperature.
    """
    most = config.denoise_steps
    require(temperature is None, f"temperature: expected none for diffusion, got {temperature}")
    require(steps is None or 1 <= steps <= most, f"world_steps: expected 1 to {most} for diffusion, got {steps}")
    schedule, index = respace(vp_schedule(most), steps or most)
    device = statistics["obs_mean"].device
    return Diffusion(
        params=params,
        coefficients=reverse_coefficients(schedule, config.target).to(device, dtype),
        embedding=time_embedding(config.denoise_steps, config.time_features)[index].to(device, dtype),
        **{name: statistics[name].to(device, dtype) for name in ("obs_mean", "obs_std", "delta_mean", "delta_std")},
    )


def denoiser_shapes(obs_dim: int, action_dim: int, config: DiffusionConfig) -> dict[str, tuple]:
    """Parameter shapes of the denoiser: (noisy target, obs, action, time features) -> target."""
    return mlp_shapes((2 * obs_dim + action_dim + config.time_features, *config.hidden, obs_dim))


def diffusion_loss(
    model: Diffusion, config: DiffusionConfig, batch: dict[str, Tensor], index: Tensor, noise: Tensor
) -> Tensor:
    """Mean squared error of the predicted noise (or clean target) at diffusion steps index + 1.

    batch: obs, next_obs (N, S), action (N, A), raw units.   index: (N,) int64 in [0, K).   noise: (N, S) std normal.
    """
    clean = (batch["next_obs"] - batch["obs"] - model.delta_mean) / model.delta_std
    condition = (batch["obs"] - model.obs_mean) / model.obs_std
    abar = vp_schedule(config.denoise_steps).abar.to(clean)[index].unsqueeze(-1)
    noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    output = model.predict(noisy, index, condition, batch["action"])
    return F.mse_loss(output, noise if config.target == "eps" else clean)


def diffusion_objective(config: DiffusionConfig, statistics: dict[str, Tensor]) -> Loss:
    """`diffusion_loss` at random diffusion steps with random noise."""

    def loss(params: Params, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        obs = batch["obs"]
        index = torch.randint(config.denoise_steps, (len(obs),), generator=generator, device=obs.device)
        noise = torch.randn(obs.shape, generator=generator, device=obs.device)
        return diffusion_loss(replace(model, params=params), config, batch, index, noise)

    model = build_diffusion({}, statistics, config)
    return loss
