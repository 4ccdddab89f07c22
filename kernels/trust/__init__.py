"""The arithmetic of the trust in the models, per episode: `weigh`, `clip`, `hold` and `observe`."""

from fastdwm.kernels.trust.op import clip, hold, observe, weigh
from fastdwm.kernels.trust.reference import (
    COLUMNS,
    COUNT,
    CRITIC_ERROR,
    LOG_SLOPE,
    MODEL_ERROR,
    RETURNS,
    REWARD,
    SQUARE,
    VALUE,
    TrustSettings,
    Weights,
)

__all__ = [
    "COLUMNS",
    "COUNT",
    "CRITIC_ERROR",
    "LOG_SLOPE",
    "MODEL_ERROR",
    "RETURNS",
    "REWARD",
    "SQUARE",
    "VALUE",
    "TrustSettings",
    "Weights",
    "clip",
    "hold",
    "observe",
    "weigh",
]
