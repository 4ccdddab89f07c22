"""The end of a captured decision, whatever went wrong in it: what stays, what is done, and what the host is told.

In place on buffers that never move, so that a replayed graph needs no copy of its own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdwm.kernels.contract import check_tensor
from fastdwm.kernels.finish.reference import finish_reference

NUMBERS = ("objective", "norm", "scale", "discarded", "trust", "distance", "reason")
"""columns of a report after those of the action"""


class Outcome(NamedTuple):
    """What a decision has come to, per episode, before anything is undone; none where it is unknown or does not exist.

    start, after: (B, P), the parameters to return to and the new ones.   evidence: (B, 8), the new one.
    action, base_action: (B, A), the action and what is done in its place where something is not finite.
    finite: (B,) bool of what is not seen here.   reason: (B,) int64.   All others: (B,).
    """

    start: Tensor
    after: Tensor
    action: Tensor
    base_action: Tensor
    evidence: Tensor | None
    objective: Tensor | None
    norm: Tensor | None
    finite: Tensor | None
    scale: Tensor | None
    trust: Tensor | None
    distance: Tensor | None
    reason: Tensor | None


@torch.no_grad()
def finish(found: Outcome, first_news: int, params: Tensor, evidence: Tensor, times: Tensor, report: Tensor) -> None:
    """Keep the new state or return to the old, count the decision and report it; all in place.

    Where objective, norm or action is not finite, or `finite` does not hold, the parameters are those of the start, the
    action is base_action, and of the old evidence all columns from `first_news` on are NaN. What does not exist is
    no reason to do so.
    params: (B, P).   evidence: (B, 8), the old one before.   times: (B,) int64, one more afterwards.
    report: (B, A + 7), the action done and `NUMBERS`, NaN where unknown.
    float32 (on the CPU also float64), contiguous; start may be params.
    Raises ValueError on a wrong shape, stride or device, TypeError on a wrong dtype.
    """
    dtype = torch.float64 if params.dtype == torch.float64 and not params.is_cuda else torch.float32
    n, n_actions = len(params), found.action.shape[-1]
    shapes = {"start": params.shape, "after": params.shape, "action": (n, n_actions), "base_action": (n, n_actions)}
    shapes |= {"evidence": evidence.shape}
    check_tensor("params", params, (None, None), dtype)
    check_tensor("evidence", evidence, (n, None), dtype, params.device)
    check_tensor("times", times, (n,), torch.int64, params.device)
    check_tensor("report", report, (n, n_actions + len(NUMBERS)), dtype, params.device)
    kinds = {"finite": torch.bool, "reason": torch.int64}
    for name, value in found._asdict().items():
        if value is not None:
            check_tensor(name, value, shapes.get(name, (n,)), kinds.get(name, dtype), params.device)
    if params.is_cuda:
        from fastdwm.kernels.finish.kernel import finish_into

        finish_into(found, first_news, params, evidence, times, report)
    else:
        finish_reference(found, first_news, params, evidence, times, report)
