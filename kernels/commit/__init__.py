"""The end of a captured decision: `commit`."""

from fastdwm.kernels.commit.op import commit
from fastdwm.kernels.commit.reference import NUMBERS, Candidate

__all__ = ["NUMBERS", "Candidate", "commit"]
