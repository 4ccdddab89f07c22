"""Conditional MeanFlow model of the transition: next_obs = obs + delta, delta sampled by one network call.

A flow carries noise e (time 1) to data y (time 0) along z_t = (1 - t) y + t e, with velocity v = e - y. The model is
its average velocity u(z, r, t) from time t down to r: z_r = z_t - (t - r) u(z_t, r, t), in one call from 1 to 0.
Source: [MF] 2505.13447; the objective of improved MeanFlow, [iMF] 2512.02012, by default.
Deviations: the network predicts the clean target x, u = (z - x) / t, and sees low-frequency times. Nearly deterministic
transitions have a constant x but a u of slope 1 / t, and fast sinusoids amplify the derivative that the loss contains.
The times are uniform: the papers' logit-normal distribution rarely comes near (r, t) = (0, 1), where one-step sampling
calls the network; on hopper-medium its RMSE was 1.3 times as large after 60k updates (1.5 times after 20k).
As in diffusion.py the model lives in normalised units, y = (delta - delta_mean) / delta_std.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdwm.checks import require
from fastdwm.models.config import MeanFlowConfig
from fastdwm.models.nets import Loss, Params, mean_squared_error, mlp_shapes
from fastdwm.models.sampler import Sampler

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""u(z, r, t) (N, S) of z (N, S) and times r, t (N,)"""

T_FLOOR = 0.05
"""lower bound of the denominator of u = (z - x) / t"""


@lru_cache
def frequencies(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n,) frequencies from 1 to 2 pi."""
    return torch.linspace(0, math.log(2 * math.pi), n, dtype=dtype, device=device).exp()


def time_features(r: Tensor, t: Tensor, features: int) -> Tensor:
    """(..., features) sinusoids of t and t - r, each (...); frequencies from 1 to 2 pi, as low as the diffusion's."""
    angle = torch.stack([t, t - r], -1).unsqueeze(-1) * frequencies(features // 4, t.dtype, t.device)
    angle = angle.flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], -1)


def features_derivative(features: Tensor) -> Tensor:
    """Derivative of `time_features` in t, computed from their values: frequency cos, and -frequency sin."""
    sin, cos = features.chunk(2, -1)
    frequency = frequencies(sin.shape[-1] // 2, features.dtype, features.device).repeat(2)
    return torch.cat([frequency * cos, -frequency * sin], -1)


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


def build_meanflow(
    params: Params,
    statistics: dict[str, Tensor],
    config: MeanFlowConfig,
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    temperature: float | None = None,
) -> Sampler:
    """Assemble the model from network parameters and the statistics obs_mean, obs_std, delta_mean, delta_std.

    steps: network calls, 1, 2 or 4.   temperature: scale of the noise, in [0, 1].   None: the configuration's.
    Raises InputError for other values.
    """
    require(steps in (None, 1, 2, 4), f"world_steps: expected 1, 2 or 4 for meanflow, got {steps}")
    overrides = {"steps": steps, "temperature": temperature}
    config = replace(config, **{name: value for name, value in overrides.items() if value is not None})
    coefficients = sampling_coefficients(config.steps, config.target)
    embedding = time_features(*sampling_times(config.steps), config.time_features)
    return Sampler.of(params, coefficients, embedding, statistics, dtype, temperature=config.temperature)


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


def average_velocity(model: Sampler, config: MeanFlowConfig, obs: Tensor, action: Tensor) -> Velocity:
    """u of the model under the condition obs (N, S), normalised, and action (N, A)."""

    def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        output = model.predict(z, time_features(r, t, config.time_features), obs, action)
        if config.target == "x":
            return (z - output) / t.clamp(min=T_FLOOR).unsqueeze(-1)
        return output

    return u


def meanflow_loss(
    model: Sampler,
    config: MeanFlowConfig,
    batch: dict[str, Tensor],
    r: Tensor,
    t: Tensor,
    noise: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean squared error of V = u + (t - r) sg(du/dt) against e - y, in units of the network's output.

    sg is the stop-gradient.   batch: obs, next_obs (N, S), action (N, A), raw units.   r, t: (N,), as `draw_times`.
    noise: (N, S) standard normal.   weights: (N,) with mean 1 over the data, see tilt.py; none: all one.
    """
    (condition, clean), action = model.normalise(batch), batch["action"]
    z, velocity = clean + t.unsqueeze(-1) * (noise - clean), noise - clean
    # The derivative is only computed for the last rows: in the first r = t, so that its factor is zero.
    n = config.equal_rows(len(t))
    last_obs, last_action, last_t, direction = condition[n:], action[n:], t[n:], velocity[n:]
    if config.objective == "imf":
        with torch.no_grad():
            direction = average_velocity(model, config, last_obs, last_action)(z[n:], last_t, last_t)
    features = time_features(r, t, config.time_features)
    zeros = torch.zeros_like(last_obs), torch.zeros_like(last_action)
    inputs = torch.cat([z, condition, action, features], -1)
    along = torch.cat([direction, *zeros, features_derivative(features[n:])], -1)
    target, shares = network_target(config, z, r, t, velocity, direction)
    return mean_squared_error(model.params, inputs, target, F.silu, weights, (along, shares))[0]


def network_target(
    config: MeanFlowConfig, z: Tensor, r: Tensor, t: Tensor, velocity: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve V = v for the network's output: the target (N, S) and the `shares` (2, n) of `mean_squared_error`.

    direction: (n, S) of the derivative, in the last n rows. With f the output, f' its derivative and c the floored t,
    u:  V - v = f + (t - r) f' - v.
    x:  c (v - V) = f - (z - c v) - (t - r) (direction - f' - (z - f) / c), without the last term where t is below the
    floor, for c is constant there.
    """
    n = len(z) - len(direction)
    gap, column = (t - r)[n:], t.clamp(min=T_FLOOR)
    if config.target != "x":
        return velocity, torch.stack([-gap, torch.zeros_like(gap)])
    share = gap * (t[n:] >= T_FLOOR) / column[n:]
    target = z - column.unsqueeze(-1) * velocity
    target[n:] += gap.unsqueeze(-1) * direction - share.unsqueeze(-1) * z[n:]
    return target, torch.stack([-gap, share])


def meanflow_objective(config: MeanFlowConfig, statistics: dict[str, Tensor]) -> Loss:
    """`meanflow_loss` at random times with random noise, weighted if the batch has weights."""

    def loss(params: Params, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        obs = batch["obs"]
        r, t = draw_times(config, len(obs), generator)
        noise = torch.randn(obs.shape, generator=generator, device=obs.device)
        return meanflow_loss(replace(model, params=params), config, batch, r, t, noise, batch.get("weight"))

    model = build_meanflow({}, statistics, config)
    return loss
