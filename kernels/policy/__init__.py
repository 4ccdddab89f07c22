"""The policy MLP with one set of weights per episode: `policy`."""

from fastdwm_kernels.policy.op import policy

__all__ = ["policy"]
