"""A whole decision by the default rule, in one call on a CPU: `Decider`."""

from fastdwm_kernels.decision.op import Decider, prepare

__all__ = ["Decider", "prepare"]
