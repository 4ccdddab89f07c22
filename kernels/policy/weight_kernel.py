"""Triton kernels of the policies' weight gradients: one product over the rows of all steps of a rollout."""

from itertools import accumulate, pairwise

import triton
import triton.language as tl
from torch import Tensor

from fastdwm_kernels.aot_case import AotCase, operand_type
from fastdwm_kernels.dense import Net, dot
from fastdwm_kernels.launch import Launch, cdiv, mlp_options, outer_launch, row_parts, run
from fastdwm_kernels.layout import MLPLayout
from fastdwm_kernels.policy.kernel import episode_rows

SUM_BLOCK, SUM_WARPS = 1024, 4
"""parameters, and warps, of a program of `policy_sum_kernel`"""


@triton.jit
def outer_tile(h_ptr, dz_ptr, dw_ptr, db_ptr, tile, n_rows, H_STRIDE: tl.constexpr, DZ_STRIDE: tl.constexpr,
               D_IN: tl.constexpr, D_OUT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Write one (BLOCK, BLOCK) tile of h^T dz and, if it is in the first row of tiles, the column sums of dz.

    Returns the sum of the squares of the written elements.
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
        acc = dot(h.to(dz.dtype), dz, acc)
        total += tl.sum(dz.to(tl.float32), 0)
    tl.store(dw_ptr + i[:, None] * D_OUT + j[None, :], acc, mask=(i < D_IN)[:, None] & (j < D_OUT)[None, :])
    first_row = tile < N_J
    tl.store(db_ptr + j, total, mask=(j < D_OUT) & first_row)
    return tl.sum(acc * acc) + tl.where(first_row, tl.sum(total * total), 0.0)


@triton.jit(do_not_specialize=["n_rows", "part_rows", "episode_rows"])
def policy_weight_bwd_kernel(x_ptr, hidden_ptr, dz_ptr, dz_out_ptr, dflat_ptr, partial_sq_norms_ptr, n_rows, part_rows,
                             episode_rows, NET: tl.constexpr, FIRST_TILE: tl.constexpr, BLOCK: tl.constexpr,
                             BLOCK_K: tl.constexpr):  # fmt: skip
    """Parameter gradients from part_rows rows; a program computes (BLOCK, BLOCK) weights of one layer and episode.

    Grid      (FIRST_TILE[-1], B, parts of the rows); layer i owns tiles FIRST_TILE[i] to FIRST_TILE[i + 1]
    Reads     x (B, n_rows, S), hidden and dz (B, n_rows, NET.n_cols), dz_out (B, n_rows, A)
    Writes    dflat (parts, B, NET.width): every element once, the padding as zero;
              partial_sq_norms (B, FIRST_TILE[-1]), one for each tile; None if there are several parts
    Numerics  fp32 accumulators; rows are summed in blocks of BLOCK_K in one fixed order
    """
    tile = tl.program_id(0)
    start = tl.program_id(2) * part_rows
    n_rows = tl.minimum(n_rows - start, part_rows)
    first_row = tl.program_id(1).to(tl.int64) * episode_rows + start
    N_HIDDEN: tl.constexpr = len(NET.cols)
    S: tl.constexpr = NET.sizes[0]
    A: tl.constexpr = NET.sizes[N_HIDDEN + 1]
    C: tl.constexpr = NET.n_cols
    x_ptr += first_row * S
    hidden_ptr += first_row * C
    dz_ptr += first_row * C
    dz_out_ptr += first_row * A
    dflat_ptr += (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * NET.width
    square = tl.full((), 0.0, tl.float32)
    if tile < FIRST_TILE[1]:
        dw_ptr = dflat_ptr + NET.w[0]
        db_ptr = dflat_ptr + NET.b[0]
        square = outer_tile(
            x_ptr, dz_ptr, dw_ptr, db_ptr, tile, n_rows, S, C, S, NET.sizes[1], BLOCK, BLOCK_K
        )  # fmt: skip
    for i in tl.static_range(1, N_HIDDEN):
        if (tile >= FIRST_TILE[i]) & (tile < FIRST_TILE[i + 1]):
            square = outer_tile(
                hidden_ptr + NET.cols[i - 1], dz_ptr + NET.cols[i], dflat_ptr + NET.w[i], dflat_ptr + NET.b[i],
                tile - FIRST_TILE[i], n_rows, C, C, NET.sizes[i], NET.sizes[i + 1], BLOCK, BLOCK_K,
            )  # fmt: skip
    if tile >= FIRST_TILE[N_HIDDEN]:
        h_ptr = hidden_ptr + NET.cols[N_HIDDEN - 1]
        dw_ptr = dflat_ptr + NET.w[N_HIDDEN]
        db_ptr = dflat_ptr + NET.b[N_HIDDEN]
        last_tile = tile - FIRST_TILE[N_HIDDEN]
        D_LAST: tl.constexpr = NET.sizes[N_HIDDEN]
        square = outer_tile(
            h_ptr, dz_out_ptr, dw_ptr, db_ptr, last_tile, n_rows, C, A, D_LAST, A, BLOCK, BLOCK_K
        )  # fmt: skip
    if partial_sq_norms_ptr is not None:
        tl.store(partial_sq_norms_ptr + tl.program_id(1) * FIRST_TILE[N_HIDDEN + 1] + tile, square)
    padding = NET.n_params + tl.arange(0, 16)
    tl.store(dflat_ptr + padding, tl.zeros((16,), tl.float32), mask=(padding < NET.width) & (tile == 0))


@triton.jit(do_not_specialize=["n_parts", "width"])
def policy_sum_kernel(parts_ptr, dflat_ptr, partial_sq_norms_ptr, n_parts, width, BLOCK: tl.constexpr):
    """Add up BLOCK parameter gradients of one episode over the parts of its rows, in order.

    Grid      (cdiv(width, BLOCK), B)
    Reads     parts (n_parts, B, width)
    Writes    dflat (B, width); partial_sq_norms (B, cdiv(width, BLOCK)), one for each block
    """
    episode = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at, inside = episode * width + column, column < width
    size = tl.num_programs(1).to(tl.int64) * width
    total = tl.load(parts_ptr + at, mask=inside, other=0.0)
    for part in range(1, n_parts):
        total += tl.load(parts_ptr + part * size + at, mask=inside, other=0.0)
    tl.store(dflat_ptr + at, total, mask=inside)
    tl.store(partial_sq_norms_ptr + episode * tl.num_programs(0) + tl.program_id(0), tl.sum(total * total))


def outer_sizes(layout: MLPLayout, launch: Launch) -> dict:
    """Compile-time arguments of the weight kernel, whose tiles are numbered through all layers."""
    block = launch.block_m
    tiles = [cdiv(d_in, block) * cdiv(d_out, block) for d_in, d_out in pairwise(layout.sizes)]
    first = (0, *accumulate(tiles))
    return dict(NET=Net.of(layout), FIRST_TILE=first, BLOCK=block, BLOCK_K=launch.tile // block)


def policy_weight_bwd(
    layout: MLPLayout, x: Tensor, hidden: Tensor, dz: Tensor, dz_out: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    """Parameter gradients (B, layout.width) over all R rows of x (B, R, S), hidden, dz, dz_out, and parts (B, any) of
    their squared norms. One launch, or two if `row_parts` splits the rows."""
    copies, n_rows, _ = x.shape
    launch = outer_launch(precision)
    constants = outer_sizes(layout, launch)
    n_tiles = constants["FIRST_TILE"][-1]
    n_parts = row_parts(n_rows, n_tiles)
    part_rows = cdiv(n_rows, n_parts * constants["BLOCK_K"]) * constants["BLOCK_K"]
    parts = x.new_empty(n_parts, copies, layout.width)
    partial_sq_norms = x.new_empty(copies, n_tiles) if n_parts == 1 else None
    run(
        policy_weight_bwd_kernel, (n_tiles, copies, n_parts),
        x, hidden, dz, dz_out, parts, partial_sq_norms, n_rows, part_rows, episode_rows(x),
        **constants, **mlp_options(launch),
    )  # fmt: skip
    return (parts[0], partial_sq_norms) if n_parts == 1 else sum_of_parts(parts)


def sum_of_parts(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Sum (B, width) of parts (parts, B, width), and parts (B, any) of its rows' squared norms; one launch."""
    n_parts, copies, width = parts.shape
    n_blocks = cdiv(width, SUM_BLOCK)
    dflat, partial_sq_norms = parts.new_empty(copies, width), parts.new_empty(copies, n_blocks)
    run(
        policy_sum_kernel, (n_blocks, copies),
        parts, dflat, partial_sq_norms, n_parts, width, BLOCK=SUM_BLOCK, num_warps=SUM_WARPS,
    )  # fmt: skip
    return dflat, partial_sq_norms


def aot_cases(layout: MLPLayout, precision: str) -> list[AotCase]:
    """The weight kernel for all rows in one part, and for one of several parts."""
    launch, names = outer_launch(precision), [p for p in policy_weight_bwd_kernel.arg_names if p.endswith("_ptr")]
    operand = operand_type(precision)
    operands = ("hidden_ptr", "dz_ptr", "dz_out_ptr")
    return [
        AotCase(
            name=f"policy_weight_bwd_kernel {precision} {layout.title}{part}",
            kernel=policy_weight_bwd_kernel,
            pointers={p: operand if p in operands else "fp32" for p in names if p not in unused},
            constexprs=outer_sizes(layout, launch) | dict.fromkeys(unused),
            options=mlp_options(launch),
            tensor_cores=precision != "ieee",
        )
        for part, unused in (("", ()), (" part", ("partial_sq_norms_ptr",)))
    ]


def sum_case() -> AotCase:
    """The sum over the parts of the rows, which depends on no layout."""
    return AotCase(
        name="policy_sum_kernel",
        kernel=policy_sum_kernel,
        pointers={p: "fp32" for p in policy_sum_kernel.arg_names if p.endswith("_ptr")},
        constexprs={"BLOCK": SUM_BLOCK},
        options={"num_warps": SUM_WARPS},
        tensor_cores=False,
    )
