"""The models of a rollout."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fastdwm_kernels.layout import MLPLayout
from fastdwm_kernels.sampler.weights import SamplerWeights


@dataclass(frozen=True)
class RolloutModels:
    """Policy layout, sampler and scales of a rollout; all tensors of one dtype and device.

    policy: layout of the flat policy parameters.   sampler: of the normalised change of the state.
    obs_mean, obs_std, delta_mean, delta_std: (S,).
    """

    policy: MLPLayout
    sampler: SamplerWeights
    obs_mean: Tensor
    obs_std: Tensor
    delta_mean: Tensor
    delta_std: Tensor

    @cached_property
    def scales(self) -> Tensor:
        """obs_mean, obs_std, delta_mean, delta_std, (4, S)."""
        return torch.stack([self.obs_mean, self.obs_std, self.delta_mean, self.delta_std])
