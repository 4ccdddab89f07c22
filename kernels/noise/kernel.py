"""Triton kernel of the noise: one launch for all episodes, each with its own seed and time."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdwm_kernels.aot_case import AotCase
from fastdwm_kernels.launch import cdiv, run
from fastdwm_kernels.noise.reference import SMALLEST

BLOCK = 256
NUM_WARPS = 4


@triton.jit
def cos_of_turns(u):
    """cos(2 pi u) for 0 <= u < 1, to 1e-7, without the table that tl.cos keeps on the stack for large arguments."""
    # The series of -sin(x), |x| <= pi / 2.
    x = 6.283185307179586 * (0.25 - tl.abs(u - 0.5))
    y = x * x
    tail = 1.9841269841e-4 - y * (2.7557319224e-6 - y * 2.5052108385e-8)
    return -x * (1 - y * (1.6666666667e-1 - y * (8.3333333333e-3 - y * tail)))


@triton.jit(do_not_specialize=["n_rows", "width", "period", "stream"])
def normal_fwd_kernel(seeds_ptr, times_ptr, noise_ptr, n_rows, width, period, stream,
                      SMALLEST: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """BLOCK standard normal numbers of one episode.

    Grid      (cdiv(n_rows * width, BLOCK), B)
    Reads     seeds, times (B,) int64
    Writes    noise (n_rows, B, width) float32, every element exactly once
    Requires  n_rows * width < 2^31 (checked by the launcher)
    """
    episode, n_episodes = tl.program_id(1), tl.num_programs(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = at // width, at % width
    index = (row % period * width + column).to(tl.uint32)
    time = (tl.load(times_ptr + episode) + row // period).to(tl.uint32)
    zero = index * 0
    first, second, _, _ = tl.philox(tl.load(seeds_ptr + episode), index, time, zero + stream.to(tl.uint32), zero)
    radius = tl.sqrt(-2.0 * tl.log(tl.maximum(tl.uint_to_uniform_float(first), SMALLEST)))
    noise = radius * cos_of_turns(tl.uint_to_uniform_float(second))
    place = (row.to(tl.int64) * n_episodes + episode) * width + column
    tl.store(noise_ptr + place, noise, mask=row < n_rows)


def normal_fwd(seeds: Tensor, times: Tensor, n_rows: int, width: int, period: int, stream: int) -> Tensor:
    """One launch; arguments as in `op.normal`. Raises ValueError if an episode's noise is too large to index."""
    if n_rows * width >= 2**31 - BLOCK:
        raise ValueError(f"noise: expected fewer than 2^31 numbers for each episode, got {n_rows * width}")
    noise = torch.empty(n_rows, len(seeds), width, dtype=torch.float32, device=seeds.device)
    if noise.numel():
        grid = (cdiv(n_rows * width, BLOCK), len(seeds))
        args = seeds, times, noise, n_rows, width, period, stream
        run(normal_fwd_kernel, grid, *args, SMALLEST=SMALLEST, BLOCK=BLOCK, num_warps=NUM_WARPS)
    return noise


def aot_cases() -> list[AotCase]:
    """The only compilation."""
    return [
        AotCase(
            name="normal_fwd_kernel",
            kernel=normal_fwd_kernel,
            pointers={"seeds_ptr": "i64", "times_ptr": "i64", "noise_ptr": "fp32"},
            constexprs={"SMALLEST": SMALLEST, "BLOCK": BLOCK},
            options={"num_warps": NUM_WARPS},
            tensor_cores=False,
        )
    ]
