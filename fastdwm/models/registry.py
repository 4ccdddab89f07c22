"""Registry of the world models by name, used to train, save, load and compare them.

A new model is a file with its functions and a row here. A field in `TrainConfig` gives it flags of its own; without
one it is trained with the defaults of its configuration.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastdwm.models.config import DiffusionConfig, MeanFlowConfig, MLPConfig
from fastdwm.models.diffusion import build_diffusion, denoiser_shapes, diffusion_objective
from fastdwm.models.meanflow import build_meanflow, meanflow_objective, meanflow_shapes
from fastdwm.models.mlp import build_mlp, mlp_objective, mlp_world_shapes
from fastdwm.models.nets import Loss


@dataclass(frozen=True)
class WorldModel:
    """The functions and settings that make a transition model a world model of this package."""

    config: type
    """dataclass of its settings, plain JSON values; it has those of a fit (updates, batch_size, lr, grad_clip), and
    ema_rate if the moving average of the weights is kept"""
    shapes: Callable[[int, int, Any], dict[str, tuple]]
    """parameter shapes (w0, b0, w1, ...) by name, from the sizes S and A and the configuration"""
    build: Callable[..., Any]
    """build(params, statistics, config, dtype, steps, temperature): the `Dynamics`, on the statistics' device.

    statistics: obs_mean, obs_std, delta_mean, delta_std (S,).   steps, temperature: network calls per transition and
    scale of the noise; none: the configuration's. Raises InputError for values that the model does not support."""
    loss: Callable[[Any, dict[str, Tensor]], Loss]
    """loss(config, statistics): the loss to minimise; its batch has obs, next_obs (N, S) and action (N, A), raw
    units, and weight (N,) with a tilt"""


WORLD_MODELS: dict[str, WorldModel] = {
    "diffusion": WorldModel(DiffusionConfig, denoiser_shapes, build_diffusion, diffusion_objective),
    "meanflow": WorldModel(MeanFlowConfig, meanflow_shapes, build_meanflow, meanflow_objective),
    "mlp": WorldModel(MLPConfig, mlp_world_shapes, build_mlp, mlp_objective),
}


def network_calls(dynamics: Any) -> int:
    """Network calls per transition: the number of sampler steps, 1 for a model that is no sampler."""
    return len(dynamics.sampler()[2]) if hasattr(dynamics, "sampler") else 1
