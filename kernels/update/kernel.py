"""Triton kernel of Adam, one launch for all parameters of all episodes."""

import triton
import triton.language as tl
from torch import Tensor

from fastdwm_kernels.aot_case import AotCase
from fastdwm_kernels.launch import cdiv, run
from fastdwm_kernels.update.reference import ADAM_EPS, BETA1, BETA2, LOG_BETA1, LOG_BETA2

BLOCK = 1024
NUM_WARPS = 4


@triton.jit(do_not_specialize=["width", "lr"])
def update_adam_kernel(params_ptr, grads_ptr, first_ptr, second_ptr, count_ptr, width, lr,
                       BETA1: tl.constexpr, BETA2: tl.constexpr, LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr,
                       EPS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """One ascending Adam step of BLOCK parameters of one episode.

    Grid      (cdiv(width, BLOCK), B)
    Reads     params, grads, first, second (B, width); count (B,) of earlier steps
    Writes    params, first, second, in place
    Numerics  1 - beta^t in fp64: in fp32, 1 - 0.999 is off by 5e-5
    """
    episode = tl.program_id(1)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = episode.to(tl.int64) * width + column
    inside = column < width
    grad = tl.load(grads_ptr + at, mask=inside, other=0.0)
    t = tl.load(count_ptr + episode).to(tl.float64) + 1
    share1 = (1 - tl.exp(t * LOG_BETA1)).to(tl.float32)
    share2 = (1 - tl.exp(t * LOG_BETA2)).to(tl.float32)
    first = tl.load(first_ptr + at, mask=inside, other=0.0)
    second = tl.load(second_ptr + at, mask=inside, other=0.0)
    first += (1 - BETA1) * (grad - first)
    second += (1 - BETA2) * (grad * grad - second)
    step = lr * (first / share1) / (tl.sqrt(second / share2) + EPS)
    tl.store(first_ptr + at, first, mask=inside)
    tl.store(second_ptr + at, second, mask=inside)
    tl.store(params_ptr + at, tl.load(params_ptr + at, mask=inside, other=0.0) + step, mask=inside)


def update_adam(params: Tensor, grads: Tensor, first: Tensor, second: Tensor, count: Tensor, lr: float) -> None:
    """One Adam step in place: one launch, and one for the counts."""
    n_episodes, width = params.shape
    run(
        update_adam_kernel, (cdiv(width, BLOCK), n_episodes),
        params, grads, first, second, count, width, lr, **adam_constants(), num_warps=NUM_WARPS,
    )  # fmt: skip
    count.add_(1)


def adam_constants() -> dict:
    return dict(
        BETA1=BETA1, BETA2=BETA2, LOG_BETA1=LOG_BETA1, LOG_BETA2=LOG_BETA2, EPS=ADAM_EPS, BLOCK=BLOCK
    )  # fmt: skip


def aot_cases() -> list[AotCase]:
    """The only compilation."""
    return [
        AotCase(
            name=update_adam_kernel.__name__,
            kernel=update_adam_kernel,
            pointers={p: "fp32" for p in update_adam_kernel.arg_names if p.endswith("_ptr")},
            constexprs=adam_constants(),
            options={"num_warps": NUM_WARPS},
            tensor_cores=False,
            scalars={"lr": "fp32"},
        )
    ]
