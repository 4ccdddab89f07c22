"""The K-step reverse chain in one launch, with its VJP; with K = 1 one call of the network."""

from fastdwm_kernels.reverse_chain.op import reverse_chain
from fastdwm_kernels.reverse_step.weights import ChainWeights, pack_chain

__all__ = ["ChainWeights", "pack_chain", "reverse_chain"]
