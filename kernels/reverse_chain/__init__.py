"""The K-step reverse chain in one launch, with its VJP; with K = 1 the MeanFlow one-step sampler."""

from fastdwm.kernels.reverse_chain.op import meanflow_step, reverse_chain
from fastdwm.kernels.reverse_step.weights import ChainWeights, pack_chain

__all__ = ["ChainWeights", "meanflow_step", "pack_chain", "reverse_chain"]
