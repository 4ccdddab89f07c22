"""Triton kernel that commits or rolls back a decision."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdwm_kernels.aot_case import AotCase
from fastdwm_kernels.commit.reference import Candidate
from fastdwm_kernels.launch import cdiv, pad_block, run

BLOCK = 1024
NUM_WARPS = 4
LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def number(ptr, episode):
    """ptr[episode], or NaN if ptr is None."""
    if ptr is None:
        return tl.full((), float("nan"), tl.float32)
    else:
        return tl.load(ptr + episode)


@triton.jit
def is_finite(action, objective_ptr, norm_ptr, finite_ptr, episode):
    """1 if action (BLOCK_A,), padded with zeros, and all that is not None is finite, else 0."""
    result = tl.min((tl.abs(action) <= LARGEST).to(tl.int32))
    if objective_ptr is not None:
        result = tl.where(tl.abs(tl.load(objective_ptr + episode)) <= LARGEST, result, 0)
    if norm_ptr is not None:
        result = tl.where(tl.abs(tl.load(norm_ptr + episode)) <= LARGEST, result, 0)
    if finite_ptr is not None:
        result = tl.where(tl.load(finite_ptr + episode) != 0, result, 0)
    return result


@triton.jit(do_not_specialize=["width", "n_actions"])
def commit_kernel(start_ptr, after_ptr, action_ptr, base_ptr, objective_ptr, norm_ptr, finite_ptr, deviation_ptr,
                  params_ptr, times_ptr, report_ptr, width, n_actions, BLOCK: tl.constexpr,
                  BLOCK_A: tl.constexpr):  # fmt: skip
    """Commit or roll back BLOCK parameters of one episode; its first program also writes times and report.

    Grid      (cdiv(width, BLOCK), B)
    Reads     start, after (B, width); action, base (B, n_actions); objective, norm, deviation (B,), finite (B,) uint8;
              the last four may be None
    Writes    params (B, width), times (B,) and report (B, n_actions + 4), in place
    Requires  BLOCK_A >= n_actions
    """
    episode = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK_A)
    inside = column < n_actions
    action = tl.load(action_ptr + episode * n_actions + column, mask=inside, other=0.0)
    keep = is_finite(action, objective_ptr, norm_ptr, finite_ptr, episode)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = episode * width + place
    chosen_ptr = after_ptr if keep != 0 else start_ptr
    tl.store(params_ptr + at, tl.load(chosen_ptr + at, mask=place < width, other=0.0), mask=place < width)
    if tl.program_id(0) == 0:
        base = tl.load(base_ptr + episode * n_actions + column, mask=inside, other=0.0)
        report_ptr += episode * (n_actions + 4)
        tl.store(report_ptr + column, tl.where(keep != 0, action, base), mask=inside)
        report_ptr += n_actions
        tl.store(report_ptr, number(objective_ptr, episode))
        tl.store(report_ptr + 1, number(norm_ptr, episode))
        tl.store(report_ptr + 2, (1 - keep).to(tl.float32))
        tl.store(report_ptr + 3, number(deviation_ptr, episode))
        tl.store(times_ptr + episode, tl.load(times_ptr + episode) + 1)


def commit_into(candidate: Candidate, params: Tensor, times: Tensor, report: Tensor) -> None:
    """One launch; arguments as in `op.commit`."""
    (n_episodes, width), n_actions = params.shape, candidate.action.shape[1]
    finite = None if candidate.finite is None else candidate.finite.view(torch.uint8)
    options = dict(BLOCK=BLOCK, BLOCK_A=pad_block(n_actions), num_warps=NUM_WARPS)
    args = *candidate._replace(finite=finite), params, times, report, width, n_actions
    run(commit_kernel, (cdiv(width, BLOCK), n_episodes), *args, **options)


def aot_cases() -> list[AotCase]:
    """The kernel with all arguments, and without those that may be None."""
    names = [p for p in commit_kernel.arg_names if p.endswith("_ptr")]
    kinds = {"finite_ptr": "u8", "times_ptr": "i64"}
    return [
        AotCase(
            name=f"commit_kernel {name}",
            kernel=commit_kernel,
            pointers={p: kinds.get(p, "fp32") for p in names if p not in unused},
            constexprs={"BLOCK": BLOCK, "BLOCK_A": pad_block(1)} | dict.fromkeys(unused),
            options={"num_warps": NUM_WARPS},
            tensor_cores=False,
        )
        for name, unused in (("all", ()), ("least", names[4:8]))
    ]
