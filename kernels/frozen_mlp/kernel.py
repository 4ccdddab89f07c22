"""Triton kernels of the frozen scalar networks; the second grid axis is the copy of the network."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdwm_kernels.aot_case import AotCase, operand_type
from fastdwm_kernels.dense import Net, activate, dense, load_vector, through_activation, tile_offsets
from fastdwm_kernels.frozen_mlp.reference import NORM_EPS, FrozenMLP
from fastdwm_kernels.launch import Launch, device_capability, mlp_launch, mlp_options, operand_dtype, pad_block, run
from fastdwm_kernels.layout import MLPLayout


@dataclass(frozen=True)
class Rule:
    """Compile-time settings besides the shapes."""

    layer_norm: bool
    reduce: str
    n_copies: int
    precision: str
    norm_eps: float = NORM_EPS


@triton.jit
def standardise(a, D: tl.constexpr, BLOCK_D: tl.constexpr, EPS: tl.constexpr):
    """Columns of a (BLOCK_D, BLOCK_M), normalised to mean 0 and variance 1 over their first D entries; and 1 / std."""
    inside = (tl.arange(0, BLOCK_D) < D)[:, None]
    centred = tl.where(inside, a - tl.sum(a, 0)[None, :] / D, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centred * centred, 0) / D + EPS)
    return centred * rstd[None, :], rstd[None, :]


# Inputs and gradients may be unaligned slices, which one compilation serves.
@triton.jit(do_not_specialize=["n_rows"], do_not_specialize_on_alignment=["x_ptr"])
def frozen_mlp_fwd_kernel(x_ptr, weights_ptr, flat_ptr, h_ptr, a_ptr, values_ptr, n_rows, NET: tl.constexpr,
                          RULE: tl.constexpr, SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
                          BLOCK_K: tl.constexpr):  # fmt: skip
    """Values of BLOCK_M rows by one copy.

    Grid      (cdiv(n_rows, BLOCK_M), Q)
    Reads     x (n_rows, d_in), weights (Q, NET.width) in the operand dtype, flat (Q, NET.width) for all vectors
    Writes    values (Q, n_rows); if SAVE, activations a (Q, n_rows, NET.n_cols): every element once
    Scratch   h (Q, n_rows, NET.n_cols) in the operand dtype, the layers' inputs
    Requires  BLOCK_D >= every hidden width; rows, widths and inputs are masked
    Numerics  fp32 accumulators, activations and statistics
    """
    copy = tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, BLOCK_M)
    start = tl.program_id(0).to(tl.int64) * BLOCK_M
    row_mask = rows < n_rows - start
    N_HIDDEN: tl.constexpr = len(NET.cols)
    C: tl.constexpr = NET.n_cols
    # Triton 3.6 does not accept a dataclass field as a compile-time argument of a call.
    EPS: tl.constexpr = RULE.norm_eps
    x_ptr += start * NET.sizes[0]
    h_ptr += (copy * n_rows + start) * C
    a_ptr += (copy * n_rows + start) * C
    weights_ptr += copy * NET.width
    flat_ptr += copy * NET.width
    for i in tl.static_range(N_HIDDEN):
        D_IN = NET.sizes[i]
        D = NET.sizes[i + 1]
        w_ptr = weights_ptr + NET.w[i]
        if i == 0:
            z = dense(w_ptr, x_ptr, rows, row_mask, D_IN, D_IN, D, D, 1, BLOCK_D, BLOCK_K)
        else:
            in_ptr = h_ptr + NET.cols[i - 1]
            z = dense(w_ptr, in_ptr, rows, row_mask, C, D_IN, D, D, 1, BLOCK_D, BLOCK_K)
        z += load_vector(flat_ptr + NET.b[i], D, BLOCK_D)
        at, mask = tile_offsets(rows, row_mask, C, D, BLOCK_D)
        h = activate(z, NET)
        if SAVE:
            tl.store(a_ptr + NET.cols[i] + at, h, mask=mask)
        if RULE.layer_norm:
            n, rstd = standardise(h, D, BLOCK_D, EPS)
            scale = load_vector(flat_ptr + NET.scale[i], D, BLOCK_D)
            h = n * scale + load_vector(flat_ptr + NET.shift[i], D, BLOCK_D)
        if i < N_HIDDEN - 1:
            tl.store(h_ptr + NET.cols[i] + at, h.to(h_ptr.dtype.element_ty), mask=mask)
            tl.debug_barrier()
    w = load_vector(flat_ptr + NET.w[N_HIDDEN], NET.sizes[N_HIDDEN], BLOCK_D)
    value = tl.sum(h * w, 0) + tl.load(flat_ptr + NET.b[N_HIDDEN])
    tl.store(values_ptr + copy * n_rows + start + rows, value, mask=row_mask)


@triton.jit
def upstream_of_copy(grad_ptr, values_ptr, copy, rows, row_mask, n_rows, RULE: tl.constexpr):
    """Upstream gradient (BLOCK_M,) of one copy's values, and the rows whose input gradient this copy writes."""
    grad = tl.load(grad_ptr + rows, mask=row_mask, other=0.0)
    if RULE.reduce == "min":
        least = tl.load(values_ptr + rows, mask=row_mask, other=0.0)
        smallest = tl.zeros_like(rows)
        N_COPIES: tl.constexpr = RULE.n_copies
        for q in tl.static_range(1, N_COPIES):
            v = tl.load(values_ptr + tl.cast(n_rows, tl.int64) * q + rows, mask=row_mask, other=0.0)
            # NaN counts as the least, as in torch.
            less = (v < least) | ((v != v) & (least == least))
            smallest = tl.where(less, q, smallest)
            least = tl.where(less, v, least)
        return grad, row_mask & (smallest == copy)
    else:
        return grad / RULE.n_copies, row_mask


@triton.jit(do_not_specialize=["n_rows"], do_not_specialize_on_alignment=["grad_ptr"])
def frozen_mlp_bwd_kernel(grad_ptr, values_ptr, weights_ptr, flat_ptr, a_ptr, dz_ptr, dx_ptr, n_rows,
                          NET: tl.constexpr, RULE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
                          BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Input gradient of BLOCK_M rows through one copy.

    Grid      (cdiv(n_rows, BLOCK_M), Q)
    Reads     grad (n_rows,), values (Q, n_rows), a (Q, n_rows, NET.n_cols), weights and flat as in the forward kernel
    Writes    dx (n_rows, d_in), each row by its smallest copy; for "mean" dx (Q, n_rows, d_in), each copy's part
    Scratch   dz (Q, n_rows, NET.n_cols) in the operand dtype
    Requires  BLOCK_D >= every hidden width, BLOCK_S >= d_in; rows, widths and inputs are masked
    Numerics  fp32 accumulators and statistics, which are recomputed from a
    """
    copy = tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, BLOCK_M)
    start = tl.program_id(0).to(tl.int64) * BLOCK_M
    row_mask = rows < n_rows - start
    N_HIDDEN: tl.constexpr = len(NET.cols)
    C: tl.constexpr = NET.n_cols
    EPS: tl.constexpr = RULE.norm_eps
    S: tl.constexpr = NET.sizes[0]
    a_ptr += (copy * n_rows + start) * C
    dz_ptr += (copy * n_rows + start) * C
    weights_ptr += copy * NET.width
    flat_ptr += copy * NET.width
    upstream, mine = upstream_of_copy(grad_ptr + start, values_ptr + start, copy, rows, row_mask, n_rows, RULE)
    dh = load_vector(flat_ptr + NET.w[N_HIDDEN], NET.sizes[N_HIDDEN], BLOCK_D) * upstream[None, :]
    for i in tl.static_range(N_HIDDEN - 1, -1, -1):
        D = NET.sizes[i + 1]
        at, mask = tile_offsets(rows, row_mask, C, D, BLOCK_D)
        a = tl.load(a_ptr + NET.cols[i] + at, mask=mask, other=0.0)
        if RULE.layer_norm:
            n, rstd = standardise(a, D, BLOCK_D, EPS)
            q = dh * load_vector(flat_ptr + NET.scale[i], D, BLOCK_D)
            dh = rstd * (q - tl.sum(q, 0)[None, :] / D - n * (tl.sum(q * n, 0)[None, :] / D))
        dz = through_activation(dh, a, NET)
        tl.store(dz_ptr + NET.cols[i] + at, dz.to(dz_ptr.dtype.element_ty), mask=mask)
        tl.debug_barrier()
        w_ptr = weights_ptr + NET.w[i]
        dz_i_ptr = dz_ptr + NET.cols[i]
        if i > 0:
            dh = dense(w_ptr, dz_i_ptr, rows, row_mask, C, D, NET.sizes[i], 1, D, BLOCK_D, BLOCK_K)
        else:
            dx = dense(w_ptr, dz_i_ptr, rows, row_mask, C, D, S, 1, D, BLOCK_S, BLOCK_K)
    if RULE.reduce == "mean":
        dx_ptr += copy * n_rows * S
    at, mask = tile_offsets(rows, mine, S, S, BLOCK_S)
    tl.store(dx_ptr + start * S + at, dx, mask=mask)


def sizes(layout: MLPLayout, rule: Rule, launch: Launch, kernel, save: bool = False) -> dict:
    """Compile-time arguments of the forward or backward kernel."""
    width = pad_block(max(layout.sizes[1:-1]))
    values = dict(
        NET=Net.of(layout),
        RULE=rule,
        SAVE=save,
        BLOCK_M=launch.block_m,
        BLOCK_D=width,
        BLOCK_S=pad_block(layout.sizes[0]),
        BLOCK_K=launch.tile // width,
    )
    return {name: value for name, value in values.items() if name in kernel.arg_names}


def rule_of(mlp: FrozenMLP) -> Rule:
    return Rule(mlp.layout.layer_norm, mlp.reduce, len(mlp.copies), mlp.precision)


def launch_for(layout: MLPLayout, precision: str, capability: int) -> Launch:
    return mlp_launch(max(layout.sizes[1:-1]), precision, capability)


def frozen_mlp_fwd(mlp: FrozenMLP, x: Tensor, save: bool) -> tuple[Tensor, Tensor | None]:
    """Every copy's value (Q, N) of x (N, d_in) and, if `save`, the activations (Q, N, widths); one launch."""
    n_rows, n_copies, n_cols = len(x), len(mlp.copies), sum(mlp.layout.sizes[1:-1])
    values = x.new_empty(n_copies, n_rows)
    h = x.new_empty(n_copies, n_rows, n_cols, dtype=operand_dtype(mlp.precision))
    a = x.new_empty(n_copies, n_rows, n_cols) if save else None
    launch = launch_for(mlp.layout, mlp.precision, device_capability(x.device))
    run(
        frozen_mlp_fwd_kernel, (*launch.grid(n_rows), n_copies),
        x, mlp.weights, mlp.flat, h, values if a is None else a, values, n_rows,
        **sizes(mlp.layout, rule_of(mlp), launch, frozen_mlp_fwd_kernel, save),
        **mlp_options(launch),
    )  # fmt: skip
    return values, a


def frozen_mlp_bwd(mlp: FrozenMLP, values: Tensor, a: Tensor, grad: Tensor) -> Tensor:
    """Input gradient (N, d_in) from that of the reduced value, grad (N,); one launch, and a sum for "mean"."""
    n_copies, n_rows = values.shape
    parts = n_copies if mlp.reduce == "mean" else 1
    dx = grad.new_empty(parts, n_rows, mlp.layout.sizes[0])
    dz = torch.empty_like(a, dtype=operand_dtype(mlp.precision))
    launch = launch_for(mlp.layout, mlp.precision, device_capability(grad.device))
    run(
        frozen_mlp_bwd_kernel, (*launch.grid(n_rows), n_copies),
        grad, values, mlp.weights, mlp.flat, a, dz, dx, n_rows,
        **sizes(mlp.layout, rule_of(mlp), launch, frozen_mlp_bwd_kernel),
        **mlp_options(launch),
    )  # fmt: skip
    return dx[0] if parts == 1 else dx.sum(0)


def aot_cases(layout: MLPLayout, rule: Rule, capability: int) -> list[AotCase]:
    """Forward without and with saving, and backward, for a network of this layout."""
    launch = launch_for(layout, rule.precision, capability)
    operand = operand_type(rule.precision)
    name = f"{rule.precision} {layout.title} x{rule.n_copies}"
    name += " norm" if rule.layer_norm else ""
    variants = ((frozen_mlp_fwd_kernel, False), (frozen_mlp_fwd_kernel, True), (frozen_mlp_bwd_kernel, False))
    return [
        AotCase(
            name=f"{kernel.__name__} {name}" + (" save" if save else ""),
            kernel=kernel,
            pointers={
                p: operand if p in ("weights_ptr", "h_ptr", "dz_ptr") else "fp32"
                for p in kernel.arg_names
                if p.endswith("_ptr")
            },
            constexprs=sizes(layout, rule, launch, kernel, save),
            options=mlp_options(launch),
            tensor_cores=rule.precision != "ieee",
        )
        for kernel, save in variants
    ]
