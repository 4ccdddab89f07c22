"""The K-step sampler of a world model in one launch, with its VJP; and one of its steps."""

from fastdwm_kernels.sampler.op import reverse_step, sample
from fastdwm_kernels.sampler.weights import SamplerWeights, pack_sampler

__all__ = ["SamplerWeights", "pack_sampler", "reverse_step", "sample"]
