"""Triton kernels of one imagined step without its sampler: one launch forward, one backward.

The sampler maps a normalised observation and an action to a normalised change of the state. One forward launch computes
all between two calls of it: the new state, its normalisation, the policy's action, and the inputs of reward or critics.
The backward launch runs the policy's backward pass, adds up the gradient of the state, and writes the upstream gradient
of the preceding sampler.
"""

import triton
import triton.language as tl

from fastdwm_kernels.aot_case import AotCase, operand_type
from fastdwm_kernels.dense import load_vector, through_limit, tile_offsets
from fastdwm_kernels.launch import mlp_launch, mlp_options
from fastdwm_kernels.layout import MLPLayout
from fastdwm_kernels.policy.kernel import sizes
from fastdwm_kernels.policy.layers import backward_layers, forward_layers, input_gradient

# Rows of a few floats are accessed one by one, so these pointers need no alignment: they may be slices of a buffer.
ROWS_FWD = ("before_ptr", "y_ptr", "x_ptr", "action_ptr", "norm_obs_ptr", "input_ptr")
ROWS_BWD = (
    "direct_ptr", "extra_ptr", "lam_ptr", "dobs_ptr", "daction_ptr", "action_ptr", "dz_out_ptr", "action_grads_ptr",
    "after_ptr", "dy_ptr",
)  # fmt: skip


@triton.jit(do_not_specialize=["n_rows", "episode_rows"], do_not_specialize_on_alignment=ROWS_FWD)
def step_fwd_kernel(before_ptr, y_ptr, scales_ptr, weights_ptr, flat_ptr, x_ptr, hidden_ptr, action_ptr, norm_obs_ptr,
                    input_ptr, n_rows, episode_rows, NET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
                    BLOCK_A: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """The state of BLOCK_M particles of one episode after a sampler call, and the policy's action in it.

    Grid      (cdiv(n_rows, BLOCK_M), B)
    Reads     y (B n_rows, S), the sampler's result, and before (B, n_rows, S), the preceding states in the tape; or, if
              y is None, before (B, S), the first states
              scales (4, S), weights (B, NET.width) in the operand dtype, flat (B, NET.width) for the biases
    Writes    x (B, n_rows, S) and hidden (B, n_rows, NET.n_cols), in the tape; action (B n_rows, A);
              norm_obs (B n_rows, S), the normalised state, unless None; input (B n_rows, S + A), the state, normalised
              unless norm_obs is None, and the action: every element once
    Requires  BLOCK_D >= every hidden width, BLOCK_S >= S; rows, widths and inputs are masked
    Numerics  fp32 state, accumulators and activations
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK_M
    episode = tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, BLOCK_M)
    row_mask = rows < n_rows - start
    N_HIDDEN: tl.constexpr = len(NET.cols)
    S: tl.constexpr = NET.sizes[0]
    A: tl.constexpr = NET.sizes[N_HIDDEN + 1]
    C: tl.constexpr = NET.n_cols
    taped, row = episode * episode_rows + start, episode * n_rows + start
    x_ptr += taped * S
    hidden_ptr += taped * C
    at, mask = tile_offsets(rows, row_mask, S, S, BLOCK_S)
    if y_ptr is None:
        state = tl.zeros((BLOCK_S, BLOCK_M), tl.float32) + load_vector(before_ptr + episode * S, S, BLOCK_S)
    else:
        y = tl.load(y_ptr + row * S + at, mask=mask, other=0.0)
        change = y * load_vector(scales_ptr + 3 * S, S, BLOCK_S) + load_vector(scales_ptr + 2 * S, S, BLOCK_S)
        state = tl.load(before_ptr + taped * S + at, mask=mask, other=0.0) + change
    tl.store(x_ptr + at, state, mask=mask)
    input_at, _ = tile_offsets(rows, row_mask, S + A, S, BLOCK_S)
    input_ptr += row * (S + A)
    if norm_obs_ptr is not None:
        state = (state - load_vector(scales_ptr, S, BLOCK_S)) / load_vector(scales_ptr + S, S, BLOCK_S)
        tl.store(norm_obs_ptr + row * S + at, state, mask=mask)
    tl.store(input_ptr + input_at, state, mask=mask)
    tl.debug_barrier()
    params = (weights_ptr + episode * NET.width, flat_ptr + episode * NET.width)
    action = forward_layers(x_ptr, *params, hidden_ptr, rows, row_mask, NET, BLOCK_D, BLOCK_A, BLOCK_K)
    at, mask = tile_offsets(rows, row_mask, A, A, BLOCK_A)
    tl.store(action_ptr + row * A + at, action, mask=mask)
    input_at, _ = tile_offsets(rows, row_mask, S + A, A, BLOCK_A)
    tl.store(input_ptr + S + input_at, action, mask=mask)


@triton.jit
def gradient_of_state(direct_ptr, extra_ptr, lam_ptr, dobs_ptr, scales_ptr, row, rows, row_mask, S: tl.constexpr,
                      A: tl.constexpr, NORMALISED: tl.constexpr, BLOCK_S: tl.constexpr):  # fmt: skip
    """Gradient (BLOCK_S, BLOCK_M) of a state, without the part that comes through the policy."""
    at, mask = tile_offsets(rows, row_mask, S, S, BLOCK_S)
    at += row * S
    direct_at, _ = tile_offsets(rows, row_mask, S + A, S, BLOCK_S)
    lam = tl.load(direct_ptr + row * (S + A) + direct_at, mask=mask, other=0.0)
    obs_std = load_vector(scales_ptr + S, S, BLOCK_S)
    if NORMALISED:
        lam /= obs_std
    if dobs_ptr is not None:
        lam += tl.load(dobs_ptr + at, mask=mask, other=0.0) / obs_std
        lam += tl.load(lam_ptr + at, mask=mask, other=0.0)
    if extra_ptr is not None:
        lam += tl.load(extra_ptr + at, mask=mask, other=0.0)
    return lam


@triton.jit(do_not_specialize=["n_rows", "episode_rows", "scale"], do_not_specialize_on_alignment=ROWS_BWD)
def step_bwd_kernel(direct_ptr, extra_ptr, lam_ptr, dobs_ptr, daction_ptr, scales_ptr, action_ptr, weights_ptr,
                    hidden_ptr, dz_ptr, dz_out_ptr, action_grads_ptr, after_ptr, dy_ptr, n_rows, episode_rows, scale,
                    NET: tl.constexpr, NORMALISED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
                    BLOCK_A: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """Backward pass of BLOCK_M particles of one episode through the policy, to the state in which it acted.

    Grid      (cdiv(n_rows, BLOCK_M), B)
    Reads     direct (B n_rows, S + A), the gradient of the step's own terms, with respect to the normalised state if
              NORMALISED; extra (B n_rows, S), added to that of the state, or None; from the next step lam and dobs
              (B n_rows, S), daction (B n_rows, A), or None of each; action (B n_rows, A), hidden in the tape, scales,
              and weights in the operand dtype
    Writes    dz and dz_out in the tape; action_grads (B n_rows, A), the actions' gradient, times scale; unless None
              after (B n_rows, S), the state's gradient, and dy, the preceding sampler's upstream gradient: all once
    Requires  BLOCK_D >= every hidden width, BLOCK_S >= S; rows, widths and inputs are masked
    Numerics  fp32 accumulators; the layer gradients are rounded once, on store
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK_M
    episode = tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, BLOCK_M)
    row_mask = rows < n_rows - start
    N_HIDDEN: tl.constexpr = len(NET.cols)
    S: tl.constexpr = NET.sizes[0]
    A: tl.constexpr = NET.sizes[N_HIDDEN + 1]
    C: tl.constexpr = NET.n_cols
    taped, row = episode * episode_rows + start, episode * n_rows + start
    weights_ptr += episode * NET.width
    hidden_ptr += taped * C
    dz_ptr += taped * C
    dz_out_ptr += taped * A
    at, mask = tile_offsets(rows, row_mask, A, A, BLOCK_A)
    direct_at, _ = tile_offsets(rows, row_mask, S + A, A, BLOCK_A)
    p = tl.load(direct_ptr + row * (S + A) + S + direct_at, mask=mask, other=0.0)
    if daction_ptr is not None:
        p += tl.load(daction_ptr + row * A + at, mask=mask, other=0.0)
    tl.store(action_grads_ptr + row * A + at, scale * p, mask=mask)
    action = tl.load(action_ptr + row * A + at, mask=mask, other=0.0)
    tl.store(dz_out_ptr + at, through_limit(p, action, NET).to(dz_ptr.dtype.element_ty), mask=mask)
    tl.debug_barrier()
    backward_layers(dz_out_ptr, weights_ptr, hidden_ptr, dz_ptr, rows, row_mask, NET, BLOCK_D, BLOCK_K)
    if after_ptr is not None:
        lam = input_gradient(dz_ptr, weights_ptr, rows, row_mask, NET, BLOCK_S, BLOCK_K)
        terms = (direct_ptr, extra_ptr, lam_ptr, dobs_ptr, scales_ptr)
        lam += gradient_of_state(*terms, row, rows, row_mask, S, A, NORMALISED, BLOCK_S)
        at, mask = tile_offsets(rows, row_mask, S, S, BLOCK_S)
        tl.store(after_ptr + row * S + at, lam, mask=mask)
        tl.store(dy_ptr + row * S + at, lam * load_vector(scales_ptr + 3 * S, S, BLOCK_S), mask=mask)


def aot_cases(layout: MLPLayout, precision: str, capability: int) -> list[AotCase]:
    """The first, a middle and the last step, forward and backward."""
    fwd = {"first": ("y_ptr",), "middle": (), "last": ("norm_obs_ptr",)}
    sampler = ("lam_ptr", "dobs_ptr", "daction_ptr")
    bwd = {"first": ("after_ptr", "dy_ptr", "extra_ptr"), "middle": (), "last": (*sampler, "extra_ptr")}
    return [
        aot_case(kernel, layout, precision, capability, place, unused)
        for kernel, places in ((step_fwd_kernel, fwd), (step_bwd_kernel, bwd))
        for place, unused in places.items()
    ]


def aot_case(
    kernel, layout: MLPLayout, precision: str, capability: int, place: str, unused: tuple[str, ...]
) -> AotCase:
    """One compilation, in which the `unused` pointers are None."""
    launch = mlp_launch(max(layout.sizes[1:-1]), precision, capability)
    operand = operand_type(precision)
    operands = ("weights_ptr", "hidden_ptr", "dz_ptr", "dz_out_ptr")
    pointers = [p for p in kernel.arg_names if p.endswith("_ptr") and p not in unused]
    normalised = {"NORMALISED": place != "last"} if kernel is step_bwd_kernel else {}
    return AotCase(
        name=f"{kernel.__name__} {precision} {layout.title} {place}",
        kernel=kernel,
        pointers={p: operand if p in operands else "fp32" for p in pointers},
        constexprs=sizes(layout, launch, kernel) | normalised | dict.fromkeys(unused),
        options=mlp_options(launch),
        tensor_cores=precision != "ieee",
        scalars={"scale": "fp32"} if kernel is step_bwd_kernel else {},
    )
