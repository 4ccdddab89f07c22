"""Triton kernel of a bounded step: the norm, what it leaves of the gradient, and the step, in one launch."""

import triton
import triton.language as tl
from torch import Tensor

from fastdwm.kernels.aot import AotCase
from fastdwm.kernels.launch import cdiv, pad_block, run

BLOCK = 1024
NUM_WARPS = 4
LARGEST = tl.constexpr(3.4028234663852886e38)
LEAST = tl.constexpr(1e-12)
"""what a norm counts as, at least, for a bound that is given"""


@triton.jit(
    do_not_specialize=["width", "n_parts", "lr", "clip"], do_not_specialize_on_alignment=["step_ptr", "bound_ptr"]
)
def bounded_step_kernel(params_ptr, grads_ptr, squares_ptr, step_ptr, bound_ptr, after_ptr, norm_ptr, width, n_parts,
                        lr, clip, BLOCK: tl.constexpr, BLOCK_T: tl.constexpr):  # fmt: skip
    """BLOCK parameters of one episode after a step along a gradient that is no longer than its bound.

    Grid      (cdiv(width, BLOCK), B)
    Reads     params, grads (B, width); squares (B, n_parts), which add up to the squared norm; step and bound (B,), or
              None of both for the step size lr and the bound clip, where one is given (> 0)
    Writes    after (B, width), norm (B,)
    Requires  BLOCK_T >= n_parts
    """
    episode = tl.program_id(1)
    part = tl.arange(0, BLOCK_T)
    squares = tl.load(squares_ptr + episode.to(tl.int64) * n_parts + part, mask=part < n_parts, other=0.0)
    norm = tl.sqrt(tl.sum(squares))
    if step_ptr is not None:
        share = tl.load(bound_ptr + episode) / norm
        factor = tl.load(step_ptr + episode) * tl.where(share > 1, 1.0, share)
        factor = tl.where(tl.abs(factor) <= LARGEST, factor, 0.0)
    else:
        share = clip / tl.where(norm < LEAST, LEAST, norm)
        factor = lr * tl.where((clip <= 0) | (share > 1), 1.0, share)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at, inside = episode.to(tl.int64) * width + column, column < width
    grads = tl.load(grads_ptr + at, mask=inside, other=0.0)
    tl.store(after_ptr + at, tl.load(params_ptr + at, mask=inside, other=0.0) + factor * grads, mask=inside)
    tl.store(norm_ptr + episode, norm, mask=tl.program_id(0) == 0)


def bounded_step_fwd(
    params: Tensor, grads: Tensor, squares: Tensor, step: Tensor | None, bound: Tensor | None, lr: float, clip: float
) -> tuple[Tensor, Tensor]:
    """One launch; arguments as in `op.bounded_step`, with 0 for no clip."""
    after, norm, (n_episodes, width) = params.new_empty(params.shape), params.new_empty(len(params)), params.shape
    n_parts = squares.shape[1]
    run(
        bounded_step_kernel, (cdiv(width, BLOCK), n_episodes),
        params, grads, squares, step, bound, after, norm, width, n_parts, lr, clip,
        BLOCK=BLOCK, BLOCK_T=pad_block(n_parts), num_warps=NUM_WARPS,
    )  # fmt: skip
    return after, norm


def aot_cases() -> list[AotCase]:
    """With a step size and a bound of every episode, and with the same for all."""
    names = [p for p in bounded_step_kernel.arg_names if p.endswith("_ptr")]
    own = ("step_ptr", "bound_ptr")
    return [
        AotCase(
            name=f"bounded_step_kernel {name}",
            kernel=bounded_step_kernel,
            pointers={p: "fp32" for p in names if p not in unused},
            constexprs={"BLOCK": BLOCK, "BLOCK_T": 256} | dict.fromkeys(unused),
            options={"num_warps": NUM_WARPS},
            tensor_cores=False,
            scalars={"lr": "fp32", "clip": "fp32"},
        )
        for name, unused in (("of each episode", ()), ("of all", own))
    ]
