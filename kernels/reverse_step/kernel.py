"""Triton kernels of one reverse step, and the pieces that the kernels of the whole chain share.

Operands are swapped: activations stay transposed, (features, particles), and the weights are the left operand. With 16
particles per program that is the only way to feed Hopper's tensor cores, whose left operand has 64 rows. Weights come
from L2 in tiles, several in flight; all extents are powers of two, padded with zeros when the weights are packed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdwm.kernels.aot import AotCase
from fastdwm.kernels.dense import nearest_tf32
from fastdwm.kernels.launch import chunk, dot_precision, pad_block, run
from fastdwm.kernels.reverse_step.weights import ChainWeights, DenoiserShape

padded = triton.constexpr_function(pad_block)
tile_columns = triton.constexpr_function(chunk)

# Rows of a few floats are read and written one by one: a single compilation serves any slice of a buffer.
ROWS_FWD = ("y_ptr", "obs_ptr", "action_ptr", "noise_ptr", "out_ptr")
ROWS_BWD = ("dout_ptr", "dy_ptr", "dobs_ptr", "daction_ptr")


@triton.jit
def silu(z):
    return z * tl.sigmoid(z)


@triton.jit
def silu_slope(z):
    s = tl.sigmoid(z)
    return s * (1.0 + z * (1.0 - s))


@triton.jit
def product(w_ptr, x, OUT: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr, IP: tl.constexpr):
    """(OUT, BLOCK_M) float32 product of a weight (OUT, IN), streamed, and x (IN, BLOCK_M).

    Tile i of the weight, (OUT, COLUMNS), holds its columns i, i + N_TILES, i + 2 N_TILES, ..; see `weights.py`.
    """
    IN: tl.constexpr = x.shape[0]
    COLUMNS: tl.constexpr = tile_columns(OUT, IN, TILE)
    N_TILES: tl.constexpr = IN // COLUMNS
    x = x.to(w_ptr.dtype.element_ty)
    if IP == "tf32":
        x = nearest_tf32(x)
    offsets = tl.arange(0, OUT)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    if N_TILES == 1:
        return tl.dot(tl.load(w_ptr + offsets), x, input_precision=IP)
    # A register tile cannot be indexed; a masked sum picks a slice exactly, and with this order of the columns its
    # terms belong to one thread.
    x = tl.reshape(x, (COLUMNS, N_TILES, x.shape[1]))
    tile = tl.arange(0, N_TILES)[None, :, None]
    sums = tl.zeros((OUT, x.shape[2]), tl.float32)
    for i in tl.range(N_TILES, num_stages=STAGES):
        w = tl.load(w_ptr + i * (OUT * COLUMNS) + offsets)
        sums = tl.dot(w, tl.sum(tl.where(tile == i, x, 0.0), 1).to(x.dtype), sums, input_precision=IP)
    return sums


@triton.jit
def load_rows(ptr, rows, n_rows, WIDTH: tl.constexpr):
    """(padded WIDTH, BLOCK_M) transposed tile of a row-major (n_rows, WIDTH) array, zero outside."""
    column = tl.arange(0, padded(WIDTH))[:, None]
    mask = (column < WIDTH) & (rows < n_rows)[None, :]
    return tl.load(ptr + rows[None, :] * WIDTH + column, mask=mask, other=0.0)


@triton.jit
def store_rows(ptr, value, rows, n_rows, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Store features FIRST .. FIRST + WIDTH of a transposed tile as rows of a row-major (n_rows, WIDTH) array."""
    column = tl.arange(0, value.shape[0])[:, None] - FIRST
    mask = (column >= 0) & (column < WIDTH) & (rows < n_rows)[None, :]
    tl.store(ptr + rows[None, :] * WIDTH + column, value, mask=mask)


@triton.jit
def layer_size(D: tl.constexpr, BLOCK_M: tl.constexpr):
    """Elements of one layer's pre-activations of all programs; in 64 bits, for a million rows pass 2^31."""
    return tl.num_programs(0).to(tl.int64) * (D * BLOCK_M)


@triton.jit
def saved_tile(ptr, D: tl.constexpr, BLOCK_M: tl.constexpr):
    """Pointers to this program's (D, BLOCK_M) tile of one layer's pre-activations (programs, D, BLOCK_M)."""
    tile = tl.arange(0, D)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    return ptr + tl.program_id(0).to(tl.int64) * (D * BLOCK_M) + tile


@triton.jit
def condition(obs_ptr, action_ptr, w_ptr, rows, n_rows, S: tl.constexpr, A: tl.constexpr, D: tl.constexpr,
              TILE: tl.constexpr, STAGES: tl.constexpr, IP: tl.constexpr):  # fmt: skip
    """(D, BLOCK_M) part of the first pre-activation that obs and action contribute."""
    column = tl.arange(0, padded(S + A))[:, None]
    row = (rows < n_rows)[None, :]
    obs = tl.load(obs_ptr + rows[None, :] * S + column, mask=row & (column < S), other=0.0)
    mask = row & (column >= S) & (column < S + A)
    action = tl.load(action_ptr + rows[None, :] * A + (column - S), mask=mask, other=0.0)
    return product(w_ptr, obs + action, D, TILE, STAGES, IP)


@triton.jit
def denoise(z, w_ptr, b_ptr, saved_ptr, S: tl.constexpr, HIDDEN: tl.constexpr, TILE: tl.constexpr,
            STAGES: tl.constexpr, IP: tl.constexpr):  # fmt: skip
    """(padded S, BLOCK_M) network output from the first pre-activation z (D, BLOCK_M); saves every pre-activation.

    w_ptr: HIDDEN matrices (D, D), then the output matrix.   b_ptr: their biases.
    saved_ptr: (HIDDEN + 1, programs, D, BLOCK_M), or None.
    """
    D: tl.constexpr = z.shape[0]
    BLOCK_M: tl.constexpr = z.shape[1]
    for _ in range(HIDDEN):
        if saved_ptr is not None:
            tl.store(saved_tile(saved_ptr, D, BLOCK_M), z.to(saved_ptr.dtype.element_ty))
            saved_ptr += layer_size(D, BLOCK_M)
        z = product(w_ptr, silu(z), D, TILE, STAGES, IP) + tl.load(b_ptr + tl.arange(0, D))[:, None]
        w_ptr += D * D
        b_ptr += D
    if saved_ptr is not None:
        tl.store(saved_tile(saved_ptr, D, BLOCK_M), z.to(saved_ptr.dtype.element_ty))
    return product(w_ptr, silu(z), padded(S), TILE, STAGES, IP) + tl.load(b_ptr + tl.arange(0, padded(S)))[:, None]


@triton.jit
def denoise_vjp(dout, w_ptr, saved_ptr, D: tl.constexpr, HIDDEN: tl.constexpr, TILE: tl.constexpr,
                STAGES: tl.constexpr, IP: tl.constexpr):  # fmt: skip
    """(D, BLOCK_M) gradient of the first pre-activation from that of the output; arguments as in `denoise`."""
    BLOCK_M: tl.constexpr = dout.shape[1]
    w_ptr += HIDDEN * D * D
    saved_ptr += layer_size(D, BLOCK_M) * HIDDEN
    dz = product(w_ptr, dout, D, TILE, STAGES, IP)
    dz *= silu_slope(tl.load(saved_tile(saved_ptr, D, BLOCK_M)).to(tl.float32))
    for _ in range(HIDDEN):
        w_ptr -= D * D
        saved_ptr -= layer_size(D, BLOCK_M)
        dz = product(w_ptr, dz, D, TILE, STAGES, IP)
        dz *= silu_slope(tl.load(saved_tile(saved_ptr, D, BLOCK_M)).to(tl.float32))
    return dz


@triton.jit(do_not_specialize=["n_rows", "index"], do_not_specialize_on_alignment=ROWS_FWD)
def reverse_step_fwd_kernel(y_ptr, obs_ptr, action_ptr, noise_ptr, w_ptr, b_ptr, coef_ptr, out_ptr, saved_ptr,
                            n_rows, index, S: tl.constexpr, A: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr,
                            BLOCK_M: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
                            IP: tl.constexpr):  # fmt: skip
    """BLOCK_M rows of c_y y + c_out net(y, k, obs, action) + sigma noise, k = index + 1.

    Grid      (cdiv(n_rows, BLOCK_M),)
    Reads     y, noise, obs (n_rows, S), action (n_rows, A), ChainWeights.tiles, constants and coefficients
    Writes    out (n_rows, S); pre-activations saved (HIDDEN + 1, programs, D, BLOCK_M) unless None
    Numerics  operands in the weights' dtype, float32 accumulator and state
    """
    SP: tl.constexpr = padded(S)
    C: tl.constexpr = padded(S + A)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    y = load_rows(y_ptr, rows, n_rows, S)
    z = condition(obs_ptr, action_ptr, w_ptr, rows, n_rows, S, A, D, TILE, STAGES, IP)
    z += tl.load(b_ptr + HIDDEN * D + SP + index * D + tl.arange(0, D))[:, None]
    z += product(w_ptr + C * D, y, D, TILE, STAGES, IP)
    out = denoise(z, w_ptr + (C + SP) * D, b_ptr, saved_ptr, S, HIDDEN, TILE, STAGES, IP)
    out = tl.load(coef_ptr + 3 * index) * y + tl.load(coef_ptr + 3 * index + 1) * out
    out += tl.load(coef_ptr + 3 * index + 2) * load_rows(noise_ptr, rows, n_rows, S)
    store_rows(out_ptr, out, rows, n_rows, 0, S)


@triton.jit(do_not_specialize=["n_rows", "index"], do_not_specialize_on_alignment=ROWS_BWD)
def reverse_step_bwd_kernel(dout_ptr, saved_ptr, w_ptr, coef_ptr, dy_ptr, dobs_ptr, daction_ptr, n_rows, index,
                            S: tl.constexpr, A: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr,
                            BLOCK_M: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
                            IP: tl.constexpr):  # fmt: skip
    """BLOCK_M rows of the VJP of one reverse step.

    Grid      (cdiv(n_rows, BLOCK_M),)
    Reads     dout (n_rows, S), saved (HIDDEN + 1, programs, D, BLOCK_M), ChainWeights.tiles_t and coefficients
    Writes    dy, dobs (n_rows, S), daction (n_rows, A)
    Numerics  operands in the weights' dtype, float32 accumulator
    """
    SP: tl.constexpr = padded(S)
    C: tl.constexpr = padded(S + A)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dy = load_rows(dout_ptr, rows, n_rows, S)
    dout = tl.load(coef_ptr + 3 * index + 1) * dy
    dz = denoise_vjp(dout, w_ptr + (C + SP) * D, saved_ptr, D, HIDDEN, TILE, STAGES, IP)
    dy = tl.load(coef_ptr + 3 * index) * dy + product(w_ptr + C * D, dz, SP, TILE, STAGES, IP)
    store_rows(dy_ptr, dy, rows, n_rows, 0, S)
    dcond = product(w_ptr, dz, C, TILE, STAGES, IP)
    store_rows(dobs_ptr, dcond, rows, n_rows, 0, S)
    store_rows(daction_ptr, dcond, rows, n_rows, S, A)


def compile_time(shape: ChainWeights | DenoiserShape) -> dict:
    """Compile-time arguments that all kernels of the step and the chain share."""
    launch = shape.launch
    sizes = dict(S=shape.obs_dim, A=shape.action_dim, D=shape.width, HIDDEN=shape.hidden_layers - 1)
    return sizes | dict(
        BLOCK_M=launch.block_m, TILE=launch.tile, STAGES=launch.num_stages, IP=dot_precision(shape.precision)
    )


def options(shape: ChainWeights | DenoiserShape) -> dict:
    """Options of the compiler."""
    # Without an explicit bound the assembler may spill a few registers to fit a second program on the multiprocessor.
    return dict(num_warps=shape.launch.num_warps, num_stages=shape.launch.num_stages, maxnreg=255)


def scratch(weights: ChainWeights, steps: int, n_rows: int) -> Tensor:
    """Room for the pre-activations of `steps` steps, whole tiles: (steps, layers, programs, D, BLOCK_M)."""
    launch = weights.launch
    tiles = (*launch.grid(n_rows), weights.width, launch.block_m)
    return weights.tiles.new_empty(steps, weights.hidden_layers, *tiles)


def reverse_step_fwd(
    weights: ChainWeights, index: int, y: Tensor, obs: Tensor, action: Tensor, noise: Tensor, save: bool
) -> tuple[Tensor, Tensor | None]:
    """y_{k-1} (N, S) of step k = index + 1 and, if `save`, the pre-activations; one launch."""
    out = torch.empty_like(y)
    saved = scratch(weights, 1, len(y)) if save else None
    run(
        reverse_step_fwd_kernel, weights.launch.grid(len(y)),
        y, obs, action, noise, weights.tiles, weights.constants, weights.coefficients, out, saved, len(y), index,
        **compile_time(weights), **options(weights),
    )  # fmt: skip
    return out, saved


def reverse_step_bwd(weights: ChainWeights, index: int, dout: Tensor, saved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, obs and action; one launch."""
    dy, dobs = torch.empty_like(dout), torch.empty_like(dout)
    daction = dout.new_empty(len(dout), weights.action_dim)
    run(
        reverse_step_bwd_kernel, weights.launch.grid(len(dout)),
        dout, saved, weights.tiles_t, weights.coefficients, dy, dobs, daction, len(dout), index,
        **compile_time(weights), **options(weights),
    )  # fmt: skip
    return dy, dobs, daction


def aot_case(kernel, pointers: tuple[str, ...], shape: DenoiserShape) -> AotCase:
    """One kernel of the step or the chain for a denoiser of this shape; a `saved_ptr` not in `pointers` is None."""
    operand = "bf16" if shape.precision == "bf16" else "fp32"
    saves = "saved_ptr" in pointers
    unused = {"saved_ptr": None} if "saved_ptr" in kernel.arg_names and not saves else {}
    sizes = f"S{shape.obs_dim} A{shape.action_dim} {shape.hidden_layers}x{shape.width} {shape.precision}"
    return AotCase(
        name=f"{kernel.__name__} {sizes}{' save' if saves and 'fwd' in kernel.__name__ else ''}",
        kernel=kernel,
        pointers={name: operand if name in ("w_ptr", "saved_ptr") else "fp32" for name in pointers},
        constexprs=compile_time(shape) | unused,
        options=options(shape),
        tensor_cores=shape.precision != "ieee",
        layer_products=shape.width**2 * shape.launch.block_m if shape.hidden_layers > 1 else 0,
    )


def aot_cases(shape: DenoiserShape) -> list[AotCase]:
    """Forward without and with saving, and the VJP."""
    forward = ("y_ptr", "obs_ptr", "action_ptr", "noise_ptr", "w_ptr", "b_ptr", "coef_ptr", "out_ptr")
    backward = ("dout_ptr", "saved_ptr", "w_ptr", "coef_ptr", "dy_ptr", "dobs_ptr", "daction_ptr")
    return [
        aot_case(reverse_step_fwd_kernel, forward, shape),
        aot_case(reverse_step_fwd_kernel, (*forward, "saved_ptr"), shape),
        aot_case(reverse_step_bwd_kernel, backward, shape),
    ]
