"""Triton kernels of the default rule: the optimiser step, and the bound on the deviation, one launch each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdwm_kernels.aot_case import AotCase
from fastdwm_kernels.launch import cdiv, pad_block, run

BLOCK = 1024
NUM_WARPS = 4
LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit(do_not_specialize=["width", "n_parts", "scale"], do_not_specialize_on_alignment=["rms_ptr"])
def bound_step_kernel(params_ptr, grads_ptr, parts_ptr, rms_ptr, memory_ptr, after_ptr, norm_ptr, new_memory_ptr,
                      width, n_parts, scale, BLOCK: tl.constexpr, BLOCK_T: tl.constexpr):  # fmt: skip
    """Step BLOCK parameters of one episode by scale / (rms mean(G)) times the gradient.

    Grid      (cdiv(width, BLOCK), B)
    Reads     params, grads (B, width); parts (B, n_parts), which add up to the squared norm; rms (B,) of dJ/da;
              memory (B, 2)
    Writes    after (B, width); the first program also norm (B,) and new_memory (B, 2)
    Requires  BLOCK_T >= n_parts
    """
    episode = tl.program_id(1)
    part = tl.arange(0, BLOCK_T)
    parts = tl.load(parts_ptr + episode.to(tl.int64) * n_parts + part, mask=part < n_parts, other=0.0)
    sq_norm, rms = tl.sum(parts), tl.load(rms_ptr + episode)
    gain = sq_norm / (rms * rms)
    mean, count = tl.load(memory_ptr + 2 * episode), tl.load(memory_ptr + 2 * episode + 1)
    valid = tl.abs(gain) <= LARGEST
    count = tl.where(valid, count + 1, count)
    mean = tl.where(valid, mean + (gain - mean) / count, mean)
    factor = scale / (rms * mean)
    factor = tl.where(tl.abs(factor) <= LARGEST, factor, 0.0)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at, inside = episode.to(tl.int64) * width + column, column < width
    grads = tl.load(grads_ptr + at, mask=inside, other=0.0)
    tl.store(after_ptr + at, tl.load(params_ptr + at, mask=inside, other=0.0) + factor * grads, mask=inside)
    if tl.program_id(0) == 0:
        tl.store(norm_ptr + episode, tl.sqrt(sq_norm))
        tl.store(new_memory_ptr + 2 * episode, mean)
        tl.store(new_memory_ptr + 2 * episode + 1, count)


@triton.jit
def pulled(a, b, share):
    """b + share (a - b), or a for a share of 1 or more."""
    return tl.where(share < 1, b + share * (a - b), a)


@triton.jit(do_not_specialize=["width", "base_stride", "n_actions", "max_deviation"])
def pull_back_kernel(params_ptr, base_ptr, action_ptr, base_action_ptr, pulled_ptr, clipped_ptr, deviation_ptr, width,
                     base_stride, n_actions, max_deviation, BLOCK: tl.constexpr, BLOCK_A: tl.constexpr):  # fmt: skip
    """Clip BLOCK parameters of one episode as its action is clipped to deviate by at most max_deviation.

    Grid      (cdiv(width, BLOCK), B)
    Reads     params (B, width), base (B, width) with rows base_stride apart; action, base_action (B, n_actions)
    Writes    pulled (B, width); the first program also clipped (B, n_actions) and deviation (B,)
    Requires  BLOCK_A >= n_actions
    """
    episode, column = tl.program_id(1).to(tl.int64), tl.arange(0, BLOCK_A)
    at, inside = episode * n_actions + column, column < n_actions
    action = tl.load(action_ptr + at, mask=inside, other=0.0)
    base_action = tl.load(base_action_ptr + at, mask=inside, other=0.0)
    change = action - base_action
    deviation = tl.sqrt(tl.sum(change * change) / n_actions)
    share = max_deviation / deviation
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    params = tl.load(params_ptr + episode * width + place, mask=place < width, other=0.0)
    base = tl.load(base_ptr + episode * base_stride + place, mask=place < width, other=0.0)
    tl.store(pulled_ptr + episode * width + place, pulled(params, base, share), mask=place < width)
    if tl.program_id(0) == 0:
        tl.store(clipped_ptr + at, pulled(action, base_action, share), mask=inside)
        tl.store(deviation_ptr + episode, deviation)


def bound_step_fwd(
    params: Tensor, grads: Tensor, partial_sq_norms: Tensor, action_grads: Tensor, memory: Tensor, action_step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One launch, after two by torch for the root mean square of dJ/da; arguments as in `op.bound_step`."""
    result = torch.empty_like(params), params.new_empty(len(params)), torch.empty_like(memory)
    (n_episodes, width), (n_steps, _, particles, action_dim) = params.shape, action_grads.shape
    rms = torch.linalg.vector_norm(action_grads, dim=(0, 2, 3)) * (n_steps * particles * action_dim) ** -0.5
    n_parts = partial_sq_norms.shape[1]
    run(
        bound_step_kernel, (cdiv(width, BLOCK), n_episodes),
        params, grads, partial_sq_norms, rms, memory, *result, width, n_parts, action_step * n_steps * action_dim,
        BLOCK=BLOCK, BLOCK_T=pad_block(n_parts), num_warps=NUM_WARPS,
    )  # fmt: skip
    return result


def pull_back_fwd(
    params: Tensor, base: Tensor, action: Tensor, base_action: Tensor, max_deviation: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One launch; arguments as in `op.pull_back`."""
    result = torch.empty_like(params), torch.empty_like(action), action.new_empty(len(action))
    (n_episodes, width), n_actions = params.shape, action.shape[1]
    args = params, base, action, base_action, *result, width, base.stride(0), n_actions, max_deviation
    options = dict(BLOCK=BLOCK, BLOCK_A=pad_block(n_actions), num_warps=NUM_WARPS)
    run(pull_back_kernel, (cdiv(width, BLOCK), n_episodes), *args, **options)
    return result


def aot_cases() -> list[AotCase]:
    """Both kernels."""
    cases = (
        (bound_step_kernel, {"BLOCK": BLOCK, "BLOCK_T": 256}, "scale"),
        (pull_back_kernel, {"BLOCK": BLOCK, "BLOCK_A": pad_block(1)}, "max_deviation"),
    )
    return [
        AotCase(
            name=kernel.__name__,
            kernel=kernel,
            pointers={p: "fp32" for p in kernel.arg_names if p.endswith("_ptr")},
            constexprs=constants,
            options={"num_warps": NUM_WARPS},
            tensor_cores=False,
            scalars={scalar: "fp32"},
        )
        for kernel, constants, scalar in cases
    ]
