"""The end of a captured decision: `finish`."""

from fastdwm.kernels.finish.op import Outcome, finish

__all__ = ["Outcome", "finish"]
