"""Philox4x32-10 and the Box-Muller transform in torch, on any device: the reference of the kernel.

Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011). The counter is (index, time, stream, 0),
the key the 64 bits of the seed. The first two of the four output words make one number, as in Triton's `randn`.
"""

import math

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
LOW = 0xFFFFFFFF
SCALE = 4.6566127342e-10
"""scales the 31 bits of a folded word to a float32 below one, as Triton does"""
SMALLEST = 1e-7
"""lower limit of the uniform numbers, which avoids log 0; normal numbers are therefore at most 5.7"""


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four output words of four counter and two key words; all int64 in [0, 2^32), of shapes that broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The product wraps modulo 2^64, which keeps both halves right.
        p0, p2 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c2 = ((p2 >> 32) & LOW) ^ c1 ^ k0, ((p0 >> 32) & LOW) ^ c3 ^ k1
        c1, c3 = p2 & LOW, p0 & LOW
        k0, k1 = (k0 + KEY_STEPS[0]) & LOW, (k1 + KEY_STEPS[1]) & LOW
    return c0, c1, c2, c3


def uniform(word: Tensor) -> Tensor:
    """float32 in [0, 1) from a word, whose upper half of values is mirrored to the lower half, as in Triton."""
    return torch.where(word > LOW >> 1, LOW - word, word).float() * SCALE


def normal_reference(seeds: Tensor, times: Tensor, n_rows: int, width: int, period: int, stream: int) -> Tensor:
    """Standard normal (n_rows, B, width); arguments as in `op.normal`."""
    rows = torch.arange(n_rows, device=seeds.device).view(-1, 1, 1)
    index = rows % period * width + torch.arange(width, device=seeds.device)
    time = times.view(-1, 1) + rows // period
    zero = torch.zeros_like(index)
    key = seeds.view(-1, 1) & LOW, (seeds.view(-1, 1) >> 32) & LOW
    first, second, _, _ = philox((index, time & LOW, zero + stream, zero), key)
    radius = (-2 * uniform(first).clamp(min=SMALLEST).log()).sqrt()
    return radius * (2 * math.pi * uniform(second)).cos()
