"""The end of a captured decision: `commit`."""

from fastdwm_kernels.commit.op import commit
from fastdwm_kernels.commit.reference import NUMBERS, Candidate

__all__ = ["NUMBERS", "Candidate", "commit"]
