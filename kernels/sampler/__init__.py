"""The K-step sampler of a world model with its VJP, `sample`, and a single step of it, `reverse_step`."""

from fastdwm_kernels.sampler.op import reverse_step, sample
from fastdwm_kernels.sampler.weights import SamplerWeights, pack_sampler

__all__ = ["SamplerWeights", "pack_sampler", "reverse_step", "sample"]
