"""Plain regression of the transition: the baseline that a generative model of the same size must beat.

A plain MLP predicts the normalised change of the observation from (normalised obs, action), one call as MeanFlow.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdwm.checks import require
from fastdwm.models.config import MLPConfig
from fastdwm.models.nets import Loss, Params, mlp, mlp_shapes


@dataclass(frozen=True)
class MLPDynamics:
    """A transition model ready to imagine with, interchangeable with `diffusion.Diffusion`; it ignores its noise.

    params: MLP (S + A -> S) with SiLU.   obs_mean, obs_std, delta_mean, delta_std (S,).
    """

    params: Params
    obs_mean: Tensor
    obs_std: Tensor
    delta_mean: Tensor
    delta_std: Tensor

    @property
    def noise_steps(self) -> int:
        """One, unused: imagination draws the same noise as for MeanFlow, so that both run on the same seeds."""
        return 1

    def predict(self, obs: Tensor, action: Tensor) -> Tensor:
        """Normalised change of normalised obs (..., S) under action (..., A)."""
        return mlp(self.params, torch.cat([obs, action], -1), F.silu)

    def next_obs(self, obs: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """The next observation (..., S) of obs (..., S), raw units, and action (..., A); differentiable in both."""
        condition = (obs - self.obs_mean) / self.obs_std
        return obs + self.delta_mean + self.delta_std * self.predict(condition, action)

    def chain(self) -> tuple[Params, Tensor, Tensor]:
        """Itself as a reverse chain for `pack_chain`: K = 1, deaf to z. Embedding (1, 0), coefficients (1, 3)."""
        w0, obs_dim = self.params["w0"], len(self.obs_mean)
        deaf = torch.cat([w0.new_zeros(obs_dim, w0.shape[1]), w0])
        return self.params | {"w0": deaf}, w0.new_zeros(1, 0), w0.new_tensor([[0.0, 1.0, 0.0]])

    def chain_noise(self, noise: Tensor) -> Tensor:
        """Noise (H, 1, B, M, S) as that chain reads it."""
        return noise


def build_mlp(
    params: Params,
    statistics: dict[str, Tensor],
    config: MLPConfig,
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    temperature: float | None = None,
) -> MLPDynamics:
    """Assemble the model from parameters and the statistics obs_mean, obs_std, delta_mean, delta_std.

    Raises InputError for other network calls (`steps`) than 1, and for a temperature.
    """
    require(steps in (None, 1), f"world_steps: expected 1 for mlp, got {steps}")
    require(temperature is None, f"temperature: expected none for mlp, got {temperature}")
    return MLPDynamics(
        params, *(statistics[name].to(dtype) for name in ("obs_mean", "obs_std", "delta_mean", "delta_std"))
    )


def mlp_world_shapes(obs_dim: int, action_dim: int, config: MLPConfig) -> dict[str, tuple]:
    """Parameter shapes of the network: (obs, action) -> change."""
    return mlp_shapes((obs_dim + action_dim, *config.hidden, obs_dim))


def mlp_loss(model: MLPDynamics, batch: dict[str, Tensor], weights: Tensor | None = None) -> Tensor:
    """Mean squared error of the normalised change.

    batch: obs, next_obs (N, S), action (N, A), raw units.   weights: (N,), see tilt.py; none: all one.
    """
    change = (batch["next_obs"] - batch["obs"] - model.delta_mean) / model.delta_std
    condition = (batch["obs"] - model.obs_mean) / model.obs_std
    rows = (model.predict(condition, batch["action"]) - change).square().mean(-1)
    return (rows if weights is None else rows * weights).mean()


def mlp_objective(config: MLPConfig, statistics: dict[str, Tensor]) -> Loss:
    """`mlp_loss` of parameters and a batch, weighted if the batch has weights; draws nothing."""

    def loss(params: Params, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return mlp_loss(build_mlp(params, statistics, config), batch, batch.get("weight"))

    return loss
