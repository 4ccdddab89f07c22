"""The optimiser steps of all episodes, and the bound on how far their actions move."""

from fastdwm_kernels.update.op import adam_step, bound_step, pull_back, sgd_step

__all__ = ["adam_step", "bound_step", "pull_back", "sgd_step"]
