"""Plain regression of the transition: the baseline that a generative model of the same size must beat.

An MLP predicts the normalised change of the observation from (normalised obs, action), in one call like MeanFlow.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdwm.checks import require
from fastdwm.models.config import MLPConfig
from fastdwm.models.nets import Loss, Params, mlp, mlp_shapes
from fastdwm.models.sampler import Sampler


def build_mlp(
    params: Params,
    statistics: dict[str, Tensor],
    config: MLPConfig,
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    temperature: float | None = None,
) -> Sampler:
    """Assemble the model from parameters and the statistics obs_mean, obs_std, delta_mean, delta_std.

    Imagination draws the same noise as for MeanFlow, which keeps their random streams equal; the first layer
    multiplies it by zero.   Raises InputError for `steps` (network calls) other than 1, or if a temperature is given.
    """
    require(steps in (None, 1), f"world_steps: expected 1 for mlp, got {steps}")
    require(temperature is None, f"temperature: expected none for mlp, got {temperature}")
    if params:
        w0 = params["w0"]
        params = params | {"w0": torch.cat([w0.new_zeros(len(statistics["obs_mean"]), w0.shape[1]), w0])}
    return Sampler.of(params, torch.tensor([[0.0, 1.0, 0.0]]), torch.empty(1, 0), statistics, dtype)


def mlp_world_shapes(obs_dim: int, action_dim: int, config: MLPConfig) -> dict[str, tuple]:
    """Parameter shapes of the network: (obs, action) -> change."""
    return mlp_shapes((obs_dim + action_dim, *config.hidden, obs_dim))


def mlp_loss(model: Sampler, params: Params, batch: dict[str, Tensor], weights: Tensor | None = None) -> Tensor:
    """Mean squared error of the normalised change.

    model: gives the statistics.   params: the network being trained.   batch: obs, next_obs (N, S), action (N, A),
    raw units.   weights: (N,), see tilt.py; none: all one.
    """
    condition, change = model.normalise(batch)
    rows = (mlp(params, torch.cat([condition, batch["action"]], -1), F.silu) - change).square().mean(-1)
    return (rows if weights is None else rows * weights).mean()


def mlp_objective(config: MLPConfig, statistics: dict[str, Tensor]) -> Loss:
    """`mlp_loss`, weighted if the batch has weights; uses no randomness."""

    def loss(params: Params, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return mlp_loss(model, params, batch, batch.get("weight"))

    model = build_mlp({}, statistics, config)
    return loss
