"""Frozen networks with one output, such as the reward model and the critics: `pack_frozen_mlp`, then `frozen_mlp`."""

from fastdwm_kernels.frozen_mlp.op import frozen_mlp, pack_frozen_mlp
from fastdwm_kernels.frozen_mlp.reference import FrozenMLP

__all__ = ["FrozenMLP", "frozen_mlp", "pack_frozen_mlp"]
