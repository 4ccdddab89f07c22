"""The imagined return of B policies and its gradient: policy, sampler, reward and critics over H steps."""

from fastdwm.kernels.rollout.gradient import Anchor, Gradient
from fastdwm.kernels.rollout.imagine import Return
from fastdwm.kernels.rollout.models import RolloutModels
from fastdwm.kernels.rollout.op import (
    outcome,
    rollout_gradient,
    rollout_value,
    score_gradient,
    score_value,
)

__all__ = [
    "Anchor",
    "Gradient",
    "Return",
    "RolloutModels",
    "outcome",
    "rollout_gradient",
    "rollout_value",
    "score_gradient",
    "score_value",
]
