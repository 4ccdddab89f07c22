"""Memory of the CPU kernels for another time: the pages of fresh memory cost more than what is computed in them."""

from functools import lru_cache
from itertools import accumulate
from math import prod
from threading import local
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

LINE = 16
"""floats in a line of the cache: a vector that lies across two of them costs two accesses"""


def fresh(size: int) -> np.ndarray:
    """float32 (size,), its first number at the beginning of a line."""
    memory = np.empty(size + LINE, dtype=np.float32)
    first = -(memory.ctypes.data // memory.itemsize) % LINE
    return memory[first : first + size]


class Pool(local):
    """What a thread has used before and nobody uses now."""

    def __init__(self):
        self.free: list[np.ndarray] = []

    def take(self, *shape: int) -> Tensor:
        """float32, with whatever it holds; its memory is free again when no tensor uses it any more."""
        size = prod(shape)
        fitting = [i for i, buffer in enumerate(self.free) if len(buffer) >= size]
        if fitting:
            buffer = self.free.pop(min(fitting, key=lambda i: len(self.free[i])))
        else:
            # A larger one takes the place of the largest, so that there are never more than were in use at once.
            self.free = sorted(self.free, key=len)[:-1]
            buffer = fresh(size)
        # The tensor's storage, and so every view of it, keeps this very array alive.
        array = buffer[:size].reshape(shape)
        finalize(array, self.give, buffer).atexit = False
        return torch.from_numpy(array)

    def give(self, buffer: np.ndarray) -> None:
        self.free.append(buffer)


POOL = Pool()


def recycled(*shape: int) -> Tensor:
    """A float32 tensor with whatever it holds, in memory used before."""
    return POOL.take(*shape)


@lru_cache
def places(shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, int], ...]:
    """Where arrays of these shapes begin and end in one memory, each at the beginning of a line."""
    ends = list(accumulate(-(-prod(shape) // LINE) * LINE for shape in shapes))
    return tuple((start, start + prod(shape)) for start, shape in zip([0, *ends], shapes, strict=False))


def recycled_together(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Such arrays of several shapes, in one memory: to lend and to take back costs more than to compute some."""
    found = places(shapes)
    memory = POOL.take(found[-1][1]).numpy()
    return [memory[start:end].reshape(shape) for (start, end), shape in zip(found, shapes, strict=True)]
