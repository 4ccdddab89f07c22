"""Conditional MeanFlow model of the transition: next_obs = obs + delta, delta sampled by one network call.

A flow carries noise e (time 1) to data y (time 0) along z_t = (1 - t) y + t e, with velocity v = e - y. The model is
its average velocity u(z, r, t) from time t down to r: z_r = z_t - (t - r) u(z_t, r, t), in one call from 1 to 0.
Source: [MF] 2505.13447; the objective of improved MeanFlow, [iMF] 2512.02012, by default.
Deviations: the network predicts the clean target x, u = (z - x) / t, and sees low-frequency times. Nearly deterministic
transitions have a constant x but a u of slope 1 / t, and fast sinusoids amplify the derivative that the loss contains.
The times are drawn uniformly: the papers' logit-normal law hardly visits (r, t) = (0, 1), where one-step sampling asks;
on hopper-medium it left an RMSE 1.3 times as large after 60k updates (1.5 times after 20k).
As in diffusion.py the model lives in normalised units, y = (delta - delta_mean) / delta_std.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdwm.checks import require
from fastdwm.models.config import MeanFlowConfig
from fastdwm.models.nets import Loss, Params, mlp, mlp_shapes

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""u(z, r, t) (N, S) of z (N, S) and times r, t (N,)"""

T_FLOOR = 0.05
"""times below it count as this much where u = (z - x) / t would be divided by zero"""


def time_features(r: Tensor, t: Tensor, features: int) -> Tensor:
    """(..., features) sinusoids of t and t - r, each (...); frequencies from 1 to 2 pi, as low as the diffusion's."""
    frequency = torch.linspace(0, math.log(2 * math.pi), features // 4, dtype=t.dtype, device=t.device).exp()
    angle = (torch.stack([t, t - r], -1).unsqueeze(-1) * frequency).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], -1)


def sampling_times(steps: int) -> tuple[Tensor, Tensor]:
    """Start r and end t of each sampling step, (n,) float64; entry k - 1 is the step from t = k / n down to r."""
    k = torch.arange(1, steps + 1, dtype=torch.float64)
    return (k - 1) / steps, k / steps


def sampling_coefficients(steps: int, target: str) -> Tensor:
    """(n, 3) float64 rows (c_y, c_out, 0): z_r = c_y z_t + c_out net(z_t, r, t, c), the diffusion's reverse step.

    x: (r / t, 1 - r / t).   u: (1, r - t).
    One step of x is (0, 1, 0): the sample is the network's output, one plain MLP call.
    """
    r, t = sampling_times(steps)
    c_y, c_out = (r / t, 1 - r / t) if target == "x" else (torch.ones_like(t), r - t)
    return torch.stack([c_y, c_out, torch.zeros_like(t)], 1)


@dataclass(frozen=True)
class MeanFlow:
    """A transition model ready to imagine with, interchangeable with `diffusion.Diffusion`.

    params       MLP (S + S + A + features -> S) with SiLU, inputs (z, obs, action, time features)
    coefficients (n, 3), embedding (n, features): affine step and time features of each sampling step
    temperature  scale of the noise that a sample starts from (tau)
    obs_mean, obs_std, delta_mean, delta_std (S,)
    """

    params: Params
    coefficients: Tensor
    embedding: Tensor
    temperature: float
    obs_mean: Tensor
    obs_std: Tensor
    delta_mean: Tensor
    delta_std: Tensor

    @property
    def noise_steps(self) -> int:
        """Gaussian vectors that one transition consumes: the start z_1, however many sampling steps follow."""
        return 1

    def predict(self, z: Tensor, features: Tensor, obs: Tensor, action: Tensor) -> Tensor:
        """Network output for z (..., S), time features (..., F), normalised obs (..., S), action (..., A)."""
        return mlp(self.params, torch.cat([z, obs, action, features], -1), F.silu)

    def next_obs(self, obs: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """Sample the next observation; differentiable in obs and action, deterministic given the noise.

        obs: (..., S) raw units.   action: (..., A) in [-1, 1].   noise: (1, ..., S) standard normal.
        Returns (..., S), raw units.
        """
        condition = (obs - self.obs_mean) / self.obs_std
        y = self.temperature * noise[0]
        for k in reversed(range(len(self.coefficients))):
            c_y, c_out, _ = self.coefficients[k]
            features = self.embedding[k].expand(*y.shape[:-1], -1)
            y = c_y * y + c_out * self.predict(y, features, condition, action)
        return obs + self.delta_mean + self.delta_std * y

    def chain(self) -> tuple[Params, Tensor, Tensor]:
        """Parameters, embedding and coefficients of the reverse chain that it is, for `pack_chain`."""
        return self.params, self.embedding, self.coefficients

    def chain_noise(self, noise: Tensor) -> Tensor:
        """Noise (H, 1, B, M, S) as that chain reads it: (H, n, B, M, S), the temperature on the start.

        The later steps add none (sigma = 0), but the chain has a place for it.
        """
        extra = len(self.coefficients) - 1
        if self.temperature != 1:
            noise = self.temperature * noise
        return F.pad(noise, (0, 0) * 3 + (0, extra)) if extra else noise


def build_meanflow(
    params: Params,
    statistics: dict[str, Tensor],
    config: MeanFlowConfig,
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    temperature: float | None = None,
) -> MeanFlow:
    """Assemble the model from network parameters and the statistics obs_mean, obs_std, delta_mean, delta_std.

    steps: network calls, 1, 2 or 4.   temperature: scale of the noise, in [0, 1].   None: the configuration's.
    Raises InputError for other values.
    """
    require(steps in (None, 1, 2, 4), f"world_steps: expected 1, 2 or 4 for meanflow, got {steps}")
    asked = {"steps": steps, "temperature": temperature}
    config = replace(config, **{name: value for name, value in asked.items() if value is not None})
    device = statistics["obs_mean"].device
    embedding = time_features(*sampling_times(config.steps), config.time_features)
    return MeanFlow(
        params=params,
        coefficients=sampling_coefficients(config.steps, config.target).to(device, dtype),
        embedding=embedding.to(device, dtype),
        temperature=config.temperature,
        **{name: statistics[name].to(device, dtype) for name in ("obs_mean", "obs_std", "delta_mean", "delta_std")},
    )


def meanflow_shapes(obs_dim: int, action_dim: int, config: MeanFlowConfig) -> dict[str, tuple]:
    """Parameter shapes of the network: (z, obs, action, time features) -> target."""
    return mlp_shapes((2 * obs_dim + action_dim + config.time_features, *config.hidden, obs_dim))


def draw_times(config: MeanFlowConfig, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flow times 0 <= r <= t <= 1 of n rows, each (n,) on the generator's device; the first `equal_rows` have r = t."""
    shape = (2, n)
    if config.time_law == "uniform":
        times = torch.rand(shape, generator=generator, device=generator.device)
    else:
        times = torch.sigmoid(torch.randn(shape, generator=generator, device=generator.device) - 0.4)
    r, t = times.amin(0), times.amax(0)
    n_equal = config.equal_rows(n)
    return torch.cat([t[:n_equal], r[n_equal:]]), t


def average_velocity(model: MeanFlow, config: MeanFlowConfig, obs: Tensor, action: Tensor) -> Velocity:
    """u of the model under the condition obs (N, S), normalised, and action (N, A)."""

    def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        output = model.predict(z, time_features(r, t, config.time_features), obs, action)
        if config.target == "x":
            return (z - output) / t.clamp(min=T_FLOOR).unsqueeze(-1)
        return output

    return u


@torch.no_grad()
def total_derivative(u: Velocity, z: Tensor, r: Tensor, t: Tensor, direction: Tensor) -> Tensor:
    """du/dt (N, S) along the flow: the directional derivative of u along (direction, 0, 1) in (z, r, t).

    With it the MeanFlow identity reads u + (t - r) du/dt = v, the velocity at (z, t), if `direction` is v.
    Keep the products in float32: tf32 or less would show in a derivative that the loss multiplies and compares.
    """
    return torch.func.jvp(u, (z, r, t), (direction, torch.zeros_like(r), torch.ones_like(t)))[1]


def meanflow_loss(
    model: MeanFlow,
    config: MeanFlowConfig,
    batch: dict[str, Tensor],
    r: Tensor,
    t: Tensor,
    noise: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean squared error of V = u + (t - r) sg(du/dt) against e - y, in units of what the network predicts.

    batch: obs, next_obs (N, S), action (N, A), raw units.   r, t: (N,), as `draw_times` gives them.
    noise: (N, S) standard normal.   weights: (N,) with mean 1 over the data, see tilt.py; none: all one.
    """
    clean = (batch["next_obs"] - batch["obs"] - model.delta_mean) / model.delta_std
    condition, action = (batch["obs"] - model.obs_mean) / model.obs_std, batch["action"]
    z, velocity = clean + t.unsqueeze(-1) * (noise - clean), noise - clean
    # With r = t the derivative has the factor zero: the first rows, plain flow matching, do without it.
    n = config.equal_rows(len(t))
    u = average_velocity(model, config, condition[n:], action[n:])
    direction = velocity[n:]
    if config.objective == "imf":
        with torch.no_grad():
            direction = u(z[n:], t[n:], t[n:])
    rate = total_derivative(u, z[n:], r[n:], t[n:], direction)
    correction = torch.cat([torch.zeros_like(z[:n]), (t - r)[n:].unsqueeze(-1) * rate])
    error = average_velocity(model, config, condition, action)(z, r, t) + correction - velocity
    if config.target == "x":
        error = error * t.clamp(min=T_FLOOR).unsqueeze(-1)
    rows = error.square().mean(-1)
    return (rows if weights is None else rows * weights).mean()


def meanflow_objective(config: MeanFlowConfig, statistics: dict[str, Tensor]) -> Loss:
    """`meanflow_loss` at random times with random noise, weighted if the batch has weights."""

    def loss(params: Params, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        obs = batch["obs"]
        r, t = draw_times(config, len(obs), generator)
        noise = torch.randn(obs.shape, generator=generator, device=obs.device)
        return meanflow_loss(replace(model, params=params), config, batch, r, t, noise, batch.get("weight"))

    model = build_meanflow({}, statistics, config)
    return loss
