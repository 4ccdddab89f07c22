"""Noise that is a function of episode and time: `normal`."""

from fastdwm_kernels.noise.op import normal

__all__ = ["normal"]
