"""python bench/cpu_peak.py: share of one core's peak arithmetic that each part of a gradient reaches, as Markdown.

The peak is the rate of a loop of fused multiply-adds on registers, compiled by numba as the kernels are. Only the
multiply-adds of matrix products count; everything else, activations included, is overhead.
"""

import itertools
from collections.abc import Callable
from functools import partial
from time import perf_counter

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from problems import ACTION_DIM, OBS_DIM, Problem, Size
from provenance import provenance

from fastdwm_kernels import cpu
from fastdwm_kernels.frozen_mlp import FrozenMLP
from fastdwm_kernels.frozen_mlp.cpu import scalar_gradient
from fastdwm_kernels.gemm import INT, LANES, VECTOR, emit_loop
from fastdwm_kernels.memory import fresh
from fastdwm_kernels.sampler.cpu import sampler_backward_cpu, sampler_cpu

SUMS, STEPS = 12, 100_000
"""number of independent chains of multiply-adds, which hide each other's latency, and their length"""
SECONDS = 0.25
"""least time of a measurement"""


@intrinsic
def multiply_add(typing, n):
    """Sum of SUMS vectors after n multiply-adds each; the sum keeps the compiler from removing them."""

    def emit(context, b, signature, args):
        factor = ir.Constant(VECTOR, [0.5] * LANES)

        def step(i, sums):
            products = [b.fmul(total, factor, flags=("contract",)) for total in sums]
            return [b.fadd(product, factor, flags=("contract",)) for product in products]

        first, *others = emit_loop(b, args[0], [ir.Constant(VECTOR, [float(i)] * LANES) for i in range(SUMS)], step)
        for other in others:
            first = b.fadd(first, other)
        return b.extract_element(first, INT(0))

    return types.float32(types.int64), emit


@njit(fastmath={"contract"})
def peak(n):
    return multiply_add(n)


@njit
def products(x, w, z, n):
    for _ in range(n):
        cpu.multiply(x, w, z)


def seconds(call: Callable) -> float:
    """Median time of a call."""
    call()
    times = []
    while sum(times) < SECONDS or len(times) < 5:
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return float(np.median(times))


def cost(sizes: tuple[int, ...]) -> int:
    """Multiply-adds of one row through layers of these sizes."""
    return sum(a * b for a, b in itertools.pairwise(sizes))


def scalar(mlp: FrozenMLP, x: torch.Tensor) -> None:
    """Compute value and gradient of a frozen network."""
    multiply_adds = 2 * len(mlp.copies) * mlp.layout.n_params
    cpu.run(scalar_gradient, len(x), multiply_adds, *mlp.for_cpu, x, x.new_empty(len(x)), torch.empty_like(x))


def parts(problem: Problem) -> dict[str, tuple[int, Callable]]:
    """Multiply-adds and a call of each part of the problem's gradient."""
    size, models, returns = problem.size, problem.fused.models, problem.fused.returns
    rows, steps, layout = size.rows, size.K, models.policy
    obs, action = problem.normal(1, rows, OBS_DIM), problem.normal(2, rows, ACTION_DIM)
    noise, both = problem.normal(3, steps, rows, OBS_DIM), torch.cat([obs, action], 1)
    visited = both.repeat(size.H, 1)
    _, act_derivs = sampler_cpu(models.sampler, obs, action, noise, True)
    sampler = rows * (steps * cost((OBS_DIM, size.D, size.D, size.D, OBS_DIM)) + cost((OBS_DIM + ACTION_DIM, size.D)))
    network, policy = cost(returns.reward.layout.sizes), rows * (size.H + 1) * cost(layout.sizes)
    reward, critics = 2 * size.H * rows * network, 3 * rows * network
    return {
        "sampler, forward": (sampler, lambda: sampler_cpu(models.sampler, obs, action, noise, True)),
        "sampler, backward": (sampler, lambda: sampler_backward_cpu(models.sampler, obs, act_derivs)),
        "reward and its gradient": (reward, partial(scalar, returns.reward, visited)),
        "critics and their gradient": (critics, partial(scalar, returns.critics, both)),
        "whole gradient": (
            2 * size.H * sampler + 3 * policy + reward + critics,
            lambda: problem.fused.gradient(*problem.arguments),
        ),
    }


def main() -> None:
    torch.set_num_threads(1)
    about = provenance("cpu")
    rate = SUMS * STEPS * LANES / seconds(lambda: peak(STEPS))
    print(f"{', '.join(f'{key} {value}' for key, value in about.items())}\n")
    print(f"Peak: {2e-9 * rate:.0f} GFLOP/s, on vectors of {LANES}.\n")
    print("| problem | part | us | GFLOP/s | of the peak |\n| --- | --- | ---: | ---: | ---: |")

    def show(problem: str, part: str, multiply_adds: int, time: float) -> None:
        share = multiply_adds / time / rate
        print(
            f"| {problem} | {part} | {1e6 * time:.1f} | {2e-9 * multiply_adds / time:.0f} | {share:.0%} |", flush=True
        )

    for rows in (1, 2, 4, 8, 16, 32):
        matrices = [fresh(n * 256).reshape(n, 256) for n in (rows, 256, rows)]
        for matrix in matrices:
            matrix[:] = 1
        time = seconds(partial(products, *matrices, 50)) / 50
        show(f"{rows} rows", "one product, 256 x 256", rows * 65536, time)
    meanflow = dict(K=1, world="meanflow")
    for size in (Size(M=2, H=8, **meanflow), Size(**meanflow), Size(M=64, **meanflow), Size(), Size(M=64), Size(B=10)):
        for part, (multiply_adds, call) in parts(Problem(size)).items():
            show(f"{size.world}, B {size.B}, M {size.M}, H {size.H}", part, multiply_adds, seconds(call))
    for episodes, particles in itertools.product((1, 10), (1, 2, 4, 16, 64)):
        size = Size(B=episodes, M=particles, H=8, **meanflow)
        multiply_adds, call = parts(Problem(size))["whole gradient"]
        show(f"growth: B {size.B}, M {size.M}", "whole gradient", multiply_adds, seconds(call))


if __name__ == "__main__":
    main()
