"""Triton products with a packed weight, which is streamed in tiles of its columns or loaded at once.

Activations are transposed, (features, particles), and the weights are the left operand: with 16 particles per program
only this order suits Hopper's tensor cores, whose left operand has 64 rows.
"""

import triton
import triton.language as tl

from fastdwm_kernels.dense import dot
from fastdwm_kernels.launch import chunk, pad_block

padded = triton.constexpr_function(pad_block)
tile_columns = triton.constexpr_function(chunk)


@triton.constexpr_function
def log2(n):
    return n.bit_length() - 1


@triton.jit
def load_weight(w_ptr, OUT: tl.constexpr, IN: tl.constexpr):
    """A weight (OUT, IN) that is packed in one tile."""
    return tl.load(w_ptr + tl.arange(0, OUT)[:, None] * IN + tl.arange(0, IN)[None, :])


@triton.jit
def tile_of(w_ptr, i, OUT: tl.constexpr, COLUMNS: tl.constexpr):
    """Tile i (OUT, COLUMNS) of packed weights."""
    offsets = tl.arange(0, OUT)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return tl.load(w_ptr + i * (OUT * COLUMNS) + offsets)


@triton.jit
def rows_of_tile(x, i, N_TILES: tl.constexpr):
    """The rows (IN // N_TILES, BLOCK_M) of x (IN, BLOCK_M) that tile i mod N_TILES of a weight multiplies.

    Bit 3 and the highest bits of a column's number are the number of its tile, see `weights.py`. A thread's part of a
    tensor-core accumulator has rows that differ in just these bits, so a thread selects among its own registers as long
    as there are at most 2 D / (16 num_warps) tiles; with more, the values go through shared memory.
    """
    BLOCK_M: tl.constexpr = x.shape[1]
    COLUMNS: tl.constexpr = x.shape[0] // N_TILES
    if N_TILES > 1:
        x = tl.reshape(x, (N_TILES // 2, COLUMNS // 8, 2, 8, BLOCK_M))
        x = tl.reshape(tl.permute(x, (1, 3, 4, 0, 2)), (COLUMNS, BLOCK_M, N_TILES))
        for bit in tl.static_range(log2(N_TILES)):
            even, odd = tl.split(tl.reshape(x, (COLUMNS, BLOCK_M, N_TILES >> (bit + 1), 2)))
            x = tl.where((i >> bit) % 2 == 0, even, odd)
        x = tl.reshape(x, (COLUMNS, BLOCK_M))
    return x


@triton.jit
def product(w_ptr, x, OUT: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr):
    """(OUT, BLOCK_M) float32 product of a weight (OUT, IN) in tiles of at most TILE elements and x (IN, BLOCK_M)."""
    COLUMNS: tl.constexpr = tile_columns(OUT, x.shape[0], TILE)
    N_TILES: tl.constexpr = x.shape[0] // COLUMNS
    sums = tl.zeros((OUT, x.shape[1]), tl.float32)
    for i in tl.range(N_TILES, num_stages=STAGES):
        sums = dot(tile_of(w_ptr, i, OUT, COLUMNS), rows_of_tile(x, i, N_TILES), sums)
    return sums


@triton.jit
def product_at_once(w, w_ptr, x, acc, OUT: tl.constexpr, TILE: tl.constexpr):
    """acc + w x, where w is a loaded weight, or None, and then its tiles are loaded from w_ptr.

    For use inside a loop that streams other weights. There a loop over tiles would end the overlap of loads and
    products, which only IEEE products can do without.
    """
    if w is not None:
        return dot(w, x, acc)
    COLUMNS: tl.constexpr = tile_columns(OUT, x.shape[0], TILE)
    N_TILES: tl.constexpr = x.shape[0] // COLUMNS
    if w_ptr.dtype.element_ty == tl.float32:
        # Unrolled, all tiles would be in registers at once.
        for i in tl.range(N_TILES, num_stages=1):
            acc = dot(tile_of(w_ptr, i, OUT, COLUMNS), rows_of_tile(x, i, N_TILES), acc)
    else:
        for i in tl.static_range(N_TILES):
            acc = dot(tile_of(w_ptr, i, OUT, COLUMNS), rows_of_tile(x, i, N_TILES), acc)
    return acc
