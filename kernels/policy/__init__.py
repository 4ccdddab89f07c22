"""The policy MLP with weights of its own for each episode: `policy`."""

from fastdwm_kernels.policy.op import policy

__all__ = ["policy"]
