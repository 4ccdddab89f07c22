"""Optimiser steps of the adapted policies: `sgd_ascent` and `adam_ascent`."""

from fastdwm.kernels.update.op import adam_ascent, copy_of, sgd_ascent, stepped

__all__ = ["adam_ascent", "copy_of", "sgd_ascent", "stepped"]
