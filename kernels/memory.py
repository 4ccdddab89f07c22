"""Recycled memory for the CPU kernels: the page faults of fresh memory cost more than the computation in it."""

from functools import lru_cache
from itertools import accumulate
from math import prod
from threading import local
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

LINE = 16
"""floats in a cache line: a vector that crosses two lines costs two accesses"""


def fresh(size: int) -> np.ndarray:
    """Uninitialised float32 (size,), aligned to a cache line."""
    memory = np.empty(size + LINE, dtype=np.float32)
    first = -(memory.ctypes.data // memory.itemsize) % LINE
    return memory[first : first + size]


class Pool(local):
    """Buffers of one thread that are free to be used again."""

    def __init__(self):
        self.free: list[np.ndarray] = []

    def take(self, *shape: int) -> Tensor:
        """An uninitialised float32 tensor; its memory returns to the pool when no tensor uses it any more."""
        size = prod(shape)
        fitting = [i for i, buffer in enumerate(self.free) if len(buffer) >= size]
        if fitting:
            buffer = self.free.pop(min(fitting, key=lambda i: len(self.free[i])))
        else:
            # The new buffer replaces the largest, so there are never more buffers than were in use at once.
            self.free = sorted(self.free, key=len)[:-1]
            buffer = fresh(size)
        # The tensor's storage, and so every view of it, keeps this array object alive.
        array = buffer[:size].reshape(shape)
        finalize(array, self.give, buffer).atexit = False
        return torch.from_numpy(array)

    def give(self, buffer: np.ndarray) -> None:
        self.free.append(buffer)


POOL = Pool()


def recycled(*shape: int) -> Tensor:
    """An uninitialised float32 tensor in recycled memory."""
    return POOL.take(*shape)


@lru_cache
def spans(shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, int], ...]:
    """First and last element of arrays of these shapes in one buffer, each aligned to a cache line."""
    ends = list(accumulate(-(-prod(shape) // LINE) * LINE for shape in shapes))
    return tuple((start, start + prod(shape)) for start, shape in zip([0, *ends], shapes, strict=False))


def recycled_together(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Uninitialised arrays of several shapes in one recycled buffer, since every `recycled` has a cost of its own."""
    bounds = spans(shapes)
    buffer = POOL.take(bounds[-1][1]).numpy()
    return [buffer[start:end].reshape(shape) for (start, end), shape in zip(bounds, shapes, strict=True)]
