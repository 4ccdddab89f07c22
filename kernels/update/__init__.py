"""Optimiser steps of the adapted policies: `sgd_ascent`, `adam_ascent`, and `bounded_step` with its norm."""

from fastdwm.kernels.update.op import adam_ascent, bounded_step, copy_of, sgd_ascent, stepped

__all__ = ["adam_ascent", "bounded_step", "copy_of", "sgd_ascent", "stepped"]
