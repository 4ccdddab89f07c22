"""Normal noise as a function of seed and time: `normal`."""

from fastdwm_kernels.noise.op import normal

__all__ = ["normal"]
