"""The imagined return of B policies and its gradient, through policy, sampler, reward and critics over H steps."""

from fastdwm_kernels.rollout.gradient import Gradient
from fastdwm_kernels.rollout.imagine import Return
from fastdwm_kernels.rollout.models import RolloutModels
from fastdwm_kernels.rollout.op import (
    rollout_gradient,
    rollout_value,
    score_gradient,
    score_value,
)

__all__ = [
    "Gradient",
    "Return",
    "RolloutModels",
    "rollout_gradient",
    "rollout_value",
    "score_gradient",
    "score_value",
]
