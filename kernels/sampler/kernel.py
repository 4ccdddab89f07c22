"""Triton kernels of the whole sampler: one launch forward, one launch for the VJP, no traffic between steps.

A program owns BLOCK_M particles from y_K to y_0. The state stays in registers and is never rounded.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdwm_kernels.aot_case import AotCase
from fastdwm_kernels.launch import run
from fastdwm_kernels.sampler.network import backward_steps, forward_steps, load_rows
from fastdwm_kernels.sampler.step_kernel import (
    ROWS_BWD,
    ROWS_FWD,
    aot_case,
    compile_time,
    condition,
    options,
    scratch,
    store_rows,
)
from fastdwm_kernels.sampler.tiles import padded, product
from fastdwm_kernels.sampler.weights import DenoiserShape, SamplerWeights


@triton.jit(do_not_specialize=["n_rows", "steps"], do_not_specialize_on_alignment=ROWS_FWD)
def sampler_fwd_kernel(noise_ptr, obs_ptr, action_ptr, w_ptr, b_ptr, coef_ptr, y_ptr, saved_ptr, n_rows, steps,
                             S: tl.constexpr, A: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr,
                             BLOCK_M: tl.constexpr, N_TILES: tl.constexpr, TILE: tl.constexpr,
                             STAGES: tl.constexpr, RESIDENT: tl.constexpr, IP: tl.constexpr):  # fmt: skip
    """BLOCK_M rows of y_0: `steps` reverse steps from y_K = noise[0].

    Grid      (cdiv(n_rows, BLOCK_M),)
    Reads     noise (steps, n_rows, S), obs (n_rows, S), action (n_rows, A), SamplerWeights.tiles, constants
              and coefficients
    Writes    y (n_rows, S); pre-activations saved (steps, HIDDEN + 1, programs, D * BLOCK_M) unless None, step K first
    Numerics  operands in the weights' dtype, float32 accumulator and state
    """
    C: tl.constexpr = padded(S + A)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cond = condition(obs_ptr, action_ptr, w_ptr, rows, n_rows, S, A, D, TILE, STAGES, IP)
    y = load_rows(noise_ptr, rows, n_rows, S)
    y = forward_steps(y, cond, noise_ptr + n_rows * S, w_ptr + C * D, b_ptr, coef_ptr, saved_ptr, rows, n_rows,
                      steps - 1, steps, S, HIDDEN, 1, N_TILES, TILE, STAGES, RESIDENT, IP)  # fmt: skip
    store_rows(y_ptr, y, rows, n_rows, 0, S)


@triton.jit(do_not_specialize=["n_rows", "steps"], do_not_specialize_on_alignment=ROWS_BWD)
def sampler_bwd_kernel(dy_ptr, saved_ptr, w_ptr, coef_ptr, dobs_ptr, daction_ptr, n_rows, steps,
                             S: tl.constexpr, A: tl.constexpr, D: tl.constexpr, HIDDEN: tl.constexpr,
                             BLOCK_M: tl.constexpr, N_TILES: tl.constexpr, TILE: tl.constexpr,
                             STAGES: tl.constexpr, RESIDENT: tl.constexpr, IP: tl.constexpr):  # fmt: skip
    """BLOCK_M rows of the VJP of the sampler, step 1 first.

    Grid      (cdiv(n_rows, BLOCK_M),)
    Reads     dy (n_rows, S), saved (steps, HIDDEN + 1, programs, D * BLOCK_M), SamplerWeights.tiles_t and coefficients
    Writes    dobs (n_rows, S), daction (n_rows, A)
    Numerics  operands in the weights' dtype, float32 accumulator; the sum over steps is rounded once, before the last
              product, which all steps share
    """
    C: tl.constexpr = padded(S + A)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dy = load_rows(dy_ptr, rows, n_rows, S)
    _, total = backward_steps(
        dy, w_ptr + C * D, coef_ptr, saved_ptr, 0, steps, S, D, HIDDEN, N_TILES, TILE, STAGES, RESIDENT, IP
    )
    dcond = product(w_ptr, total, C, TILE, STAGES, IP)
    store_rows(dobs_ptr, dcond, rows, n_rows, 0, S)
    store_rows(daction_ptr, dcond, rows, n_rows, S, A)


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


def sampler_bwd(weights: SamplerWeights, dy: Tensor, saved: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of obs and action; one launch."""
    dobs, daction = torch.empty_like(dy), dy.new_empty(len(dy), weights.action_dim)
    launch = weights.launch.for_rows(len(dy))
    run(
        sampler_bwd_kernel, launch.grid(len(dy)),
        dy, saved, weights.tiles_t, weights.coefficients, dobs, daction, len(dy), weights.steps,
        **compile_time(weights, launch), **options(launch),
    )  # fmt: skip
    return dobs, daction


def aot_cases(shape: DenoiserShape) -> list[AotCase]:
    """Forward without and with saving, and the VJP."""
    forward = ("noise_ptr", "obs_ptr", "action_ptr", "w_ptr", "b_ptr", "coef_ptr", "y_ptr")
    backward = ("dy_ptr", "saved_ptr", "w_ptr", "coef_ptr", "dobs_ptr", "daction_ptr")
    return [
        aot_case(sampler_fwd_kernel, forward, shape),
        aot_case(sampler_fwd_kernel, (*forward, "saved_ptr"), shape),
        aot_case(sampler_bwd_kernel, backward, shape),
    ]
