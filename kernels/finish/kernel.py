"""Triton kernel of the end of a decision."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdwm.kernels.aot import AotCase
from fastdwm.kernels.finish.reference import Outcome
from fastdwm.kernels.launch import cdiv, pad_block, run

BLOCK = 1024
NUM_WARPS = 4
LARGEST = tl.constexpr(3.4028234663852886e38)
BLOCK_E = tl.constexpr(16)
"""columns of the evidence, padded"""


@triton.jit
def number(ptr, episode):
    """ptr[episode] as float32, NaN without a pointer."""
    if ptr is None:
        return tl.full((), float("nan"), tl.float32)
    else:
        return tl.load(ptr + episode).to(tl.float32)


@triton.jit
def is_fine(action, objective_ptr, norm_ptr, finite_ptr, episode):
    """1 where everything that is there is finite, else 0; action (BLOCK_A,), padded with zeros."""
    fine = tl.min((tl.abs(action) <= LARGEST).to(tl.int32))
    if objective_ptr is not None:
        fine = tl.where(tl.abs(tl.load(objective_ptr + episode)) <= LARGEST, fine, 0)
    if norm_ptr is not None:
        fine = tl.where(tl.abs(tl.load(norm_ptr + episode)) <= LARGEST, fine, 0)
    if finite_ptr is not None:
        fine = tl.where(tl.load(finite_ptr + episode) != 0, fine, 0)
    return fine


@triton.jit
def keep_evidence(new_ptr, evidence_ptr, fine, episode, first_news, n_columns):
    """The new evidence, or the old one without its last decision."""
    column = tl.arange(0, BLOCK_E)
    at, inside = episode * n_columns + column, column < n_columns
    old = tl.load(evidence_ptr + at, mask=inside, other=0.0)
    old = tl.where(column < first_news, old, float("nan"))
    new = tl.load(new_ptr + at, mask=inside, other=0.0)
    tl.store(evidence_ptr + at, tl.where(fine != 0, new, old), mask=inside)


@triton.jit(do_not_specialize=["width", "n_actions", "first_news", "n_columns"])
def finish_kernel(start_ptr, after_ptr, action_ptr, base_ptr, new_ptr, objective_ptr, norm_ptr, finite_ptr, scale_ptr,
                  trust_ptr, distance_ptr, reason_ptr, params_ptr, evidence_ptr, times_ptr, report_ptr, width,
                  n_actions, first_news, n_columns, BLOCK: tl.constexpr, BLOCK_A: tl.constexpr):  # fmt: skip
    """BLOCK parameters of one episode that is kept or undone; the first program of it does all the rest.

    Grid      (cdiv(width, BLOCK), B)
    Reads     start, after (B, width); action, base (B, n_actions); new (B, n_columns), the new evidence; objective,
              norm, scale, trust, distance (B,), finite (B,) uint8, reason (B,) int64: None for what there is not
    Writes    params (B, width), evidence (B, n_columns), times (B,) and report (B, n_actions + 7), in place
    Requires  BLOCK_A >= n_actions, BLOCK_E >= n_columns
    """
    episode = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK_A)
    inside = column < n_actions
    action = tl.load(action_ptr + episode * n_actions + column, mask=inside, other=0.0)
    fine = is_fine(action, objective_ptr, norm_ptr, finite_ptr, episode)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = episode * width + place
    chosen_ptr = after_ptr if fine != 0 else start_ptr
    tl.store(params_ptr + at, tl.load(chosen_ptr + at, mask=place < width, other=0.0), mask=place < width)
    if tl.program_id(0) == 0:
        if new_ptr is not None:
            keep_evidence(new_ptr, evidence_ptr, fine, episode, first_news, n_columns)
        base = tl.load(base_ptr + episode * n_actions + column, mask=inside, other=0.0)
        report_ptr += episode * (n_actions + 7)
        tl.store(report_ptr + column, tl.where(fine != 0, action, base), mask=inside)
        report_ptr += n_actions
        tl.store(report_ptr, number(objective_ptr, episode))
        tl.store(report_ptr + 1, number(norm_ptr, episode))
        tl.store(report_ptr + 2, number(scale_ptr, episode))
        tl.store(report_ptr + 3, (1 - fine).to(tl.float32))
        tl.store(report_ptr + 4, number(trust_ptr, episode))
        tl.store(report_ptr + 5, number(distance_ptr, episode))
        tl.store(report_ptr + 6, number(reason_ptr, episode))
        tl.store(times_ptr + episode, tl.load(times_ptr + episode) + 1)


def finish_into(
    found: Outcome, first_news: int, params: Tensor, evidence: Tensor, times: Tensor, report: Tensor
) -> None:
    """One launch; arguments as in `op.finish`."""
    (n_episodes, width), n_actions = params.shape, found.action.shape[1]
    finite = None if found.finite is None else found.finite.view(torch.uint8)
    scalars = width, n_actions, first_news, evidence.shape[1]
    options = dict(BLOCK=BLOCK, BLOCK_A=pad_block(n_actions), num_warps=NUM_WARPS)
    given = found._replace(finite=finite)
    run(finish_kernel, (cdiv(width, BLOCK), n_episodes), *given, params, evidence, times, report, *scalars, **options)


def aot_cases() -> list[AotCase]:
    """With all that there can be, and with as little."""
    names = [p for p in finish_kernel.arg_names if p.endswith("_ptr")]
    kinds = {"finite_ptr": "u8", "reason_ptr": "i64", "times_ptr": "i64"}
    optional = names[4:12]
    return [
        AotCase(
            name=f"finish_kernel {name}",
            kernel=finish_kernel,
            pointers={p: kinds.get(p, "fp32") for p in names if p not in unused},
            constexprs={"BLOCK": BLOCK, "BLOCK_A": pad_block(1)} | dict.fromkeys(unused),
            options={"num_warps": NUM_WARPS},
            tensor_cores=False,
        )
        for name, unused in (("all", ()), ("least", optional))
    ]
