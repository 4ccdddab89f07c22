"""Triton kernels of one reverse step, and the pieces that the kernels of the whole sampler share.

Activations stay transposed, (features, particles); see `tiles.py` for the products and `network.py` for the layers. All
extents are powers of two, padded with zeros when the weights are packed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdwm_kernels.aot_case import AotCase
from fastdwm_kernels.launch import Launch, chunk, dot_precision, run, sampler_resident
from fastdwm_kernels.sampler.network import backward_steps, forward_steps, load_rows
from fastdwm_kernels.sampler.tiles import padded, product
from fastdwm_kernels.sampler.weights import DenoiserShape, SamplerWeights

# Rows of a few floats are read and written one by one: a single compilation serves any slice of a buffer.
ROWS_FWD = ("y_ptr", "obs_ptr", "action_ptr", "noise_ptr", "out_ptr")
ROWS_BWD = ("dout_ptr", "dy_ptr", "dobs_ptr", "daction_ptr")


@triton.jit
def store_rows(ptr, value, rows, n_rows, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Store features FIRST .. FIRST + WIDTH of a transposed tile as rows of a row-major (n_rows, WIDTH) array."""
    column = tl.arange(0, value.shape[0])[:, None] - FIRST
    mask = (column >= 0) & (column < WIDTH) & (rows < n_rows)[None, :]
    tl.store(ptr + rows[None, :] * WIDTH + column, value, mask=mask)


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


@triton.jit(do_not_specialize=["n_rows", "index"], do_not_specialize_on_alignment=ROWS_FWD)
def reverse_step_fwd_kernel(y_ptr, obs_ptr, action_ptr, noise_ptr, w_ptr, b_ptr, coef_ptr, out_ptr, saved_ptr,
                            n_rows, index, S: tl.constexpr, A: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr,
                            BLOCK_M: tl.constexpr, N_TILES: tl.constexpr, TILE: tl.constexpr,
                            STAGES: tl.constexpr, RESIDENT: tl.constexpr, IP: tl.constexpr):  # fmt: skip
    """BLOCK_M rows of c_y y + c_out net(y, k, obs, action) + sigma noise, k = index + 1.

    Grid      (cdiv(n_rows, BLOCK_M),)
    Reads     y, noise, obs (n_rows, S), action (n_rows, A), SamplerWeights.tiles, constants and coefficients
    Writes    out (n_rows, S); pre-activations saved (HIDDEN + 1, programs, D * BLOCK_M) unless None
    Numerics  operands in the weights' dtype, float32 accumulator and state
    """
    C: tl.constexpr = padded(S + A)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    y = load_rows(y_ptr, rows, n_rows, S)
    cond = condition(obs_ptr, action_ptr, w_ptr, rows, n_rows, S, A, D, TILE, STAGES, IP)
    out = forward_steps(y, cond, noise_ptr, w_ptr + C * D, b_ptr, coef_ptr, saved_ptr, rows, n_rows, index, 1,
                        S, HIDDEN, 0, N_TILES, TILE, STAGES, RESIDENT, IP)  # fmt: skip
    store_rows(out_ptr, out, rows, n_rows, 0, S)


@triton.jit(do_not_specialize=["n_rows", "index"], do_not_specialize_on_alignment=ROWS_BWD)
def reverse_step_bwd_kernel(dout_ptr, saved_ptr, w_ptr, coef_ptr, dy_ptr, dobs_ptr, daction_ptr, n_rows, index,
                            S: tl.constexpr, A: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr,
                            BLOCK_M: tl.constexpr, N_TILES: tl.constexpr, TILE: tl.constexpr,
                            STAGES: tl.constexpr, RESIDENT: tl.constexpr, IP: tl.constexpr):  # fmt: skip
    """BLOCK_M rows of the VJP of one reverse step.

    Grid      (cdiv(n_rows, BLOCK_M),)
    Reads     dout (n_rows, S), saved (HIDDEN + 1, programs, D * BLOCK_M), SamplerWeights.tiles_t and coefficients
    Writes    dy, dobs (n_rows, S), daction (n_rows, A)
    Numerics  operands in the weights' dtype, float32 accumulator
    """
    C: tl.constexpr = padded(S + A)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dout = load_rows(dout_ptr, rows, n_rows, S)
    dy, dz = backward_steps(
        dout, w_ptr + C * D, coef_ptr, saved_ptr, index, 1, S, D, HIDDEN, N_TILES, TILE, STAGES, RESIDENT, IP
    )
    store_rows(dy_ptr, dy, rows, n_rows, 0, S)
    dcond = product(w_ptr, dz, C, TILE, STAGES, IP)
    store_rows(dobs_ptr, dcond, rows, n_rows, 0, S)
    store_rows(daction_ptr, dcond, rows, n_rows, S, A)


def compile_time(shape: SamplerWeights | DenoiserShape, launch: Launch) -> dict:
    """Compile-time arguments that all kernels of the step and the sampler share."""
    sizes = dict(S=shape.obs_dim, A=shape.action_dim, D=shape.width, HIDDEN=shape.hidden_layers - 1)
    return sizes | dict(
        BLOCK_M=launch.block_m,
        N_TILES=shape.width // chunk(shape.width, shape.width, launch.tile) if shape.hidden_layers > 1 else 1,
        TILE=launch.tile,
        STAGES=launch.num_stages,
        RESIDENT=sampler_resident(shape.width, shape.obs_dim, shape.precision),
        IP=dot_precision(shape.precision),
    )


def options(launch: Launch) -> dict:
    """Options of the compiler."""
    # Without an explicit bound the assembler may spill a few registers to fit a second program on the multiprocessor.
    return dict(num_warps=launch.num_warps, num_stages=launch.num_stages, maxnreg=255)


def scratch(weights: SamplerWeights, steps: int, n_rows: int) -> Tensor:
    """Room for the pre-activations of `steps` steps, whole tiles: (steps, layers, programs, D * BLOCK_M)."""
    launch = weights.launch.for_rows(n_rows)
    tiles = (*launch.grid(n_rows), weights.width * launch.block_m)
    return weights.tiles.new_empty(steps, weights.hidden_layers, *tiles)


def reverse_step_fwd(
    weights: SamplerWeights, index: int, y: Tensor, obs: Tensor, action: Tensor, noise: Tensor, save: bool
) -> tuple[Tensor, Tensor | None]:
    """y_{k-1} (N, S) of step k = index + 1 and, if `save`, the pre-activations; one launch."""
    out = torch.empty_like(y)
    saved = scratch(weights, 1, len(y)) if save else None
    launch = weights.launch.for_rows(len(y))
    run(
        reverse_step_fwd_kernel, launch.grid(len(y)),
        y, obs, action, noise, weights.tiles, weights.constants, weights.coefficients, out, saved, len(y), index,
        **compile_time(weights, launch), **options(launch),
    )  # fmt: skip
    return out, saved


def reverse_step_bwd(weights: SamplerWeights, index: int, dout: Tensor, saved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, obs and action; one launch."""
    dy, dobs = torch.empty_like(dout), torch.empty_like(dout)
    daction = dout.new_empty(len(dout), weights.action_dim)
    launch = weights.launch.for_rows(len(dout))
    run(
        reverse_step_bwd_kernel, launch.grid(len(dout)),
        dout, saved, weights.tiles_t, weights.coefficients, dy, dobs, daction, len(dout), index,
        **compile_time(weights, launch), **options(launch),
    )  # fmt: skip
    return dy, dobs, daction


def aot_case(kernel, pointers: tuple[str, ...], shape: DenoiserShape) -> AotCase:
    """One kernel of the step or the sampler for a denoiser of this shape; a `saved_ptr` not in `pointers` is None."""
    operand = "bf16" if shape.precision == "bf16" else "fp32"
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
    forward = ("y_ptr", "obs_ptr", "action_ptr", "noise_ptr", "w_ptr", "b_ptr", "coef_ptr", "out_ptr")
    backward = ("dout_ptr", "saved_ptr", "w_ptr", "coef_ptr", "dy_ptr", "dobs_ptr", "daction_ptr")
    return [
        aot_case(reverse_step_fwd_kernel, forward, shape),
        aot_case(reverse_step_fwd_kernel, (*forward, "saved_ptr"), shape),
        aot_case(reverse_step_bwd_kernel, backward, shape),
    ]
