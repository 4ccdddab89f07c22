"""Triton kernels of the per-episode policies; the second grid axis is the episode.

Particle buffers are (B, n_rows, ...) views with episode_rows >= n_rows rows from one episode to the next, so that one
step of a rollout works on its slice of (B, H M, ...).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdwm_kernels.aot_case import AotCase, operand_type
from fastdwm_kernels.dense import Net, through_limit, tile_offsets
from fastdwm_kernels.launch import (
    Launch,
    cdiv,
    device_capability,
    mlp_launch,
    mlp_options,
    operand_dtype,
    pad_block,
    run,
)
from fastdwm_kernels.layout import MLPLayout
from fastdwm_kernels.policy.layers import backward_layers, forward_layers, input_gradient


@triton.jit(do_not_specialize=["n_rows", "episode_rows"])
def policy_fwd_kernel(x_ptr, weights_ptr, flat_ptr, hidden_ptr, action_ptr, n_rows, episode_rows,
                      NET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_A: tl.constexpr,
                      BLOCK_K: tl.constexpr):  # fmt: skip
    """BLOCK_M particles of one episode through all layers.

    Grid      (cdiv(n_rows, BLOCK_M), B)
    Reads     x (B, n_rows, S), weights (B, NET.width) in the operand dtype, flat (B, NET.width) for the biases
    Writes    hidden (B, n_rows, NET.n_cols) in the operand dtype, action (B, n_rows, A): every element once
    Requires  BLOCK_D >= every hidden width; rows, widths and inputs are masked
    Numerics  fp32 accumulators and activations
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
    action = forward_layers(x_ptr, *params, hidden_ptr, rows, row_mask, NET, BLOCK_D, BLOCK_A, BLOCK_K)
    at, mask = tile_offsets(rows, row_mask, A, A, BLOCK_A)
    tl.store(action_ptr + first_row * A + at, action, mask=mask)


@triton.jit(do_not_specialize=["n_rows", "episode_rows"])
def policy_bwd_kernel(grad_ptr, action_ptr, weights_ptr, hidden_ptr, dz_ptr, dz_out_ptr, dx_ptr, n_rows,
                      episode_rows, NET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
                      BLOCK_A: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Layer gradients and input gradient of BLOCK_M particles of one episode.

    Grid      (cdiv(n_rows, BLOCK_M), B)
    Reads     grad (B, n_rows, A) contiguous, action, hidden (B, n_rows, NET.n_cols), weights (B, NET.width) in
              the operand dtype
    Writes    dz like hidden, dz_out like action but in the operand dtype, dx (B, n_rows, S) contiguous: every
              element once
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
    tl.store(dz_out_ptr + at, through_limit(grad, action, NET).to(dz_ptr.dtype.element_ty), mask=mask)
    tl.debug_barrier()
    backward_layers(dz_out_ptr, weights_ptr, hidden_ptr, dz_ptr, rows, row_mask, NET, BLOCK_D, BLOCK_K)
    dx = input_gradient(dz_ptr, weights_ptr, rows, row_mask, NET, BLOCK_S, BLOCK_K)
    at, mask = tile_offsets(rows, row_mask, S, S, BLOCK_S)
    tl.store(dx_ptr + dense_row * S + at, dx, mask=mask)


def sizes(layout: MLPLayout, launch: Launch, kernel) -> dict:
    """Compile-time arguments of the forward or backward kernel."""
    width = pad_block(max(layout.sizes[1:-1]))
    values = dict(
        NET=Net.of(layout),
        BLOCK_M=launch.block_m,
        BLOCK_D=width,
        BLOCK_A=pad_block(layout.sizes[-1]),
        BLOCK_S=pad_block(layout.sizes[0]),
        BLOCK_K=launch.tile // width,
    )
    return {name: value for name, value in values.items() if name in kernel.arg_names}


def policy_launch(layout: MLPLayout, precision: str, device: torch.device) -> Launch:
    """Launch sizes of the forward and backward kernels."""
    return mlp_launch(max(layout.sizes[1:-1]), precision, device_capability(device))


def episode_rows(buffer: Tensor) -> int:
    """The number R of rows per episode, of a view (B, M, D) of (B, R, D)."""
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
        **sizes(layout, launch, policy_fwd_kernel), **mlp_options(launch),
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
        **sizes(layout, launch, policy_bwd_kernel), **mlp_options(launch),
    )  # fmt: skip
    return dx, dz, dz_out


def aot_cases(layout: MLPLayout, precision: str, capability: int) -> list[AotCase]:
    """Forward and backward kernel for a policy of this layout."""
    launch = mlp_launch(max(layout.sizes[1:-1]), precision, capability)
    operand = operand_type(precision)
    operands = ("weights_ptr", "hidden_ptr", "dz_ptr", "dz_out_ptr")
    return [
        AotCase(
            name=f"{kernel.__name__} {precision} {layout.title}",
            kernel=kernel,
            pointers={p: operand if p in operands else "fp32" for p in kernel.arg_names if p.endswith("_ptr")},
            constexprs=sizes(layout, launch, kernel),
            options=mlp_options(launch),
            tensor_cores=precision != "ieee",
        )
        for kernel in (policy_fwd_kernel, policy_bwd_kernel)
    ]
