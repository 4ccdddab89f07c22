"""One reverse-diffusion step: denoiser MLP and affine update, with its VJP."""

from fastdwm_kernels.reverse_step.op import reverse_step
from fastdwm_kernels.reverse_step.weights import ChainWeights, pack_chain

__all__ = ["ChainWeights", "pack_chain", "reverse_step"]
