"""The end of a captured decision: `finish`."""

from fastdwm.kernels.finish.op import finish
from fastdwm.kernels.finish.reference import NUMBERS, Outcome

__all__ = ["NUMBERS", "Outcome", "finish"]
