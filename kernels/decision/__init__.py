"""A whole decision by the default rule, in one call on a CPU: `decide`."""

from fastdwm_kernels.decision.op import decide, prepare

__all__ = ["decide", "prepare"]
