"""Triton: the reverse steps of a denoiser and their VJP, as one loop over steps, hidden layers and tiles of weights.

In a single loop the tiles of the next layer are prefetched while a layer ends, so no layer begins with a wait. The
weights of the first and the last layer are loaded once if they fit (RESIDENT).
"""

import triton
import triton.language as tl

from fastdwm_kernels.dense import dot, silu, silu_deriv
from fastdwm_kernels.sampler.tiles import load_weight, padded, product_at_once, rows_of_tile, tile_of


@triton.jit
def load_rows(ptr, rows, n_rows, WIDTH: tl.constexpr):
    """(padded WIDTH, BLOCK_M) transposed tile of a row-major (n_rows, WIDTH) array, zero outside."""
    column = tl.arange(0, padded(WIDTH))[:, None]
    mask = (column < WIDTH) & (rows < n_rows)[None, :]
    return tl.load(ptr + rows[None, :] * WIDTH + column, mask=mask, other=0.0)


@triton.constexpr_function
def has_registers(dtype, sp=16):
    """Whether registers are left for early loads, which is not so with fp32 operands or a long state (sp, .)."""
    return dtype != tl.float32 and sp <= 32


@triton.jit
def vector(ptr, D: tl.constexpr):
    """ptr[0:D]."""
    return tl.load(ptr + tl.arange(0, D))


@triton.jit
def layer_size(D: tl.constexpr, BLOCK_M: tl.constexpr):
    """Elements of one layer's pre-activations of all programs, in 64 bits, since a million rows exceed 2^31."""
    return tl.num_programs(0).to(tl.int64) * (D * BLOCK_M)


@triton.jit
def saved_tile(ptr, D: tl.constexpr, BLOCK_M: tl.constexpr):
    """Pointers (D * BLOCK_M,) to this program's part of one layer's pre-activations."""
    return ptr + tl.program_id(0).to(tl.int64) * (D * BLOCK_M) + tl.arange(0, D * BLOCK_M)


@triton.jit
def keep(ptr, z):
    """Store pre-activations z (D, BLOCK_M) for `kept`, in the order in which threads hold them.

    A thread's values of the accumulator, rows 8 apart and columns 1 and 8 apart, become neighbours, so it stores and
    loads 16 bytes at once without shared memory.
    """
    D: tl.constexpr = z.shape[0]
    BLOCK_M: tl.constexpr = z.shape[1]
    BLOCKS: tl.constexpr = max(1, BLOCK_M // 16)
    z = tl.reshape(z.to(ptr.dtype.element_ty), (D // 16, 2, 8, BLOCKS, BLOCK_M // BLOCKS // 8, 4, 2))
    tl.store(saved_tile(ptr, D, BLOCK_M), tl.reshape(tl.permute(z, (3, 0, 2, 5, 1, 4, 6)), (D * BLOCK_M,)))


@triton.jit
def kept(z, D: tl.constexpr, BLOCK_M: tl.constexpr):
    """Pre-activations (D, BLOCK_M) in float32 from z (D * BLOCK_M,), which `keep` stored."""
    BLOCKS: tl.constexpr = max(1, BLOCK_M // 16)
    z = tl.reshape(z, (BLOCKS, D // 16, 8, 4, 2, BLOCK_M // BLOCKS // 8, 2))
    return tl.reshape(tl.permute(z, (1, 4, 2, 0, 5, 3, 6)), (D, BLOCK_M)).to(tl.float32)


@triton.jit
def noise_of_step(ptr, rows, n_rows, S: tl.constexpr, wanted):
    """Tile (padded S, BLOCK_M) of a step's noise (n_rows, S); zeros, without reading, unless wanted."""
    noise = tl.zeros((padded(S), rows.shape[0]), tl.float32)
    if wanted:
        noise = load_rows(ptr, rows, n_rows, S)
    return noise


@triton.jit
def first_layer(w_in, w_ptr, y, cond, table, TILE: tl.constexpr):
    """First pre-activation (D, BLOCK_M) of state y; obs and action add cond (D, BLOCK_M) to it, the step table (D,)."""
    return product_at_once(w_in, w_ptr, y, cond + table[:, None], cond.shape[0], TILE)


@triton.jit
def forward_steps(y, cond, noise_ptr, w_ptr, b_ptr, coef_ptr, saved_ptr, rows, n_rows, steps,
                  S: tl.constexpr, HIDDEN: tl.constexpr, N_TILES: tl.constexpr, TILE: tl.constexpr,
                  STAGES: tl.constexpr, RESIDENT: tl.constexpr):  # fmt: skip
    """The state (padded S, BLOCK_M) after all `steps` reverse steps, of which the last adds no noise.

    cond: (D, BLOCK_M), the part of every first pre-activation that obs and action contribute.   noise_ptr:
    (steps - 1, n_rows, S).   w_ptr: packed weights: in, HIDDEN matrices (D, D), out.   b_ptr: HIDDEN biases, output
    bias, table.   saved_ptr: (steps, HIDDEN + 1, programs, D * BLOCK_M), or None.
    """
    D: tl.constexpr = cond.shape[0]
    BLOCK_M: tl.constexpr = cond.shape[1]
    SP: tl.constexpr = padded(S)
    ROUNDS: tl.constexpr = max(1, HIDDEN) * N_TILES
    hidden_ptr = w_ptr + D * SP
    out_ptr = hidden_ptr + HIDDEN * D * D
    table_ptr = b_ptr + HIDDEN * D + SP
    w_in, w_out = None, None
    if RESIDENT:
        w_in, w_out = load_weight(w_ptr, D, SP), load_weight(out_ptr, SP, D)
    b_out = vector(b_ptr + HIDDEN * D, SP)[:, None]
    index = steps - 1
    z = first_layer(w_in, w_ptr, y, cond, vector(table_ptr + index * D, D), TILE)
    sums = tl.zeros((D, BLOCK_M), tl.float32)
    if saved_ptr is not None:
        keep(saved_ptr, z)
        saved_ptr += layer_size(D, BLOCK_M)
    h = silu(z)
    EARLY: tl.constexpr = has_registers(w_ptr.dtype.element_ty)
    NOISE_EARLY: tl.constexpr = has_registers(w_ptr.dtype.element_ty, SP)
    noise, bias = tl.zeros((SP, BLOCK_M), tl.float32), tl.zeros((D,), tl.float32)
    tile, layer = 0, 0
    for t in tl.range(steps * ROUNDS, num_stages=STAGES):
        # Load a layer's bias and a step's noise when they begin.
        if t % N_TILES == 0:
            if HIDDEN > 0 and EARLY:
                bias = vector(b_ptr + layer * D, D)
            if layer == 0:
                if NOISE_EARLY:
                    noise = noise_of_step(noise_ptr, rows, n_rows, S, index > 0)
        if HIDDEN > 0:
            sums = dot(tile_of(hidden_ptr, tile, D, D // N_TILES), rows_of_tile(h, t, N_TILES), sums)
        tile = tl.where(tile == ROUNDS - 1, 0, tile + 1)
        if t % N_TILES == N_TILES - 1:
            if HIDDEN > 0:
                if not EARLY:
                    bias = vector(b_ptr + layer * D, D)
                z = sums + bias[:, None]
                sums = tl.zeros((D, BLOCK_M), tl.float32)
                if saved_ptr is not None:
                    keep(saved_ptr, z)
                    saved_ptr += layer_size(D, BLOCK_M)
                h = silu(z)
            layer += 1
            if layer == max(1, HIDDEN):
                layer = 0
                out = product_at_once(w_out, out_ptr, h, b_out + tl.zeros((SP, BLOCK_M), tl.float32), SP, TILE)
                if not NOISE_EARLY:
                    noise = noise_of_step(noise_ptr, rows, n_rows, S, index > 0)
                y = tl.load(coef_ptr + 3 * index) * y + tl.load(coef_ptr + 3 * index + 1) * out
                y += tl.load(coef_ptr + 3 * index + 2) * noise
                noise_ptr += n_rows * S
                index -= 1
                if index >= 0:
                    z = first_layer(w_in, w_ptr, y, cond, vector(table_ptr + index * D, D), TILE)
                    if saved_ptr is not None:
                        keep(saved_ptr, z)
                        saved_ptr += layer_size(D, BLOCK_M)
                    h = silu(z)
    return y


@triton.jit
def last_layer_vjp(w_out, w_ptr, dout, saved_ptr, D: tl.constexpr, TILE: tl.constexpr):
    """Gradient (D, BLOCK_M) of the last pre-activation, stored at saved_ptr, from that of the output."""
    BLOCK_M: tl.constexpr = dout.shape[1]
    saved = tl.load(saved_tile(saved_ptr, D, BLOCK_M))
    dh = product_at_once(w_out, w_ptr, dout, tl.zeros((D, BLOCK_M), tl.float32), D, TILE)
    return dh * silu_deriv(kept(saved, D, BLOCK_M))


@triton.jit
def backward_steps(dy, w_ptr, coef_ptr, saved_ptr, steps, S: tl.constexpr, D: tl.constexpr,
                   HIDDEN: tl.constexpr, N_TILES: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
                   RESIDENT: tl.constexpr):  # fmt: skip
    """Gradients of the first state, (padded S, BLOCK_M), and of cond, (D, BLOCK_M), from dy of the last state.

    w_ptr: packed transposed weights: in, HIDDEN matrices, the last first, out.   saved_ptr: from `forward_steps`.
    """
    BLOCK_M: tl.constexpr = dy.shape[1]
    SP: tl.constexpr = padded(S)
    ROUNDS: tl.constexpr = max(1, HIDDEN) * N_TILES
    hidden_ptr = w_ptr + D * SP
    out_ptr = hidden_ptr + HIDDEN * D * D
    w_in, w_out = None, None
    if RESIDENT:
        w_in, w_out = load_weight(w_ptr, SP, D), load_weight(out_ptr, D, SP)
    saved_ptr += layer_size(D, BLOCK_M) * (steps * (HIDDEN + 1) - 1)
    index, c_y, c_out = tl.cast(0, tl.int32), 0.0, tl.load(coef_ptr + 1)
    dz = last_layer_vjp(w_out, out_ptr, c_out * dy, saved_ptr, D, TILE)
    dcond = tl.zeros((D, BLOCK_M), tl.float32)
    sums = tl.zeros((D, BLOCK_M), tl.float32)
    saved = tl.zeros((D * BLOCK_M,), saved_ptr.dtype.element_ty)
    EARLY: tl.constexpr = has_registers(w_ptr.dtype.element_ty)
    tile, layer = 0, 0
    for t in tl.range(steps * ROUNDS, num_stages=STAGES):
        # Load at the start of a layer and of a step the values for their end.
        if t % N_TILES == 0:
            if HIDDEN > 0 and EARLY:
                saved_ptr -= layer_size(D, BLOCK_M)
                saved = tl.load(saved_tile(saved_ptr, D, BLOCK_M))
            if layer == 0:
                c_y = tl.load(coef_ptr + 3 * index)
                c_out = tl.load(coef_ptr + 3 * tl.minimum(index + 1, steps - 1) + 1)
        if HIDDEN > 0:
            sums = dot(tile_of(hidden_ptr, tile, D, D // N_TILES), rows_of_tile(dz, t, N_TILES), sums)
        tile = tl.where(tile == ROUNDS - 1, 0, tile + 1)
        if t % N_TILES == N_TILES - 1:
            if HIDDEN > 0:
                if not EARLY:
                    saved_ptr -= layer_size(D, BLOCK_M)
                    saved = tl.load(saved_tile(saved_ptr, D, BLOCK_M))
                dz = sums * silu_deriv(kept(saved, D, BLOCK_M))
                sums = tl.zeros((D, BLOCK_M), tl.float32)
            layer += 1
            if layer == max(1, HIDDEN):
                layer = 0
                dcond += dz
                dy = product_at_once(w_in, w_ptr, dz, c_y * dy, SP, TILE)
                index += 1
                if index < steps:
                    saved_ptr -= layer_size(D, BLOCK_M)
                    dz = last_layer_vjp(w_out, out_ptr, c_out * dy, saved_ptr, D, TILE)
    return dy, dcond
