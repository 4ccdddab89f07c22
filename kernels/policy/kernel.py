"""Triton kernels of the per-episode policies. A tile of particles never straddles two episodes.

Every kernel takes the episode from the second grid axis. Particle buffers are (B, n_rows, ...) views with
episode_rows >= n_rows rows between episodes, so that one step of a rollout works on its slice of (B, H M, ...).
"""

from itertools import accumulate, pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdwm.kernels.aot import AotCase
from fastdwm.kernels.dense import Net, dot, tile_offsets
from fastdwm.kernels.launch import (
    Launch,
    cdiv,
    device_capability,
    mlp_launch,
    mlp_options,
    operand_dtype,
    outer_launch,
    pad_block,
    run,
)
from fastdwm.kernels.layout import MLPLayout
from fastdwm.kernels.policy.layers import backward_layers, forward_layers, input_gradient


@triton.jit(do_not_specialize=["n_rows", "episode_rows"])
def policy_fwd_kernel(x_ptr, weights_ptr, flat_ptr, hidden_ptr, action_ptr, n_rows, episode_rows,
                      NET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_A: tl.constexpr,
                      BLOCK_K: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """BLOCK_M particles of one episode through all layers.

    Grid      (cdiv(n_rows, BLOCK_M), B)
    Reads     x (B, n_rows, S), weights (B, NET.width) in the operand dtype, flat (B, NET.width) for the biases
    Writes    hidden (B, n_rows, NET.n_cols) in the operand dtype, action (B, n_rows, A): every element once
    Requires  BLOCK_D >= every hidden width; rows, widths and inputs are masked
    Numerics  fp32 accumulators, activations and tanh
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK_M
    first_row = tl.program_id(1).to(tl.int64) * episode_rows + start
    rows = tl.arange(0, BLOCK_M)
    row_mask = rows < n_rows - start
    N_HIDDEN: tl.constexpr = len(NET.cols)
    S: tl.constexpr = NET.sizes[0]
    A: tl.constexpr = NET.sizes[N_HIDDEN + 1]
    C: tl.constexpr = NET.n_cols
    weights_ptr += tl.program_id(1).to(tl.int64) * NET.width
    flat_ptr += tl.program_id(1).to(tl.int64) * NET.width
    x_ptr += first_row * S
    hidden_ptr += first_row * C
    params = (weights_ptr, flat_ptr)
    action = forward_layers(x_ptr, *params, hidden_ptr, rows, row_mask, NET, BLOCK_D, BLOCK_A, BLOCK_K, PRECISION)
    at, mask = tile_offsets(rows, row_mask, A, A, BLOCK_A)
    tl.store(action_ptr + first_row * A + at, action, mask=mask)


@triton.jit(do_not_specialize=["n_rows", "episode_rows"])
def policy_bwd_kernel(grad_ptr, action_ptr, weights_ptr, hidden_ptr, dz_ptr, dz_out_ptr, dx_ptr, n_rows,
                      episode_rows, NET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
                      BLOCK_A: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
                      PRECISION: tl.constexpr):  # fmt: skip
    """Layer gradients and input gradient of BLOCK_M particles of one episode.

    Grid      (cdiv(n_rows, BLOCK_M), B)
    Reads     grad (B, n_rows, A) contiguous, action, hidden (B, n_rows, NET.n_cols), weights (B, NET.width) in
              the operand dtype
    Writes    dz like hidden, dz_out like action but in the operand dtype, dx (B, n_rows, S) contiguous: all once
    Requires  BLOCK_D >= every hidden width, BLOCK_S >= S; rows, widths and inputs are masked
    Numerics  fp32 accumulators; the layer gradients are rounded once, on store
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK_M
    first_row = tl.program_id(1).to(tl.int64) * episode_rows + start
    rows = tl.arange(0, BLOCK_M)
    row_mask = rows < n_rows - start
    N_HIDDEN: tl.constexpr = len(NET.cols)
    S: tl.constexpr = NET.sizes[0]
    A: tl.constexpr = NET.sizes[N_HIDDEN + 1]
    C: tl.constexpr = NET.n_cols
    weights_ptr += tl.program_id(1).to(tl.int64) * NET.width
    hidden_ptr += first_row * C
    dz_ptr += first_row * C
    dz_out_ptr += first_row * A
    dense_row = tl.program_id(1).to(tl.int64) * n_rows + start
    at, mask = tile_offsets(rows, row_mask, A, A, BLOCK_A)
    grad = tl.load(grad_ptr + dense_row * A + at, mask=mask, other=0.0)
    action = tl.load(action_ptr + first_row * A + at, mask=mask, other=0.0)
    tl.store(dz_out_ptr + at, (grad * (1 - action * action)).to(dz_ptr.dtype.element_ty), mask=mask)
    tl.debug_barrier()
    backward_layers(dz_out_ptr, weights_ptr, hidden_ptr, dz_ptr, rows, row_mask, NET, BLOCK_D, BLOCK_K, PRECISION)
    dx = input_gradient(dz_ptr, weights_ptr, rows, row_mask, NET, BLOCK_S, BLOCK_K, PRECISION)
    at, mask = tile_offsets(rows, row_mask, S, S, BLOCK_S)
    tl.store(dx_ptr + dense_row * S + at, dx, mask=mask)


@triton.jit
def outer_tile(h_ptr, dz_ptr, dw_ptr, db_ptr, tile, n_rows, H_STRIDE: tl.constexpr, DZ_STRIDE: tl.constexpr,
               D_IN: tl.constexpr, D_OUT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
               PRECISION: tl.constexpr):  # fmt: skip
    """One (BLOCK, BLOCK) tile of h^T dz, and the column sums of dz for the tiles of the first row.

    Returns the sum of the squares of what it wrote.
    """
    N_J: tl.constexpr = (D_OUT + BLOCK - 1) // BLOCK
    i = tile // N_J * BLOCK + tl.arange(0, BLOCK)
    j = tile % N_J * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(0, n_rows, BLOCK_K):
        start = tl.cast(k, tl.int64)
        rows = tl.arange(0, BLOCK_K)
        row_mask = rows < n_rows - k
        h_mask = (i < D_IN)[:, None] & row_mask[None, :]
        h = tl.load(h_ptr + start * H_STRIDE + i[:, None] + rows[None, :] * H_STRIDE, mask=h_mask, other=0.0)
        dz_mask = row_mask[:, None] & (j < D_OUT)[None, :]
        dz = tl.load(dz_ptr + start * DZ_STRIDE + rows[:, None] * DZ_STRIDE + j[None, :], mask=dz_mask, other=0.0)
        acc = dot(h, dz, acc, PRECISION)
        total += tl.sum(dz.to(tl.float32), 0)
    tl.store(dw_ptr + i[:, None] * D_OUT + j[None, :], acc, mask=(i < D_IN)[:, None] & (j < D_OUT)[None, :])
    first_row = tile < N_J
    tl.store(db_ptr + j, total, mask=(j < D_OUT) & first_row)
    return tl.sum(acc * acc) + tl.where(first_row, tl.sum(total * total), 0.0)


@triton.jit(do_not_specialize=["n_rows", "episode_rows"])
def policy_weight_bwd_kernel(x_ptr, hidden_ptr, dz_ptr, dz_out_ptr, dflat_ptr, squares_ptr, n_rows, episode_rows,
                             NET: tl.constexpr, FIRST_TILE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
                             PRECISION: tl.constexpr):  # fmt: skip
    """Parameter gradients from stored rows, (BLOCK, BLOCK) weights of one layer and one episode per program.

    Grid      (FIRST_TILE[-1], B); layer i owns tiles FIRST_TILE[i] to FIRST_TILE[i + 1]
    Reads     x (B, n_rows, S), hidden and dz (B, n_rows, NET.n_cols), dz_out (B, n_rows, A)
    Writes    dflat (B, NET.width): every element once, the padding as zero; squares (B, FIRST_TILE[-1]), of each tile
    Numerics  fp32 accumulators; rows are summed in blocks of BLOCK_K in one fixed order
    """
    tile = tl.program_id(0)
    first_row = tl.program_id(1).to(tl.int64) * episode_rows
    N_HIDDEN: tl.constexpr = len(NET.cols)
    S: tl.constexpr = NET.sizes[0]
    A: tl.constexpr = NET.sizes[N_HIDDEN + 1]
    C: tl.constexpr = NET.n_cols
    x_ptr += first_row * S
    hidden_ptr += first_row * C
    dz_ptr += first_row * C
    dz_out_ptr += first_row * A
    dflat_ptr += tl.program_id(1).to(tl.int64) * NET.width
    square = tl.full((), 0.0, tl.float32)
    if tile < FIRST_TILE[1]:
        dw_ptr = dflat_ptr + NET.w[0]
        db_ptr = dflat_ptr + NET.b[0]
        square = outer_tile(
            x_ptr, dz_ptr, dw_ptr, db_ptr, tile, n_rows, S, C, S, NET.sizes[1], BLOCK, BLOCK_K, PRECISION
        )  # fmt: skip
    for i in tl.static_range(1, N_HIDDEN):
        if (tile >= FIRST_TILE[i]) & (tile < FIRST_TILE[i + 1]):
            square = outer_tile(
                hidden_ptr + NET.cols[i - 1], dz_ptr + NET.cols[i], dflat_ptr + NET.w[i], dflat_ptr + NET.b[i],
                tile - FIRST_TILE[i], n_rows, C, C, NET.sizes[i], NET.sizes[i + 1], BLOCK, BLOCK_K, PRECISION,
            )  # fmt: skip
    if tile >= FIRST_TILE[N_HIDDEN]:
        h_ptr = hidden_ptr + NET.cols[N_HIDDEN - 1]
        dw_ptr = dflat_ptr + NET.w[N_HIDDEN]
        db_ptr = dflat_ptr + NET.b[N_HIDDEN]
        last_tile = tile - FIRST_TILE[N_HIDDEN]
        D_LAST: tl.constexpr = NET.sizes[N_HIDDEN]
        square = outer_tile(
            h_ptr, dz_out_ptr, dw_ptr, db_ptr, last_tile, n_rows, C, A, D_LAST, A, BLOCK, BLOCK_K, PRECISION
        )  # fmt: skip
    tl.store(squares_ptr + tl.program_id(1) * FIRST_TILE[N_HIDDEN + 1] + tile, square)
    padding = NET.n_params + tl.arange(0, 16)
    tl.store(dflat_ptr + padding, tl.zeros((16,), tl.float32), mask=(padding < NET.width) & (tile == 0))


def sizes(layout: MLPLayout, precision: str, launch: Launch, kernel) -> dict:
    """Compile-time arguments of the forward or backward kernel."""
    width = pad_block(max(layout.sizes[1:-1]))
    values = dict(
        NET=Net.of(layout),
        BLOCK_M=launch.block_m,
        BLOCK_D=width,
        BLOCK_A=pad_block(layout.sizes[-1]),
        BLOCK_S=pad_block(layout.sizes[0]),
        BLOCK_K=launch.tile // width,
        PRECISION=precision,
    )
    return {name: value for name, value in values.items() if name in kernel.arg_names}


def policy_launch(layout: MLPLayout, precision: str, device: torch.device) -> Launch:
    """Sizes of the forward and backward kernels."""
    return mlp_launch(max(layout.sizes[1:-1]), precision, device_capability(device))


def outer_sizes(layout: MLPLayout, precision: str, launch: Launch) -> dict:
    """Compile-time arguments of the weight kernel: square tiles, numbered through all layers."""
    block = launch.block_m
    tiles = [cdiv(d_in, block) * cdiv(d_out, block) for d_in, d_out in pairwise(layout.sizes)]
    first = (0, *accumulate(tiles))
    return dict(NET=Net.of(layout), FIRST_TILE=first, BLOCK=block, BLOCK_K=launch.tile // block, PRECISION=precision)


def episode_rows(buffer: Tensor) -> int:
    """Rows from one episode to the next in a view (B, M, D) of (B, R, D)."""
    return buffer.stride(0) // buffer.shape[2]


def policy_fwd(layout: MLPLayout, weights: Tensor, flat: Tensor, x: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Actions (B, M, A) and hidden activations (B, M, sum of widths), newly allocated; one launch.

    weights: `flat` in the operand dtype.
    """
    copies, n_rows, _ = x.shape
    action = x.new_empty(copies, n_rows, layout.sizes[-1])
    hidden = x.new_empty(copies, n_rows, sum(layout.sizes[1:-1]), dtype=operand_dtype(precision))
    launch = policy_launch(layout, precision, x.device)
    run(
        policy_fwd_kernel, (cdiv(n_rows, launch.block_m), copies),
        x, weights, flat, hidden, action, n_rows, episode_rows(x),
        **sizes(layout, precision, launch, policy_fwd_kernel), **mlp_options(launch),
    )  # fmt: skip
    return action, hidden


def policy_bwd(
    layout: MLPLayout, weights: Tensor, hidden: Tensor, action: Tensor, grad: Tensor, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Input gradient (B, M, S), layer gradients like hidden, and those of the last layer (B, M, A); one launch."""
    dz, dz_out = torch.empty_like(hidden), torch.empty_like(action, dtype=hidden.dtype)
    copies, n_rows, _ = grad.shape
    dx = grad.new_empty(copies, n_rows, layout.sizes[0])
    launch = policy_launch(layout, precision, grad.device)
    run(
        policy_bwd_kernel, (cdiv(n_rows, launch.block_m), copies),
        grad, action, weights, hidden, dz, dz_out, dx, n_rows, episode_rows(hidden),
        **sizes(layout, precision, launch, policy_bwd_kernel), **mlp_options(launch),
    )  # fmt: skip
    return dx, dz, dz_out


def policy_weight_bwd(
    layout: MLPLayout, x: Tensor, hidden: Tensor, dz: Tensor, dz_out: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    """Parameter gradients (B, layout.width) over all R rows of x (B, R, S), hidden, dz, dz_out; and parts (B, tiles)
    of their squared norms, to be summed. One launch."""
    copies, n_rows, _ = x.shape
    dflat = x.new_empty(copies, layout.width)
    launch = outer_launch(precision)
    constants = outer_sizes(layout, precision, launch)
    n_tiles = constants["FIRST_TILE"][-1]
    squares = x.new_empty(copies, n_tiles)
    run(
        policy_weight_bwd_kernel, (n_tiles, copies),
        x, hidden, dz, dz_out, dflat, squares, n_rows, episode_rows(x), **constants, **mlp_options(launch),
    )  # fmt: skip
    return dflat, squares


def aot_cases(layout: MLPLayout, precision: str, capability: int) -> list[AotCase]:
    """The three kernels for a policy of this layout."""
    launch = mlp_launch(max(layout.sizes[1:-1]), precision, capability)
    outer = outer_launch(precision)
    operand = "bf16" if precision == "bf16" else "fp32"
    operands = ("weights_ptr", "hidden_ptr", "dz_ptr", "dz_out_ptr")
    name = "-".join(map(str, layout.sizes))
    return [
        AotCase(
            name=f"{kernel.__name__} {precision} {name}",
            kernel=kernel,
            pointers={p: operand if p in operands else "fp32" for p in kernel.arg_names if p.endswith("_ptr")},
            constexprs=constants,
            options=mlp_options(case_launch),
            tensor_cores=precision != "ieee",
        )
        for kernel, constants, case_launch in (
            (policy_fwd_kernel, sizes(layout, precision, launch, policy_fwd_kernel), launch),
            (policy_bwd_kernel, sizes(layout, precision, launch, policy_bwd_kernel), launch),
            (policy_weight_bwd_kernel, outer_sizes(layout, precision, outer), outer),
        )
    ]
