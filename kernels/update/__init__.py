"""The optimiser steps of all episodes, and the limit of how far they go."""

from fastdwm_kernels.update.op import adam_step, bound_step, pull_back, sgd_step

__all__ = ["adam_step", "bound_step", "pull_back", "sgd_step"]
