"""The K-step sampler of a world model in one launch, with its VJP; and one of its steps."""

from fastdwm_kernels.sampler.op import reverse_chain
from fastdwm_kernels.sampler.step import reverse_step
from fastdwm_kernels.sampler.weights import ChainWeights, pack_chain

__all__ = ["ChainWeights", "pack_chain", "reverse_chain", "reverse_step"]
