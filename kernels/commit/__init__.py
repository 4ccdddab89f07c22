"""Commit or roll back a decision inside a CUDA graph: `commit`."""

from fastdwm_kernels.commit.op import commit
from fastdwm_kernels.commit.reference import NUMBERS, Candidate

__all__ = ["NUMBERS", "Candidate", "commit"]
