"""The policy MLP with one set of weights per episode: `policy`."""

from fastdwm.kernels.policy.op import policy

__all__ = ["policy"]
