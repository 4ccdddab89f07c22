"""The sampler that all world models share: affine steps around one network turn noise into the next observation.

Diffusion, MeanFlow and plain regression differ in the coefficients and the time features of their steps, and in the
loss that trains the network. All work in normalised units: y = (next_obs - obs - delta_mean) / delta_std.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdwm.models.nets import Params, mlp


@dataclass(frozen=True)
class Sampler:
    """A transition model that samples by y_{k-1} = c_y y_k + c_out net(y_k, obs, action, time) + sigma z.

    params       network (S + S + A + features -> S) with SiLU, inputs (y, obs, action, time features)
    coefficients (K, 3) rows (c_y, c_out, sigma), embedding (K, features); row k - 1 belongs to step k = K..1
    noise_steps  Gaussian vectors per transition: the start y_K alone (1), or z_{K-1}..z_1 too (K)
    temperature  scale of the start
    obs_mean, obs_std, delta_mean, delta_std (S,)
    """

    params: Params
    coefficients: Tensor
    embedding: Tensor
    noise_steps: int
    temperature: float
    obs_mean: Tensor
    obs_std: Tensor
    delta_mean: Tensor
    delta_std: Tensor

    @classmethod
    def of(
        cls,
        params: Params,
        coefficients: Tensor,
        embedding: Tensor,
        statistics: dict[str, Tensor],
        dtype: torch.dtype,
        *,
        noise_steps: int = 1,
        temperature: float = 1.0,
    ) -> "Sampler":
        """Build the model on the device of the statistics obs_mean, obs_std, delta_mean, delta_std."""
        device, names = statistics["obs_mean"].device, ("obs_mean", "obs_std", "delta_mean", "delta_std")
        steps = coefficients.to(device, dtype), embedding.to(device, dtype)
        scales = [statistics[name].to(device, dtype) for name in names]
        return cls(params, *steps, noise_steps, temperature, *scales)

    def predict(self, y: Tensor, features: Tensor, obs: Tensor, action: Tensor) -> Tensor:
        """Network output for y (..., S), time features (F,) or (..., F), normalised obs (..., S), action (..., A)."""
        return mlp(self.params, torch.cat([y, obs, action, features.expand(*y.shape[:-1], -1)], -1), F.silu)

    def next_obs(self, obs: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """Sample the next observation; differentiable in obs and action, deterministic given the noise.

        obs: (..., S) raw units.   action: (..., A) in [-1, 1].   noise: (noise_steps, ..., S) standard normal, noise[0]
        is the start.   Returns (..., S), raw units.
        Source: [ITPO] v1 section 3 with the corrected reverse step (see diffusion.py).
        """
        condition, steps = (obs - self.obs_mean) / self.obs_std, len(self.coefficients)
        y = self.temperature * noise[0]
        for k in reversed(range(steps)):
            c_y, c_out, sigma = self.coefficients[k]
            y = c_y * y + c_out * self.predict(y, self.embedding[k], condition, action)
            if k > 0 and self.noise_steps > 1:
                y = y + sigma * noise[steps - k]
        return obs + self.delta_mean + self.delta_std * y

    def normalise(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Normalised obs (N, S) and normalised change of it (N, S), from a batch in raw units."""
        change = (batch["next_obs"] - batch["obs"] - self.delta_mean) / self.delta_std
        return (batch["obs"] - self.obs_mean) / self.obs_std, change

    def sampler(self) -> tuple[Params, Tensor, Tensor]:
        """Parameters, embedding and coefficients, for `pack_sampler`."""
        return self.params, self.embedding, self.coefficients

    def sampler_noise(self, noise: Tensor) -> Tensor:
        """Noise (H, noise_steps, B, M, S) as the fused sampler reads it: (H, K, B, M, S), the start scaled.

        Steps without noise get zeros, since the fused sampler reads noise for every step.
        """
        if self.temperature != 1:
            noise = self.temperature * noise
        extra = len(self.coefficients) - self.noise_steps
        return F.pad(noise, (0, 0) * 3 + (0, extra)) if extra else noise
