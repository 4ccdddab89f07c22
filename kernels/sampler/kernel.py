"""Triton kernels of the whole sampler: one launch forward and one for the VJP.

A program takes BLOCK_M particles from y_K to y_0; their fp32 state stays in registers between steps.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdwm_kernels.aot_case import AotCase, operand_type
from fastdwm_kernels.launch import Launch, chunk, run, sampler_resident
from fastdwm_kernels.sampler.network import backward_steps, forward_steps, load_rows
from fastdwm_kernels.sampler.tiles import padded, product
from fastdwm_kernels.sampler.weights import DenoiserShape, SamplerWeights

# Rows of a few floats are accessed one by one, so these pointers need no alignment: they may be slices of a buffer.
ROWS_FWD = ("noise_ptr", "obs_ptr", "action_ptr", "y_ptr")
ROWS_BWD = ("dy_ptr", "dobs_ptr", "daction_ptr", "dstart_ptr")


@triton.jit
def store_rows(ptr, value, rows, n_rows, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Store features FIRST .. FIRST + WIDTH of a transposed tile as rows of a row-major (n_rows, WIDTH) array."""
    column = tl.arange(0, value.shape[0])[:, None] - FIRST
    mask = (column >= 0) & (column < WIDTH) & (rows < n_rows)[None, :]
    tl.store(ptr + rows[None, :] * WIDTH + column, value, mask=mask)


@triton.jit
def condition(obs_ptr, action_ptr, w_ptr, rows, n_rows, S: tl.constexpr, A: tl.constexpr, D: tl.constexpr,
              TILE: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """The part (D, BLOCK_M) of the first pre-activation that obs and action contribute."""
    column = tl.arange(0, padded(S + A))[:, None]
    row = (rows < n_rows)[None, :]
    obs = tl.load(obs_ptr + rows[None, :] * S + column, mask=row & (column < S), other=0.0)
    mask = row & (column >= S) & (column < S + A)
    action = tl.load(action_ptr + rows[None, :] * A + (column - S), mask=mask, other=0.0)
    return product(w_ptr, obs + action, D, TILE, STAGES)


@triton.jit(do_not_specialize=["n_rows", "steps"], do_not_specialize_on_alignment=ROWS_FWD)
def sampler_fwd_kernel(noise_ptr, obs_ptr, action_ptr, w_ptr, b_ptr, coef_ptr, y_ptr, saved_ptr, n_rows, steps,
                             S: tl.constexpr, A: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr,
                             BLOCK_M: tl.constexpr, N_TILES: tl.constexpr, TILE: tl.constexpr,
                             STAGES: tl.constexpr, RESIDENT: tl.constexpr):  # fmt: skip
    """BLOCK_M rows of y_0: `steps` reverse steps from y_K = noise[0].

    Grid      (cdiv(n_rows, BLOCK_M),)
    Reads     noise (steps, n_rows, S), obs (n_rows, S), action (n_rows, A), SamplerWeights.tiles, constants
              and coefficients
    Writes    y (n_rows, S); pre-activations saved (steps, HIDDEN + 1, programs, D * BLOCK_M) unless None, step K first
    Numerics  operands in the weights' dtype, float32 accumulator and state
    """
    C: tl.constexpr = padded(S + A)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cond = condition(obs_ptr, action_ptr, w_ptr, rows, n_rows, S, A, D, TILE, STAGES)
    y = load_rows(noise_ptr, rows, n_rows, S)
    y = forward_steps(y, cond, noise_ptr + n_rows * S, w_ptr + C * D, b_ptr, coef_ptr, saved_ptr, rows, n_rows,
                      steps, S, HIDDEN, N_TILES, TILE, STAGES, RESIDENT)  # fmt: skip
    store_rows(y_ptr, y, rows, n_rows, 0, S)


@triton.jit(do_not_specialize=["n_rows", "steps"], do_not_specialize_on_alignment=ROWS_BWD)
def sampler_bwd_kernel(dy_ptr, saved_ptr, w_ptr, coef_ptr, dobs_ptr, daction_ptr, dstart_ptr, n_rows, steps,
                             S: tl.constexpr, A: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr,
                             BLOCK_M: tl.constexpr, N_TILES: tl.constexpr, TILE: tl.constexpr,
                             STAGES: tl.constexpr, RESIDENT: tl.constexpr):  # fmt: skip
    """BLOCK_M rows of the VJP of the sampler, step 1 first.

    Grid      (cdiv(n_rows, BLOCK_M),)
    Reads     dy (n_rows, S), saved (steps, HIDDEN + 1, programs, D * BLOCK_M), SamplerWeights.tiles_t and coefficients
    Writes    dobs (n_rows, S), daction (n_rows, A), dstart (n_rows, S)
    Numerics  operands in the weights' dtype, float32 accumulator; the sum over steps is rounded once, before its
              product with the weights of obs and action
    """
    C: tl.constexpr = padded(S + A)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dy = load_rows(dy_ptr, rows, n_rows, S)
    dstart, total = backward_steps(
        dy, w_ptr + C * D, coef_ptr, saved_ptr, steps, S, D, HIDDEN, N_TILES, TILE, STAGES, RESIDENT
    )
    store_rows(dstart_ptr, dstart, rows, n_rows, 0, S)
    dcond = product(w_ptr, total, C, TILE, STAGES)
    store_rows(dobs_ptr, dcond, rows, n_rows, 0, S)
    store_rows(daction_ptr, dcond, rows, n_rows, S, A)


def compile_time(shape: SamplerWeights | DenoiserShape, launch: Launch) -> dict:
    """Compile-time arguments that both kernels share."""
    sizes = dict(S=shape.obs_dim, A=shape.action_dim, D=shape.width, HIDDEN=shape.hidden_layers - 1)
    return sizes | dict(
        BLOCK_M=launch.block_m,
        N_TILES=shape.width // chunk(shape.width, shape.width, launch.tile) if shape.hidden_layers > 1 else 1,
        TILE=launch.tile,
        STAGES=launch.num_stages,
        RESIDENT=sampler_resident(shape.width, shape.obs_dim, shape.precision),
    )


def options(launch: Launch) -> dict:
    """Compiler options."""
    # Without a bound the assembler may spill a few registers to fit a second program on the multiprocessor.
    return dict(num_warps=launch.num_warps, num_stages=launch.num_stages, maxnreg=255)


def scratch(weights: SamplerWeights, steps: int, n_rows: int) -> Tensor:
    """Memory for the pre-activations of `steps` steps, (steps, layers, programs, D * BLOCK_M)."""
    launch = weights.launch.for_rows(n_rows)
    tiles = (*launch.grid(n_rows), weights.width * launch.block_m)
    return weights.tiles.new_empty(steps, weights.hidden_layers, *tiles)


def sampler_fwd(
    weights: SamplerWeights, obs: Tensor, action: Tensor, noise: Tensor, save: bool
) -> tuple[Tensor, Tensor | None]:
    """y_0 (N, S) and, if `save`, the pre-activations, step K first; one launch."""
    y = torch.empty_like(obs)
    saved = scratch(weights, weights.steps, len(obs)) if save else None
    launch = weights.launch.for_rows(len(obs))
    run(
        sampler_fwd_kernel, launch.grid(len(obs)),
        noise, obs, action, weights.tiles, weights.constants, weights.coefficients, y, saved, len(obs), weights.steps,
        **compile_time(weights, launch), **options(launch),
    )  # fmt: skip
    return y, saved


def sampler_bwd(weights: SamplerWeights, dy: Tensor, saved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of obs, action and the start y_K; one launch."""
    dobs, daction, dstart = torch.empty_like(dy), dy.new_empty(len(dy), weights.action_dim), torch.empty_like(dy)
    launch = weights.launch.for_rows(len(dy))
    run(
        sampler_bwd_kernel, launch.grid(len(dy)),
        dy, saved, weights.tiles_t, weights.coefficients, dobs, daction, dstart, len(dy), weights.steps,
        **compile_time(weights, launch), **options(launch),
    )  # fmt: skip
    return dobs, daction, dstart


def aot_case(kernel, pointers: tuple[str, ...], shape: DenoiserShape) -> AotCase:
    """A kernel for a denoiser of this shape; a `saved_ptr` that is not in `pointers` is None."""
    operand = operand_type(shape.precision)
    saves = "saved_ptr" in pointers
    unused = {"saved_ptr": None} if "saved_ptr" in kernel.arg_names and not saves else {}
    launch = shape.launch
    sizes = f"S{shape.obs_dim} A{shape.action_dim} {shape.hidden_layers}x{shape.width} {shape.precision}"
    sizes += f" block {launch.block_m}" if shape.n_rows > 1 else ""
    return AotCase(
        name=f"{kernel.__name__} {sizes}{' save' if saves and 'fwd' in kernel.__name__ else ''}",
        kernel=kernel,
        pointers={name: operand if name in ("w_ptr", "saved_ptr") else "fp32" for name in pointers},
        constexprs=compile_time(shape, launch) | unused,
        options=options(launch),
        tensor_cores=shape.precision != "ieee",
        layer_products=shape.width**2 * launch.block_m if shape.hidden_layers > 1 else 0,
    )


def aot_cases(shape: DenoiserShape) -> list[AotCase]:
    """Forward without and with saving, and the VJP."""
    forward = ("noise_ptr", "obs_ptr", "action_ptr", "w_ptr", "b_ptr", "coef_ptr", "y_ptr")
    backward = ("dy_ptr", "saved_ptr", "w_ptr", "coef_ptr", "dobs_ptr", "daction_ptr", "dstart_ptr")
    return [
        aot_case(sampler_fwd_kernel, forward, shape),
        aot_case(sampler_fwd_kernel, (*forward, "saved_ptr"), shape),
        aot_case(sampler_bwd_kernel, backward, shape),
    ]
